"""What of Triton's log the user sees, and what is kept for the day it dies."""

import re
import threading
from collections import deque
from collections.abc import Callable
from typing import IO

# Triton says these at warning or error level on every machine without a GPU, the last one at every stop.
NOISE = re.compile(
    "|".join(
        (
            r"Failed to initialize NVML",
            r"NVIDIA driver on your system",
            r"CUDA (memory pool disabled|driver version is insufficient|helper error)",
            r"Cuda(Driver| error|DriverHelper)",
            r"no CUDA-capable device",
            r"[Pp]inned memory",
            r"libcuda\.so",
            r"^Signal \(15\) received\.",
            # Seen now and then at a stop after many cancelled streams: a leaked request, no harm at an end.
            r"failed to stop server: Internal - Exit timeout expired",
        )
    )
)
# A stub logs at info level whatever the server is told, and gives every error a native trace of the import.
DETAIL = re.compile(r"^I\d{4} |^At:$|^  (<frozen|/).*\(\d+\): |^\s*$")
ENTRY = re.compile(r'^(?P<level>[EWF])\d{4} \S+ \d+ \S+\] "?(?P<message>.*?)(\\n\\nAt:.*)?"?$')
LEVELS = {"E": "error", "F": "fatal", "W": "warning"}
KEPT_LINES = 200
SHOWN_LINES = 12


class TritonLog:
    """Reads the server's output to its end on a thread of its own, so that the pipe never fills."""

    def __init__(self, stream: IO[str], show: Callable[[str], None], *, verbose: bool) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._stream, self._show, self._verbose = stream, show, verbose
        self._thread = threading.Thread(target=self._follow, name="triton-log", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Returns when the server's output has been read to its end, or soon after that should have been."""
        self._thread.join(timeout=1.0)

    def last_words(self) -> str:
        """The last lines that say something, once the server has closed its output."""
        self.end()
        return "\n".join(list(self._lines)[-SHOWN_LINES:])

    def _follow(self) -> None:
        with self._stream:
            for raw in self._stream:
                line = raw.rstrip() if self._verbose else essence(raw.rstrip())
                if line:
                    self._lines.append(line)
                    self._show(line)


def essence(line: str) -> str:
    """A line of Triton's log as a user needs it; empty for noise, detail and information."""
    if NOISE.search(line) or DETAIL.search(line):
        return ""
    entry = ENTRY.match(line)
    return f"Triton, {LEVELS[entry['level']]}: {entry['message']}" if entry else line
