"""What images are read from: files on disk, members of a zip archive, entries of a prepared set."""

import functools
import io
import os
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

LARGEST_MEMBER = 2 << 30  # Bytes: a member's header may promise anything.


class File(Protocol):
    """Something named to read bytes from; a `pathlib.Path` is one. `str` names it in messages."""

    @property
    def name(self) -> str:
        """The last part of its name."""

    @property
    def stem(self) -> str:
        """`name` without its suffix."""

    @property
    def suffix(self) -> str:
        """The end of `name`, from its last dot on."""

    def open(self, mode: str = "rb") -> BinaryIO:
        """The content as a stream, `mode` being "rb"."""

    def read_bytes(self) -> bytes:
        """The whole content."""


@dataclass(frozen=True)
class Member:
    """A file inside a zip archive, which stays packed."""

    archive: Path
    path: str  # As the archive spells it.

    def __str__(self) -> str:
        return f"{self.archive}/{self.path}"

    @property
    def name(self) -> str:
        """As of a path."""
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        """As of a path."""
        return PurePosixPath(self.path).stem

    @property
    def suffix(self) -> str:
        """As of a path."""
        return PurePosixPath(self.path).suffix

    def open(self, mode: str = "rb") -> BinaryIO:
        """The unpacked content as a stream; errors as `read_bytes`."""
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        """The unpacked content.

        Raises:
          OSError: The archive has no such member, is damaged there, or the member is too large.
        """
        try:
            archive = _archive(self.archive, os.getpid(), self.archive.stat().st_mtime_ns)
            size = archive.getinfo(self.path).file_size
            if size > LARGEST_MEMBER:
                raise OSError(f"{self}: unpacks to {size} bytes, more than {LARGEST_MEMBER}")
            return archive.read(self.path)
        except KeyError as error:
            raise FileNotFoundError(f"{self}: no such member of the archive") from error
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise OSError(f"{self}: cannot be unpacked ({error}); download it again") from error


def members(archive: Path) -> tuple[Member, ...]:
    """All files in a zip archive, in its order.

    Raises:
      ValueError: Not a zip archive, or a cut-off one.
      OSError: It cannot be opened.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            return tuple(Member(archive, x.filename) for x in opened.infolist() if not x.is_dir())
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive}: not a whole zip archive ({error}); get it again") from error


def free_space(folder: Path) -> int:
    """Bytes that are free where a folder is, or would be made."""
    return shutil.disk_usage(
        next(p for p in (folder, *folder.absolute().parents) if p.exists())
    ).free


# Threads may share it, as `zipfile` locks; a forked process would move this one's position.
@functools.lru_cache(maxsize=8)
def _archive(path: Path, process: int, changed: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)
