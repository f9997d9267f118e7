"""How the C library treats memory that is freed: kept, where it is soon wanted again, or given back."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 1 << 30


def keep_freed_memory() -> None:
    """Let this process keep what it frees, instead of having every step's tensors paged in anew.

    By default glibc returns large blocks to the system at once: a step of atlas then takes an eighth longer.
    Does nothing where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, LARGEST)


def return_freed_memory() -> None:
    """Give the system back what lies free between blocks in use: after a model's weights, most of them.

    Does nothing where the C library is another.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
