"""What memory allows: tokens per second if a token cost one reading of the weights, and nothing else."""

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.onnx_files import load_graph
from tests.bench.peer_process import THREADS
from tests.bench.workload import Workload

# Operators that take single rows of a table: an embedding's, a rotation's.
LOOKING_UP = {"Gather", "GroupQueryAttention"}

# A search for a byte that isn't there reads as fast as memory gives, and without Python's lock.
_memchr = ctypes.CDLL(None).memchr
_memchr.argtypes, _memchr.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p
ABSENT = 0


class MemoryLimit:
    """As many bytes as a step of the graph reads, read by a thread on each core."""

    def __init__(self, graph: Path) -> None:
        self.parts = np.array_split(np.ones(step_bytes(graph), np.uint8), THREADS)
        self._pool = ThreadPoolExecutor(THREADS)

    def rate(self, workload: Workload) -> float:
        """Tokens per second of a workload whose prompts cost nothing."""
        start = time.perf_counter()
        list(self._pool.map(_read, self.parts, [workload.new_tokens] * THREADS))
        return workload.new_tokens / (time.perf_counter() - start)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _read(part: NDArray[np.uint8], times: int) -> None:
    address = part.ctypes.data
    for _ in range(times):
        assert _memchr(address, ABSENT, part.nbytes) is None


def step_bytes(graph: Path) -> int:
    """The bytes of a graph's weights but for the tables in which it only looks up rows.

    A table that is multiplied by, too, as a tied head is, counts once.
    """
    return sum(
        weight.const_value.nbytes
        for weight in load_graph(graph).graph.initializers.values()
        if weight.const_value is not None and {use.node.op_type for use in weight.uses()} - LOOKING_UP
    )
