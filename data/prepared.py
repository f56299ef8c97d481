"""A prepared data set on disk: what it holds, and its records.

    DIR/pixel_perfect-images.array_record-*   images, masks, and what is known of them
    DIR/features.json, dataset_info.json      what TFDS reads them by
    DIR/records.jsonl                         the same without pixels, a line per image
    DIR/preparation.md                        counts, what was skipped and why, warnings
    DIR/MANIFEST.json                         size and sha256 of every other file

`tfds.builder_from_directory(DIR).as_data_source("images")` reads it, too.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from data.array_records import read_at
from data.facts import Facts
from data.records import Record

MANIFEST, INDEX, REPORT = "MANIFEST.json", "records.jsonl", "preparation.md"
FORMAT = 3  # To be raised when other bytes are written for the same source.
_READ_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Entry:
    """The PNG of an image, of a mask or of lungs inside a prepared set; a `File`."""

    shard: Path
    position: int  # Of the example in its shard.
    id: str
    field: Literal["image", "mask", "lungs"]

    def __str__(self) -> str:
        return f"{self.shard.parent}: {self.field} of {self.id}"

    @property
    def name(self) -> str:
        """As of a path."""
        return f"{self.stem}.png"

    @property
    def stem(self) -> str:
        """The id, or the last part of one with slashes."""
        return self.id.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Always ".png"."""
        return ".png"

    def open(self, mode: str = "rb") -> BinaryIO:
        """The content as a stream; errors as `read_bytes`."""
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        """The PNG.

        Raises:
          OSError: The shard is gone or damaged: its own checksums tell.
        """
        # Half a second, which nobody need spend who reads files.
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            content = read_at(self.shard, self.position)
        except RuntimeError as error:
            raise OSError(f"{self} cannot be read ({error}); prepare the set again") from error
        features = tf_example_pb2.Example.FromString(content).features.feature
        return features[self.field].bytes_list.value[0]


def is_prepared(folder: Path) -> bool:
    """Whether `python -m data prepare` wrote the folder; reading it tells if it is still whole."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the preparation says: `data`, `label`, `licence`, `records`, `shards`, `files`, ...

    Raises:
      ValueError: Not a manifest, or one of another version of this program.
      OSError: It cannot be opened.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        written = manifest["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: damaged ({error}); {_AGAIN}") from error
    if written != FORMAT:
        raise ValueError(f"{path}: format {written}, this program reads {FORMAT}; {_AGAIN}")
    return manifest


def read_prepared(
    folder: Path,
    *,
    data: str = "",
    label: str = "",
    limit: int | None = None,
    verify: bool = False,
) -> list[Record]:
    """The records that were prepared, in their order, with images, masks and lungs as `Entry`.

    The size of each file and the hash of the index are compared with the manifest.

    Args:
      folder: Written by `python -m data prepare`.
      data: The row of `DATASETS` that it is to hold.
      label: What alone is to be found in it, as it was prepared.
      limit: Number of patients: the first ones, with all their images.
      verify: Compare the hashes of the images' files, too: some seconds per 10 GB.

    Raises:
      ValueError: A file is missing or is not as it was written; another data set or label; a
        limit below 1.
      OSError: A file cannot be opened.
    """
    folder = Path(folder)
    if limit is not None and limit < 1:
        raise ValueError(f"limit is a number of patients, at least 1; got {limit}")
    manifest = read_manifest(folder)
    for field, wanted in (("data", data), ("label", label)):
        if wanted and manifest[field] != wanted:
            raise ValueError(
                f"{folder}: prepared with the {field} {manifest[field]!r}, not {wanted!r}; give "
                "the folder of the one that is wanted, or prepare it"
            )
    _check_files(folder, manifest["files"], hashed=None if verify else {INDEX})
    shards = [folder / name for name in manifest["shards"]]
    with (folder / INDEX).open(encoding="utf-8") as lines:
        records = [_record(json.loads(line), shards) for line in lines]
    if len(records) != manifest["records"]:
        raise ValueError(
            f"{folder / INDEX}: {len(records)} records, {MANIFEST} says {manifest['records']}; "
            f"{_AGAIN}"
        )
    chosen = set(list(dict.fromkeys(record.patient for record in records))[:limit])
    return [record for record in records if record.patient in chosen]


def describe(record: Record) -> dict[str, Any]:
    """What is known of a record beside its files, as plain values; `read_prepared` inverts it."""
    return {
        "id": record.id,
        "patient": record.patient,
        "boxes": [list(box) for box in record.boxes],
        "target": record.target,
        "label": record.label,
        "facts": dataclasses.asdict(record.facts),
        "notes": list(record.notes),
    }


def write_index(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a line per image: `describe`, and under "shard", "position" where it lies.

    "mask" and "lungs" tell whether there is one.
    """
    with (folder / INDEX).open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


def write_manifest(
    folder: Path, hashes: Mapping[str, str], *, shards: Iterable[str], **said: Any
) -> None:
    """Write size and sha256 of all files of a set, and what else is said of it.

    Args:
      hashes: Those that are known; of other files they are computed.
      shards: Names of the files that a row's "shard" counts.
    """
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashes.get(path.name) or sha256(path)}
        for path in sorted(folder.iterdir())
    }
    manifest = {"format": FORMAT, **said, "shards": list(shards), "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """The hash of a file, which is never in memory as a whole."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_AT_ONCE):
            total.update(block)
    return total.hexdigest()


def _check_files(
    folder: Path, files: Mapping[str, Mapping[str, Any]], *, hashed: set[str] | None
) -> None:
    """A ValueError that names the first file that is not as written; `hashed` None: hash all."""
    for name, written in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path}: missing; {_AGAIN}")
        size = path.stat().st_size
        if size != written["bytes"]:
            raise ValueError(f"{path}: {size} bytes, {written['bytes']} were written; {_AGAIN}")
        if (hashed is None or name in hashed) and sha256(path) != written["sha256"]:
            raise ValueError(f"{path}: not what was written (another sha256); {_AGAIN}")


def _record(row: dict[str, Any], shards: list[Path]) -> Record:
    facts = row["facts"]
    if facts["spacing"] is not None:
        facts = facts | {"spacing": tuple(facts["spacing"])}
    image = Entry(shards[row["shard"]], row["position"], row["id"], "image")
    return Record(
        id=row["id"],
        patient=row["patient"],
        image=image,
        boxes=tuple(tuple(box) for box in row["boxes"]),
        mask=dataclasses.replace(image, field="mask") if row["mask"] else None,
        target=row["target"],
        label=row["label"],
        facts=Facts(**facts),
        notes=tuple(row["notes"]),
        lungs=dataclasses.replace(image, field="lungs") if row["lungs"] else None,
    )


_AGAIN = "remove the folder and prepare the set again"
