"""The data sets by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from data import folder, rsna
from data.records import Record


@dataclass(frozen=True)
class Dataset:
    """How one data set is read, where it lies by default, and how to get it."""

    read: Callable[..., list[Record]]  # (folder, *, limit) -> records
    folder: str  # Below `datasets/` in the clone.
    obtain: str  # Ends the sentence "DIR: no such folder; ..."; DIR stands for the folder.


def open_dataset(name: str, folder: Path, *, limit: int | None = None) -> list[Record]:
    """The records of a data set, `limit` patients of it if given.

    Raises:
      FileNotFoundError: No such folder; says how to get the data.
      ValueError: An unknown name, or whatever the reader finds wrong.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; choose from {', '.join(DATASETS)}")
    if not Path(folder).is_dir():
        obtain = DATASETS[name].obtain.replace("DIR", str(folder))
        raise FileNotFoundError(f"{folder}: no such folder; {obtain}")
    return DATASETS[name].read(Path(folder), limit=limit)


DATASETS: Mapping[str, Dataset] = MappingProxyType(
    {
        "synthetic": Dataset(
            rsna.read_rsna,
            folder="synthetic",
            obtain="write it with `python -m data.synthetic --out DIR`",
        ),
        "rsna": Dataset(rsna.read_rsna, folder="rsna", obtain=rsna.OBTAIN),
        "folder": Dataset(folder.read_folder, folder="folder", obtain=folder.OBTAIN),
    }
)
