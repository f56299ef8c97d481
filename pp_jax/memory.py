"""The memory that a CPU computes in."""

import ctypes

# <malloc.h>: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD.
_TRIM, _MAP = -1, -3
_ALWAYS = 2**31 - 1


def keep_freed_memory() -> bool:
    """Whether the C library was told to keep freed blocks below 2 GiB for the next ones.

    XLA allocates all results and scratch of a call anew. glibc fetches blocks above 32 MiB from the
    kernel and returns them at once, and the kernel fills every fetched page with zeros, which takes
    longer than an edge filter and a good part of an encoder. The memory that a process holds stays
    at its peak instead. False, and no change, where the C library is not glibc.

    Source: mallopt(3).
    """
    try:
        option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([option(_TRIM, _ALWAYS), option(_MAP, _ALWAYS)])
