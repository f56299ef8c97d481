"""What the study is asked to do, and what its files are called."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pp_jax.config import check_seed
from pp_jax.sam import VARIANTS

TUNED = (0, 1)  # Folds that filters are chosen on; no difference is claimed from these.
PROMPTS = ("centre", "none")  # The primary ones.
ZERO_SHOT = "zero-shot"
_ANYWHERE = ("jobs", "device", "dry_run")  # What may differ where a study goes on.


@dataclass(frozen=True)
class Study:
    """Ask of your own files whether fine-tuning and filters make SAM better: convert, prepare,
    train, score and report. The same command goes on with what is not done."""

    sam: str = ""
    """File of SAM's weights, such as sam_vit_b_01ec64.pth."""
    rsna: str = ""
    """Folder of the RSNA Pneumonia Detection Challenge, or of files in its layout."""
    masks: str = ""
    """Folder of experts' masks of the same images, `<patientId>.png`, white is marked; without it
    the targets are ellipses in RSNA's boxes, and the report says so."""
    out: str = "runs/study"
    """Folder of all that is made; `report.html` there is the answer."""
    variant: str = ""
    """Which SAM the file holds; default: as its name says."""
    preprocess: str = ""
    """What images the weights were trained on, `sam` or `medsam`; needed for a file that is not an
    official one, neither by its hash nor by its name."""
    limit: int | None = None
    """Use only this many patients."""
    folds: int = 5
    """Of patients; filters are chosen on folds 0 and 1, all else is told from the others."""
    steps: int = 3000
    """Of each training."""
    batch: int = 4
    """Images per step."""
    best: int = 2
    """Filters, of those tried, that go into the study."""
    image_size: int | None = None
    """Longest side that models see; default: the variant's own."""
    embeddings: bool = True
    """Keep each image's embedding on disk for trainings of the decoder: 10 times faster."""
    auto_points: int = 32
    """Points per side of the grid of automatic masks."""
    jobs: int = 1
    """Programs at a time, which share out the cores."""
    device: str = "auto"
    """Where to compute."""
    seed: int = 0
    """Of folds, order, clicks and random weights."""
    dry_run: bool = False
    """Say what would be run, how long it takes and how much it leaves on the disk, and stop."""

    @property
    def folder(self) -> Path:
        """Of all that is made."""
        return Path(self.out)

    @property
    def weights(self) -> Path:
        """Converted."""
        return self.folder / "weights"

    @property
    def data(self) -> Path:
        """Prepared."""
        return self.folder / "data"

    @property
    def source(self) -> Path:
        """What is prepared: the user's folder, or one of links to it and to the masks."""
        return self.folder / "rsna" if self.masks else Path(self.rsna)

    @property
    def target(self) -> str:
        """A row of `data.targets.TARGETS`."""
        return "mask" if self.masks else "ellipse"

    @property
    def reported(self) -> tuple[int, ...]:
        """The folds that figures are reported of."""
        return tuple(range(len(TUNED), self.folds))

    def run(self, name: str, fold: int) -> Path:
        """The folder of one training."""
        return self.folder / "runs" / name / f"fold{fold}"

    def report(self, name: str) -> Path:
        """The folder of one report of eval.py."""
        return self.folder / "reports" / name


def resolve(study: Study) -> Study:
    """The study with the variant filled in.

    Raises:
      ValueError: A file or folder that is missing or not named, or a number outside its range.
    """
    usage = "make study SAM=sam_vit_b_01ec64.pth RSNA=DIR [MASKS=DIR]"
    if not study.sam or not study.rsna:
        flag = "--rsna" if study.sam else "--sam"
        raise ValueError(f"{flag} is missing: name the file or folder, as in `{usage}`")
    if not Path(study.sam).is_file():
        raise ValueError(
            f"--sam {study.sam}: no such file; download sam_vit_b_01ec64.pth, or give the path of "
            "another file of SAM's weights"
        )
    if not Path(study.rsna).exists():
        raise ValueError(
            f"--rsna {study.rsna}: no such folder; download it with `kaggle competitions download "
            "-c rsna-pneumonia-detection-challenge`"
        )
    if study.masks and not any(Path(study.masks).glob("*.png")):
        raise ValueError(
            f"--masks {study.masks}: no folder with <patientId>.png; leave --masks out to take "
            "ellipses in RSNA's boxes as targets"
        )
    _check_numbers(study)
    return dataclasses.replace(study, variant=_variant_of(study))


def _check_numbers(study: Study) -> None:
    for name in ("limit", "steps", "batch", "best", "image_size", "jobs", "auto_points"):
        value = getattr(study, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if study.folds <= len(TUNED):
        raise ValueError(
            f"--folds {study.folds}: two are for the choice of filters; give at least 3"
        )
    check_seed(study.seed)


def _variant_of(study: Study) -> str:
    """The variant that the file's name tells of, unless the user told.

    Raises:
      ValueError: Neither does.
    """
    if study.variant:
        if study.variant not in VARIANTS:
            raise ValueError(f"--variant {study.variant}: choose one of {', '.join(VARIANTS)}")
        return study.variant
    named = [name for name in VARIANTS if re.search(name, Path(study.sam).name)]
    if len(named) != 1:
        raise ValueError(
            f"--sam {study.sam}: the name does not tell which SAM it is; give --variant, one of "
            f"{', '.join(VARIANTS)}"
        )
    return named[0]


def check_patients(study: Study, patients: int) -> None:
    """Nothing, when so many patients fill the folds and leave some to train and validate on.

    Raises:
      ValueError: They do not.
    """
    if patients < study.folds + 1:
        raise ValueError(
            f"{patients} patients for {study.folds} folds: give at least {study.folds + 1} by "
            f"--limit, or --folds {max(3, patients - 1)} for a trial"
        )


def identity(study: Study) -> dict[str, Any]:
    """What makes two studies different ones."""
    held = dataclasses.asdict(study)
    return {name: value for name, value in held.items() if name not in _ANYWHERE}


def require_same(study: Study, held: dict[str, Any]) -> None:
    """Nothing, when what lies in the folder is the study that is asked for.

    Raises:
      ValueError: It was made with other settings; names them.
    """
    asked = identity(study)
    changed = [
        f"--{name.replace('_', '-')} {held.get(name)} -> {value}"
        for name, value in asked.items()
        if held.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"--out {study.out}: holds a study with other settings ({', '.join(changed)}); give "
            "another --out, or the old settings to go on"
        )
