"""Readers of ArrayRecord files, shared by all that a process reads at random."""

import functools
import os
from pathlib import Path


def read_at(path: Path, position: int) -> bytes:
    """One record of a file.

    Raises:
      RuntimeError: The file is gone or damaged: its own checksums tell.
    """
    return _reader(path, os.getpid()).read([position])[0]


# One reader serves all threads of a process; a forked one must not share its position. 512 are more
# shards than RSNA has, and fewer than the files that a process may open.
@functools.lru_cache(maxsize=512)
def _reader(path: Path, process: int):
    # Half a second, which nobody need spend who reads files.
    from array_record.python import array_record_module

    # Without reading ahead: the next record is anywhere.
    return array_record_module.ArrayRecordReader(
        str(path), "readahead_buffer_size:0", file_reader_buffer_size=32768
    )
