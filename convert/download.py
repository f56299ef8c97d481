"""Fetching the official files: with progress, resumed after a break, verified by their hash."""

import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tqdm import tqdm

from pp_jax import checkpoints

_CHUNK = 1 << 20
_URL = "https://dl.fbaipublicfiles.com/segment_anything/"


class OfficialFile(NamedTuple):
    """One official checkpoint."""

    name: str
    sha256: str


def download(variant: str, folder: Path, *, url: str = _URL) -> Path:
    """The official file of a variant, verified, in `folder`.

    What an interrupted call had fetched is kept in a `.partial` file and continued.

    Raises:
      ValueError: The server does not answer, or the file is not the official one.
    """
    wanted = FILES[variant]
    path = folder / wanted.name
    if path.is_file():
        _verify(path, wanted)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        _fetch(url + wanted.name, partial)
    except (urllib.error.URLError, OSError) as error:
        raise ValueError(
            f"{url}{wanted.name}: {error}; what was fetched is kept, the same command continues, "
            f"or put the file at {path} by hand"
        ) from error
    _verify(partial, wanted)
    partial.rename(path)
    return path


def _fetch(url: str, partial: Path) -> None:
    """All of `url` stands in `partial`, going on from what is there."""
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # Nothing beyond what is there: the file is complete.
            return
        raise
    with answer:
        resumed = answer.status == 206
        start = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (
            partial.open("ab" if resumed else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=partial.stem) as bar,
        ):
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and partial.stat().st_size != total:
        raise OSError(f"the connection ended after {partial.stat().st_size} of {total} bytes")


def _verify(path: Path, wanted: OfficialFile) -> None:
    found = checkpoints.sha256(path)
    if found != wanted.sha256:
        if path.suffix == ".partial":
            path.unlink()  # To continue it would never lead to the right file.
        raise ValueError(
            f"{path}: sha256 {found[:12]}..., not {wanted.sha256[:12]}... of the official "
            f"{wanted.name}; the file was removed if this command fetched it: run it again, or "
            "remove it"
        )


# The digits in the names are the first of each file's md5.
FILES: Mapping[str, OfficialFile] = MappingProxyType(
    {
        "vit_b": OfficialFile(
            "sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        "vit_l": OfficialFile(
            "sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        "vit_h": OfficialFile(
            "sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
    }
)
