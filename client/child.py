"""A child process that cannot outlive its parent, with the end of what it said."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LAST_LINES = 30
_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """`python -m MODULE …` in a process group of its own; the kernel ends it should this process die.

    Its output goes line by line to `show`, or, when that is None, to where ours goes (progress bars).
    """

    def __init__(
        self, name: str, arguments: Sequence[str], *, directory: Path, show: Callable[[str], None] | None
    ) -> None:
        self.name = name
        self._show = show
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=None if show is None else subprocess.PIPE,
            stderr=None if show is None else subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def exit_code(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Return the exit code once it has ended."""
        return self._process.wait()

    def last_words(self) -> str:
        """Return the last lines of its output, complete once the process has ended."""
        self._reader.join(timeout=2.0)
        return "\n".join(self._lines)

    def stop(self, grace_s: float) -> None:
        """Ask it to end, and after `grace_s` seconds end its whole group."""
        if self.exit_code() is None:
            self._process.terminate()
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._reader.join(timeout=2.0)

    def _read(self) -> None:
        if self._process.stdout is None or self._show is None:
            return
        with self._process.stdout as output:
            for line in output:
                self._lines.append(line.rstrip("\n"))
                self._show(line.rstrip("\n"))


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
