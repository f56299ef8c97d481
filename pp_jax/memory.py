"""The memory that a run computes in."""

import ctypes
import multiprocessing
import os
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
    """The most memory that was held so far, in words; see `peaks`."""
    return ", ".join(peaks()) or "unknown on this system"


def peaks(*, devices: bool = True) -> list[str]:
    """The most memory that was held so far, in words: of processes, and of the fullest device.

    The processes are this one and those that it started for its work. What the system does not tell
    is missing.

    Args:
      devices: Whether to ask jax, which then takes hold of the devices.
    """
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    told = []
    if held := sum(map(_resident, pids)):
        told.append(f"{held / 2**20:.1f} GiB resident")
    if devices:
        import jax  # Only here: programs in torch keep freed memory too, and are measured without.

        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        most = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
        told += [f"{max(most) / 2**30:.1f} GiB on a device"] if most else []
    return told


def _resident(pid: int | None) -> int:
    """KiB that a process held at most; 0 where that is not known."""
    # Not `ru_maxrss`, which a process inherits from the one that started it.
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0
