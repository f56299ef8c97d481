"""What an evaluation has finished so far, one line of JSON per method and image.

A line is written at once and whole. An evaluation that was interrupted goes on after its last whole
line, if it is asked for the same again; otherwise it starts anew.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pp_jax import checkpoints

SETTINGS = "settings.json"
_LINES = "journal.jsonl"

Key = tuple[str, str, str, str]  # Method, seed, data set, image.


class Journal(NamedTuple):
    """An open journal: what it held when it was opened, and where the next line goes."""

    path: Path
    done: dict[Key, dict[str, Any]]


def open_journal(folder: Path, settings: Mapping[str, Any]) -> Journal:
    """The journal in a folder, with the lines of an interrupted evaluation of the same settings.

    The settings are written first: what is to be compared is laid down before an image is read.
    """
    wanted = json.loads(json.dumps(settings, default=str))
    path = folder / _LINES
    if not _holds(folder / SETTINGS, wanted):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        checkpoints.write_json(folder / SETTINGS, wanted)
    return Journal(path, _read(path))


def write_line(journal: Journal, key: Key, content: Mapping[str, Any]) -> None:
    """The line stands on the disk, and the journal knows it."""
    line = json.dumps({"key": key, **content}, allow_nan=False, separators=(",", ":"))
    with journal.path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    journal.done[key] = json.loads(line)  # The same as an interrupted evaluation reads.


def close(journal: Journal) -> None:
    """The journal is gone; what it held stands in the tables."""
    journal.path.unlink(missing_ok=True)


def _holds(path: Path, wanted: Mapping[str, Any]) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8")) == wanted
    except (OSError, ValueError):
        return False


def _read(path: Path) -> dict[Key, dict[str, Any]]:
    """Lines by their key; from the first that is not whole on they are removed from the file."""
    if not path.is_file():
        return {}
    done: dict[Key, dict[str, Any]] = {}
    whole = 0
    with path.open("rb") as file:
        for line in file:
            try:
                content = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            done[tuple(content["key"])] = content
            whole += len(line)
    os.truncate(path, whole)
    return done
