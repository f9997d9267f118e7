"""`python -m gateway`: serve the HTTP surface in front of a running Triton."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import Callable, Sequence

import uvicorn
import uvloop
from pydantic import ValidationError
from pydantic_settings import SettingsError

from client.triton import AsyncTritonClient
from gateway import logs
from gateway.app import create_app
from gateway.settings import PREFIX, Settings, unknown_variables
from gateway.transport import Transport

_SHUTDOWN_GRACE_S = 5
_COLLECT_AFTER = 10_000


def main(
    arguments: Sequence[str] | None = None, connect: Callable[[str], Transport] = AsyncTritonClient
) -> int:
    """Run until told to stop; returns 2 when the settings are wrong, with the reason on stderr.

    `connect` makes the transport to the `url` of the settings, within the event loop.
    """
    given = {
        name: value for name, value in vars(_parser().parse_args(arguments)).items() if value is not None
    }
    if unknown := unknown_variables(os.environ):
        known = ", ".join(f"{PREFIX}{name}".upper() for name in Settings.model_fields)
        print(f"gateway: no such setting: {', '.join(unknown)}; known: {known}", file=sys.stderr)
        return 2
    try:
        settings = Settings(**given)
    except (ValidationError, SettingsError) as error:
        print(f"gateway: {_sentence(error)}", file=sys.stderr)
        return 2
    logs.configure(settings.log_level)
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, connect))
    return 0


async def serve(settings: Settings, connect: Callable[[str], Transport]) -> None:
    """Serve with these settings until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        create_app(settings, connect(settings.url)),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_GRACE_S,
    )
    _spare_the_collector()
    await uvicorn.Server(config).serve()


def _spare_the_collector() -> None:
    """Let the garbage collector pass over what is here to stay: a look through all of it takes 80 ms.

    Requests leave no cycles behind but after an error, so it need not look often either.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gateway", description=__doc__)
    parser.add_argument("--host", help="address to bind (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to bind (8000)")
    parser.add_argument("--url", help="Triton's gRPC address (127.0.0.1:8001)")
    return parser


def _sentence(error: ValidationError | SettingsError) -> str:
    if isinstance(error, SettingsError):
        return str(error)
    parts = [f"{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}" for item in error.errors()]
    return "; ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
