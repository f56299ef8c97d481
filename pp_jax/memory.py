"""The memory that a CPU computes in."""

import ctypes

# <malloc.h>: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD.
_TRIM, _MAP = -1, -3
_LARGEST, _LARGEST_ONCE = 2**31 - 1, 2**25  # Before 2.35 or so glibc refuses more than 32 MiB.


def keep_freed_memory() -> bool:
    """Whether the C library was told to keep freed blocks for the next ones.

    XLA allocates all results and scratch of a call anew. glibc fetches blocks above 32 MiB from the
    kernel and returns them at once, and the kernel fills every fetched page with zeros, which takes
    longer than an edge filter and a good part of an encoder. The memory that a process holds stays
    at its peak instead. Blocks of up to 2 GiB are kept, of up to 32 MiB by an old glibc. False, and
    no change, where the C library is another.

    Source: mallopt(3).
    """
    try:
        option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # Either option ends glibc's own adaptation, so the threshold is never left at its start.
    kept = option(_MAP, _LARGEST) or option(_MAP, _LARGEST_ONCE)
    return bool(kept and option(_TRIM, _LARGEST))
