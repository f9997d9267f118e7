"""How a command of this station ends when something is wrong: in one sentence and with an exit code."""

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from export.errors import ExportError


@contextmanager
def one_sentence(command: str) -> Iterator[None]:
    """Turn what a user can mend into one sentence and an exit code: 1 refused, 130 interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        raise _refuse(command, "interrupted; nothing was installed", 130) from None
    except ExportError as error:
        raise _refuse(command, str(error), 1) from error
    except OSError as error:
        raise _refuse(command, _explain(error), 1) from error


def _refuse(command: str, sentence: str, code: int) -> typer.Exit:
    print(f"trident {command}: {sentence}", file=sys.stderr)
    return typer.Exit(code)


def _explain(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"the disk is full ({error.filename or 'while writing'}): free some space and run it again"
    return f"{error.filename or 'the system'}: {error.strerror or error}"


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
