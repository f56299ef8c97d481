"""The data sets by name."""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from data import brain, cxr_seg, nih, rsna
from data import folder as plain
from data.prepared import is_prepared, read_prepared
from data.records import Record

Sets = Mapping[str, tuple[str, Path]]  # Rows of `DATASETS` and their folders.

NIH = "nih-chestxray14"
COVID = "covid-chestxray-dataset"


@dataclass(frozen=True)
class Dataset:
    """How one data set is read, where it lies by default, how to get it and what it is made of."""

    read: Callable[..., list[Record]]  # (folder, *, limit) -> records; and label, see `labels`
    folder: str  # Below `datasets/` in the clone.
    obtain: str  # Ends the sentence "DIR: no such folder; ..."; DIR stands for the folder.
    licence: str  # Of pictures and annotations, in one line.
    source_of: frozenset[str] = frozenset()  # Collections that its pictures come from, if known.
    labels: str = ""  # What `label` chooses among, where `read` takes it.
    located: bool = True  # Whether it says where something is; else an image without boxes is no
    # image without findings.


def open_dataset(
    name: str, folder: Path, *, limit: int | None = None, label: str = ""
) -> list[Record]:
    """The records of a data set.

    Args:
      name: A row of `DATASETS`.
      folder: Where it lies.
      limit: Number of patients: the first ones.
      label: What alone is to be found, in a set whose annotations have labels; default: all.

    Raises:
      FileNotFoundError: No such folder; says how to get the data.
      ValueError: An unknown name, a label where there are none, or whatever the reader finds wrong.
    """
    row = _row(name)
    if not Path(folder).is_dir() and not zipfile.is_zipfile(folder):
        obtain = row.obtain.replace("DIR", str(folder))
        raise FileNotFoundError(f"{folder}: no such folder; {obtain}")
    if is_prepared(folder):
        return read_prepared(folder, data=name, label=label, limit=limit)
    if label and not row.labels:
        able = ", ".join(name for name, row in DATASETS.items() if row.labels)
        raise ValueError(f"{name} has no labels to choose {label!r} from; {able} have")
    return row.read(Path(folder), limit=limit, **({"label": label} if label else {}))


def check_located(name: str) -> None:
    """Nothing, or a ValueError: a data set that marks nothing is no target for a segmentation."""
    if not _row(name).located:
        raise ValueError(
            f"{name} says what an image shows and not where, so it is no target to learn or "
            f"to score; choose from {', '.join(n for n, row in DATASETS.items() if row.located)}"
        )


def check_names(data: str) -> None:
    """Nothing, or a ValueError that names what is no data set among names with commas."""
    for name in data.split(","):
        _row(name)


def name_sets(data: str, folders: str) -> Sets:
    """Data sets by the names they go by in a run: one has none, as nothing tells it from others.

    Args:
      data: Rows of `DATASETS`, with commas.
      folders: Of each, with commas; of a single one, the folder as it is.

    Raises:
      ValueError: An unknown name, one that marks nothing, not one folder for each, or two sets that
        share pictures, so that a patient could be trained on in one and tested on in the other.
    """
    names = data.split(",")
    for name in names:
        check_located(name)
    if len(names) == 1:
        return {"": (data, Path(folders))}
    paths = [Path(part) for part in folders.split(",")]
    if len(paths) != len(names):
        raise ValueError(
            f"--data-dir {folders}: {len(paths)} folders for the {len(names)} data sets of --data "
            f"{data}; give one for each, with commas"
        )
    sets: dict[str, tuple[str, Path]] = {}
    for name, path in zip(names, paths, strict=True):
        for other, where in sets.values():
            shared = sorted(_row(name).source_of & _row(other).source_of)
            if shared or path.resolve() == where.resolve():
                raise ValueError(
                    f"--data {data}: {other} ({where}) and {name} ({path}) share pictures"
                    f"{' of ' if shared else ''}{', '.join(shared)}, so that a patient could be "
                    "trained on in one and tested on in the other; leave one out"
                )
        again = names[: len(sets)].count(name)
        sets[f"{name}{again + 1}" if again else name] = (name, path)
    return sets


