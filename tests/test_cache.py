"""Arrays on disk: what was written is read, and nothing else is ever taken for it."""

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from data.cache import ABOUT, CacheError, add, open_cache, read

RNG = np.random.default_rng(0)
SHAPE = (4, 5, 8)
ARRAYS = {f"image{i}": RNG.normal(size=SHAPE).astype(np.float32) for i in range(5)}
ABOUT_THEM = {"weights": "abc", "filter": "sobel:aperture=3"}


def opened(folder, about=ABOUT_THEM, dtype="float32", shape=SHAPE):
    return open_cache(folder, about=about, shape=shape, dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "kept"), [("float32", np.float32), ("bfloat16", ml_dtypes.bfloat16)]
)
def test_what_was_added_is_read_by_another_process_too(tmp_path, dtype, kept):
    cache = add(opened(tmp_path, dtype=dtype), ARRAYS)
    for again in (cache, opened(tmp_path, dtype=dtype)):
        assert set(again.places) == set(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(read(again, name), array.astype(kept))
    used = sum(file.stat().st_size for file in cache.folder.iterdir())
    assert 0 <= used - len(ARRAYS) * cache.bytes_each < 3 * 2**16  # Blocks of ArrayRecord.


@pytest.mark.parametrize(
    "other",
    [
        {"about": ABOUT_THEM | {"filter": "sobel:aperture=5"}},
        {"about": ABOUT_THEM | {"weights": "abd"}},
        {"dtype": "bfloat16"},
        {"shape": (5, 4, 8)},
    ],
)
def test_another_origin_is_another_cache(tmp_path, other):
    add(opened(tmp_path), ARRAYS)
    assert not opened(tmp_path, **other).places


def test_shards_add_up(tmp_path):
    cache = opened(tmp_path)
    for name, array in ARRAYS.items():
        cache = add(cache, {name: array})
    assert opened(tmp_path).places == cache.places
    np.testing.assert_array_equal(read(opened(tmp_path), "image3"), ARRAYS["image3"])


def test_a_writer_that_was_killed_leaves_no_array(tmp_path):
    cache = add(opened(tmp_path), {"image0": ARRAYS["image0"]})
    shard = cache.places["image0"][0]
    (cache.folder / f"{shard}.json").unlink()  # It is written last.
    assert not opened(tmp_path).places
    assert set(add(opened(tmp_path), {"image0": ARRAYS["image0"]}).places) == {"image0"}


def test_a_damaged_array_is_named_with_the_remedy(tmp_path):
    cache = add(opened(tmp_path), ARRAYS)
    shard = next(cache.folder.glob("*.array_record"))
    content = bytearray(shard.read_bytes())
    place = content.find(ARRAYS["image2"].tobytes()[:64])
    assert place > 0
    content[place + 7] ^= 16
    shard.write_bytes(content)
    with pytest.raises(CacheError, match=f"{shard.name}: damaged .*delete it"):
        [read(opened(tmp_path), name) for name in ARRAYS]


def test_a_damaged_description_is_no_cache(tmp_path):
    cache = add(opened(tmp_path), ARRAYS)
    (cache.folder / ABOUT).write_text("{}")
    with pytest.raises(CacheError, match=f"{ABOUT}: damaged; delete"):
        opened(tmp_path)


def test_an_array_of_another_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"image0: an array of \(5,\)"):
        add(opened(tmp_path), {"image0": np.zeros(5, np.float32)})


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from data.cache import add, open_cache
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cache = open_cache(Path(sys.argv[1]), about={}, shape=(500, 500), dtype="float32")
try:
    add(cache, {"one": np.ones((500, 500), np.float32)})
except OSError as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert "cannot be written" in done.stdout
    assert "free some space" in done.stdout
    folder = next(tmp_path.iterdir())
    assert [file.name for file in folder.iterdir()] == [ABOUT]
