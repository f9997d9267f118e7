"""JSON logs, one object a line on stdout; ours and those of the libraries alike."""

from __future__ import annotations

import contextlib
import logging
import sys

import structlog


class Lines(structlog.WriteLogger):
    """Our own lines. As with `logging`, one that can't be written fails nobody: the reader may have gone."""

    def msg(self, message: str) -> None:
        """Write a line."""
        with contextlib.suppress(OSError):
            super().msg(message)

    debug = info = warning = error = critical = exception = msg


def configure(level: str) -> None:
    """Write every log record of this process as JSON; ours go past `logging`, which takes thrice the time."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
    ]
    render = structlog.processors.JSONRenderer(ensure_ascii=False)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=number, force=True)
    structlog.configure(
        processors=[*shared, render],
        logger_factory=lambda *_: Lines(sys.stdout),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        cache_logger_on_first_use=True,
    )
