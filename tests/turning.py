"""Programs that `tests/test_benchmarks.py` lets take turns. Not a test."""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import turns


@dataclass(frozen=True, kw_only=True)
class Settings(turns.Settings):
    """Where the programs write down when they ran."""

    log: Path


def programs(settings: Settings) -> Mapping[str, turns.Prepare]:
    """One that takes memory, one that does not, and three that fail, each in its own way."""
    return {
        "small": partial(_prepare, settings, "small", mib=1),
        "large": partial(_prepare, settings, "large", mib=300),
        "absent": _absent,
        "tired": _tired,
        "gone": lambda: partial(_exit, 3),
    }


def _prepare(settings: Settings, name: str, *, mib: int) -> turns.Run:
    print("what a library prints")

    def run() -> None:
        begun = time.monotonic()
        np.ones(mib * 2**20, np.uint8)
        status = Path("/proc/self/status").read_text()
        held = int(re.search(r"VmRSS:\s*(\d+) kB", status)[1]) // 1024
        with settings.log.open("a") as log:
            print(name, os.getpid(), begun, time.monotonic(), held, file=log)

    return run


def _absent() -> turns.Run:
    raise ImportError("\n  no such | package\n  and more")


def _tired() -> turns.Run:
    runs = iter("first")

    def run() -> None:
        if next(runs) != "f":
            raise MemoryError("no second run")

    return run


def _exit(status: int) -> None:
    os._exit(status)


if __name__ == "__main__":
    turns.read(Settings, programs)
