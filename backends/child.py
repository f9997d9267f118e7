"""A child process group that ends with its parent, however the parent ends."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.02


class ChildGroup:
    """A command in a session of its own: a terminal's Ctrl-C reaches it only through `stop`.

    The kernel sends it SIGTERM when the thread that started it is gone, be that by SIGKILL.
    """

    def __init__(self, command: list[str], *, variables: dict[str, str], directory: Path) -> None:
        self._process = subprocess.Popen(
            command,
            env=variables,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=end_with(os.getpid()),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def ended(self) -> str | None:
        """How the command ended, in words; None while it runs."""
        code = self._process.poll()
        return None if code is None else exit_text(code)

    def wait(self) -> str:
        return exit_text(self._process.wait())

    def stop(self, grace_seconds: float) -> bool:
        """SIGTERM to the command, SIGKILL to all that is left of its group; False if it had to be killed."""
        self._process.terminate()
        try:
            self._process.wait(timeout=grace_seconds)
            return True
        except subprocess.TimeoutExpired:
            return False
        finally:
            self._kill_group()
            self._process.wait()

    def _kill_group(self) -> None:
        """Also ends grandchildren; returns when the group is empty."""
        with contextlib.suppress(ProcessLookupError):
            while True:
                os.killpg(self.pid, signal.SIGKILL)
                self._process.poll()
                time.sleep(POLL_SECONDS)


def end_with(parent: int) -> Callable[[], None]:
    """What the child does before it becomes the command: ask for a signal at the parent's death."""

    def ask() -> None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it was asked about
            os._exit(1)

    return ask


def exit_text(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
