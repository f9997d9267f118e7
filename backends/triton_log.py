"""What of Triton's log the user sees, and what is kept for the day it dies."""

import re
import threading
from collections import deque
from collections.abc import Callable
from typing import IO

# Triton says these on every machine without a GPU, at warning or error level.
NOISE = re.compile(
    "|".join(
        (
            r"Failed to initialize NVML",
            r"NVIDIA driver on your system",
            r"[Uu]nable to (allocate pinned|set (memory access|peer access|PyTorch))",
            r"CUDA (memory pool disabled|driver version is insufficient|helper error)",
            r"Cuda(Driver| error|DriverHelper)",
            r"no CUDA-capable device",
            r"Pinned memory pool",
            r"libcuda\.so",
        )
    )
)
KEPT_LINES = 200
SHOWN_LINES = 12


class TritonLog:
    """Reads the server's output to its end on a thread of its own, so that the pipe never fills."""

    def __init__(self, stream: IO[str], show: Callable[[str], None]) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._show = show
        self._thread = threading.Thread(target=self._follow, args=(stream,), name="triton-log", daemon=True)
        self._thread.start()

    def last_words(self) -> str:
        """The last lines that say something, once the server has closed its output."""
        self._thread.join(timeout=1.0)
        return "\n".join(list(self._lines)[-SHOWN_LINES:])

    def _follow(self, stream: IO[str]) -> None:
        for line in stream:
            if line.strip() and not NOISE.search(line):
                self._lines.append(line.rstrip())
                self._show(line.rstrip())
