"""The memory that a run computes in."""

import ctypes
import re
from pathlib import Path

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


def peak_memory() -> str:
    """The most memory that was held so far, in words: of the process, and of the fullest device."""
    import jax  # Only here: programs in torch keep freed memory too, and are measured without jax.

    status = Path("/proc/self/status")
    # Not `ru_maxrss`, which a process inherits from the one that started it.
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    told = f"{int(found[1]) / 2**20:.1f} GiB resident" if found else "unknown on this system"
    held = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in held if "peak_bytes_in_use" in stats]
    return f"{told}, {max(peaks) / 2**30:.1f} GiB on a device" if peaks else told