def among(asked: Sets, known: Sets) -> Sets:
    """The sets by the names that they have among `known`; nothing if none of them is there.

    Raises:
      ValueError: Some are there and others are not.
    """
    name_of = {(name, path.resolve()): alias for alias, (name, path) in known.items()}
    keys = [(name, path.resolve()) for name, path in asked.values()]
    held = {
        name_of[key]: pair for key, pair in zip(keys, asked.values(), strict=True) if key in name_of
    }
    if held and len(held) < len(asked):
        there = ", ".join(name for name, _ in held.values())
        raise ValueError(
            f"of the data sets, the run was trained on {there} alone; score them apart"
        )
    return held


def open_sets(sets: Sets, *, limit: int | None = None) -> list[list[Record]]:
    """The records of each data set; where they have names, so have images and patients.

    Raises:
      FileNotFoundError, ValueError: As `open_dataset`.
    """
    opened = []
    for alias, (name, path) in sets.items():
        records = open_dataset(name, path, limit=limit)
        if alias:
            records = [
                replace(r, id=f"{alias}.{r.id}", patient=f"{alias}.{r.patient}", dataset=alias)
                for r in records
            ]
        opened.append(records)
    return opened


def check_apart(train: str, test: str) -> None:
    """Nothing, or a ValueError: two data sets share pictures, so one cannot test the other.

    A set may be tested on itself, where patients are kept apart.
    """
    shared = sorted(_row(train).source_of & _row(test).source_of)
    if train != test and shared:
        raise ValueError(
            f"trained on {train}, tested on {test}: both are made of {', '.join(shared)}, so test "
            f"images may have been trained on; test on {train} itself or on another source"
        )


def _row(name: str) -> Dataset:
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; choose from {', '.join(DATASETS)}")
    return DATASETS[name]


DATASETS: Mapping[str, Dataset] = MappingProxyType(
    {
        "synthetic": Dataset(
            rsna.read_rsna,
            folder="synthetic",
            obtain="write it with `python -m data.synthetic --out DIR`",
            licence="none needed: drawn by the project",
        ),
        "rsna": Dataset(
            rsna.read_rsna,
            folder="rsna",
            obtain=rsna.OBTAIN,
            licence="RSNA's and Kaggle's terms: non-commercial",
            source_of=frozenset({NIH}),
        ),
        "folder": Dataset(
            plain.read_folder,
            folder="folder",
            obtain=plain.OBTAIN,
            licence="your own",
            labels="labels of dataset.json, COCO's categories or the CSV's labels",
        ),
        "cxr_seg": Dataset(
            cxr_seg.read_cxr_seg,
            folder="cxr_seg",
            obtain=cxr_seg.OBTAIN,
            licence="masks CC BY 4.0; each image its own (metadata.csv): many non-commercial or "
            "unstated",
            source_of=frozenset({COVID}),
        ),
        "rsna_like": Dataset(
            rsna.read_rsna,
            folder="rsna_like",
            obtain="it is cxr_seg in RSNA's files, made for tests and not published",
            licence="as cxr_seg",
            source_of=frozenset({COVID}),
        ),
        "nih": Dataset(
            nih.read_nih,
            folder="nih",
            obtain=nih.OBTAIN,
            licence="unrestricted; cite Wang et al. (CVPR 2017) and name the NIH Clinical Center",
            source_of=frozenset({NIH}),
            labels="findings, such as Pneumonia",
        ),
        "brain_yes_no": Dataset(
            brain.read_brain_yes_no,
            folder="brain_yes_no",
            obtain=brain.OBTAIN_YES_NO,
            licence="unclear: local use only",
            source_of=frozenset({"kaggle-navoneel-brain-mri"}),
            located=False,
        ),
        "brain_seg": Dataset(
            brain.read_brain_seg,
            folder="brain_seg",
            obtain=brain.OBTAIN_SEG,
            licence="CC BY 4.0 (figshare's page, unverified)",
            source_of=frozenset({"figshare-brain-tumor"}),
        ),
    }
)

HELP = f"{{{','.join(DATASETS)}}}"
