"""Memory for states: its pages are real only once written, and a row of it may be seen several times over."""

import ctypes
import math
import mmap
import os
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAP_FIXED, _PROT_NONE = 0x10, 0  # for which Python's mmap has no names
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class SlotMemory:
    """Zeros [slots, *shape] as `array`, in small pages: a first token would make a row of huge ones real."""

    def __init__(self, slots: int, shape: tuple[int, ...], dtype: str) -> None:
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._row_bytes = math.prod(shape) * self._dtype.itemsize
        self._file = os.memfd_create("states")
        weakref.finalize(self, os.close, self._file).atexit = False
        os.ftruncate(self._file, slots * self._row_bytes)
        memory = mmap.mmap(self._file, slots * self._row_bytes)
        with suppress(OSError):  # a kernel built without huge pages knows no such advice
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.array: NDArray[Any] = np.frombuffer(memory, self._dtype).reshape(slots, *shape)

    @property
    def is_repeatable(self) -> bool:
        """Whether a row is whole pages."""
        return self._row_bytes % mmap.PAGESIZE == 0

    def repeated(self, row: int, times: int) -> NDArray[Any]:
        """One row as [times, *shape]: what is written to any of them is in all, for they are the same memory.

        Raises OSError where the kernel maps no more.
        """
        assert self.is_repeatable
        size = times * self._row_bytes
        start = _map(None, size, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        buffer = (ctypes.c_char * size).from_address(start)
        # Not when the process ends: an engine that was not closed may still be computing then.
        weakref.finalize(buffer, _libc.munmap, start, size).atexit = False
        for time in range(times):
            place, flags = start + time * self._row_bytes, mmap.MAP_SHARED | _MAP_FIXED
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            _map(place, self._row_bytes, protection, flags, self._file, row * self._row_bytes)
        array: NDArray[Any] = np.frombuffer(memoryview(buffer), self._dtype).reshape(times, *self._shape)
        return array


def _map(start: int | None, size: int, protection: int, flags: int, file: int, offset: int) -> int:
    address = _libc.mmap(start, size, protection, flags, file, offset)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), f"{size} bytes could not be mapped")
    return int(address)
