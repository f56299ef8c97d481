"""The data sets by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from data import brain, cxr_seg, folder, nih, rsna
from data.records import Record

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
    if not Path(folder).is_dir():
        obtain = row.obtain.replace("DIR", str(folder))
        raise FileNotFoundError(f"{folder}: no such folder; {obtain}")
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
            folder.read_folder,
            folder="folder",
            obtain=folder.OBTAIN,
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
