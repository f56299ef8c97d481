"""Keeping freed memory, in a process of its own: the setting cannot be taken back."""

import subprocess
import sys
from pathlib import Path

import pytest

COUNT = """
import ctypes, resource, sys
from pp_jax.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("none")
    raise SystemExit
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    block = library.malloc(ctypes.c_size_t(2**26))
    ctypes.memset(ctypes.c_void_p(block), 1, 2**26)
    library.free(ctypes.c_void_p(block))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """How often the kernel had to provide a page while 64 MiB were used 8 times."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True
    )
    if done.stdout.strip() == "none":
        pytest.skip("the C library is not glibc")
    return int(done.stdout)


def test_freed_blocks_are_used_again():
    once = 2**26 // 4096
    assert faults("as it is") >= 8 * once
    assert faults("keep") <= 1.1 * once


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_peak_counts_memory_that_was_held_and_given_back():
    code = (
        "from pp_jax.memory import peak_memory\nimport numpy as np\n"
        "np.ones(2**28)\nprint(peak_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    gib = float(done.stdout.split()[0])
    assert 2.0 <= gib < 3.0  # 2 GiB of ones, and what Python holds; .1 is the last digit told.
