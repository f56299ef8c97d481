"""Every choice of an evaluation, as a frozen dataclass of plain values.

The front shows these docstrings in `--help`.
"""

import dataclasses
from dataclasses import dataclass

from pp_jax.config import TrainConfig, check_seed, target_name
from pp_jax.look import SAFE, Look, name_of


@dataclass(frozen=True)
class EvalConfig:
    """Score runs or converted weights beside guesses that see no pixel, and write a report."""

    checkpoint: tuple[str, ...] = ()
    """A run of train.py (its best step by validation), one of its steps (`RUN/steps/00000120`), the
    folder of its folds, or a converted checkpoint; default: the run of `python train.py`. Several,
    such as `runs/X/fold*`, are one model whose logits are their mean: name those that were
    fine-tuned from the same weights. All of them lie on the device at once."""
    methods: tuple[str, ...] = ()
    """Instead of one checkpoint, all that is compared: `FOLDER`, or `NAME=FOLDER`, or
    `NAME=FOLDER+FOLDER` for a run of several seeds; in the same quotes what it is shown and how its
    masks are refined, `'NAME=FOLDER filter=clahe refine=fill_holes'`. Beside them stand those that
    are named of the following, refined if `'otsu refine=fill_holes'` says so, or else all but those
    marked `by name`:"""
    data: str = ""
    """Data set, or several with commas; default: the run's."""
    data_dir: str = ""
    """Its folder, or as many with commas; default: the run's, or datasets/DATA."""
    target: str = "mask"
    """What is scored against, whatever the run was trained on: `mask`, the outline where it is
    known and the filled box elsewhere; or made of the box everywhere, and then no true outline."""
    out: str = ""
    """Folder of the report; default: RUN/eval-DATA-PROMPT-PART, or WEIGHTS-eval-..., or of several
    models runs/NAME,NAME-eval-..., or of several checkpoints ensemble-NAME,NAME-eval-... beside
    them; a filter other than the run's is in the name."""
    prompt: str = ""
    """How findings are marked, several with commas, or `all`; default: as in the run's training."""
    prompts: str = ""
    """A prompts.json of another report: its marks are used again, instead of drawing new ones."""
    part: str = "test"
    """Which part of the run's own split. On other data everything is test."""
    recipe: str = ""
    """A name for a filter, a fusion and a weight that go together."""
    filter: str = ""
    """Default: the run's, or none."""
    fusion: str = ""
    """Default: the run's, or replace."""
    blend: float | None = None
    """Default: the run's, or 0.5."""
    roi: str = ""
    """What is cut out of the image before it is scaled: `content`, or `box-context:SCALE` around
    each box; default: the run's, or none."""
    image_size: int | None = None
    """Default: the run's, or the variant's own."""
    primary: str = ""
    """The primary endpoint, METRIC@PROTOCOL, stored before the first image is read; default: dice
    under the first protocol."""
    margin: float = 0.02
    """Difference below which two methods are called equivalent."""
    confidence: str = "stability,jitter"
    """Which scores of confidence to compute, with commas: `tta` and `filters` encode each image
    anew for each view."""
    by: str = "view,sex,age,class,size"
    """Strata to report, with commas."""
    auto_points: int = 32
    """Points per side of the grid of the protocol `auto`."""
    kaggle_submission: str = ""
    """A CSV to write in the format of RSNA's challenge; with a protocol that tells no truth."""
    limit: int | None = None
    """Use only this many patients of the part."""
    pictures: int = 12
    """Overlays to draw: the worst, the median and the best images."""
    samples: int = 10_000
    """Bootstrap resamples."""
    dtype: str = "float32"
    """Of the image encoder's compute."""
    attention: str = "auto"
    """The program of the image encoder's attention; auto: the one for the device."""
    device: str = "auto"
    """Where to compute."""
    seed: int = 0
    """Of the prompts and of the intervals."""


def resolve_eval(
    settings: EvalConfig,
    *,
    folder: str,
    run: TrainConfig | None,
    trained: Look,
    shown: Look,
    several: str = "",
    report_in: str = "",
) -> EvalConfig:
    """The config with every default filled in that follows from the first model.

    What each model is shown is not the config's to say: it stands with the models.

    Args:
      settings: What the user said.
      folder: Of the first model.
      run: The first model's, or its first fold's; None: converted weights.
      trained: What the first model was trained on.
      shown: What it is shown now.
      several: A name for all models together, if there are more.
      report_in: What stands before the report's default name; default: as follows from the folder.

    Raises:
      ValueError: A number outside its range.
    """
    for name in ("limit", "auto_points", "image_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if settings.samples < 100:
        raise ValueError(f"--samples {settings.samples}: an interval needs at least 100")
    if not 0 < settings.margin < 1:
        raise ValueError(f"--margin {settings.margin}: must lie between 0 and 1")
    if settings.pictures < 0:
        raise ValueError(f"--pictures {settings.pictures}: must be 0 or more")
    check_seed(settings.seed)
    told = run if run is not None else TrainConfig()
    data = settings.data or told.data
    # A run that was shown several kinds of prompt is asked for the one that tells least.
    usual = told.prompting if told.prompting not in ("mixed", "iterative") else "point"
    usual = usual.replace("+", ",")
    prompt = settings.prompt or usual
    other_look = () if shown == trained else name_of(shown)
    parts = ["eval", data.translate(SAFE), prompt.translate(SAFE), *other_look]
    report = "-".join([*parts, *target_name(settings.target), settings.part])
    # Converted weights are a checkpoint themselves: a file more in their folder and none verifies.
    beside = report_in or (f"{folder}/" if run is not None else f"{folder}-")
    default = f"runs/{several.translate(SAFE)}-{report}" if several else f"{beside}{report}"
    return dataclasses.replace(
        settings,
        checkpoint=() if settings.methods else settings.checkpoint or (folder,),
        data=data,
        data_dir=settings.data_dir or _folders_of_run(data, told),
        prompt=prompt,
        out=settings.out or default,
    )


def _folders_of_run(data: str, run: TrainConfig) -> str:
    """Where data sets lie: where the run found them, if it was trained on them."""
    if data == run.data and run.data_dir:
        return run.data_dir
    known = dict(zip(run.data.split(","), run.data_dir.split(","), strict=False))
    return ",".join(known.get(name) or f"datasets/{name}" for name in data.split(","))
