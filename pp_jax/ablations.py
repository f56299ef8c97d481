"""Grids of trainings that answer one question: `python train.py --ablation NAME`."""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from pp_jax import config, ranges
from pp_jax.config import TrainConfig
from pp_jax.look import SAFE

NONE = "none"  # The filter that all others are compared with.
BLIND = "blind"  # The model of that name in the report: the twin of the first cell.


@dataclass(frozen=True)
class AblationConfig(TrainConfig):
    """Train a grid of filters, fusions and policies, each with several seeds on all folds, and
    compare it. The same command goes on with what is not done.

    What is not said here is as for a single training, `python train.py --help`, and is the same in
    all of the grid.
    """

    filters: tuple[str, ...] = ()
    """Filters to compare, the first is what the others are compared with; default: the ablation's
    own."""
    fusions: tuple[str, ...] = ()
    """Fusions, each with each filter but `none`; default: the ablation's own."""
    policies: tuple[str, ...] = ()
    """What is trained, as `--trainable`; default: the ablation's own."""
    seeds: int | None = None
    """Trainings of each cell of the grid, with `--seed` and the numbers after it; default: the
    ablation's own."""
    before_steps: int | None = None
    """Steps of the training on phantoms that each starts from; default: the ablation's own."""
    scored_under: str = "centre,none"
    """Prompts to compare under, as eval.py's `--prompt`; all of them are primary."""
    jobs: int | None = None
    """Trainings at a time, which share out the cores; default: one a core for `tiny` on the CPU,
    else 1."""


class Ablation(NamedTuple):
    """A row of `ABLATIONS`."""

    question: str
    help: str
    flags: Mapping[str, Any]  # Fields of AblationConfig, of all its trainings.
    filters: tuple[str, ...]
    fusions: tuple[str, ...] = ("channels",)
    policies: tuple[str, ...] = ("",)  # The variant's own.
    tiny: Mapping[str, Any] = MappingProxyType({})  # More flags, where that is the variant.
    before: Mapping[str, Any] = MappingProxyType({})  # And those of what it starts from.
    needs: str = ""  # Command of Python that makes the data of that.
    trains: bool = True


class Cell(NamedTuple):
    """One way to train, and what it is called."""

    name: str
    look: str  # What filter and fusion are called: cells of one policy or another share it.
    filter: str
    fusion: str
    policy: str


def flags_of(name: str, *, variant: str) -> dict[str, Any]:
    """What stands in place of the defaults of AblationConfig."""
    row = ABLATIONS[name]
    return {**row.flags, **(row.tiny if variant == "tiny" else {})}


def about(rows: Mapping[str, Ablation]) -> str:
    """The ablations as `--help` shows them."""
    return "; ".join(f"{name}: {row.help}" for name, row in rows.items())


def check(name: str) -> None:
    """Nothing, or a ValueError that names the ablations there are."""
    if name not in ABLATIONS:
        raise ValueError(f"--ablation {name}: choose one of {', '.join(ABLATIONS)}")


def resolve(asked: AblationConfig) -> AblationConfig:
    """The config with its folder.

    Raises:
      ValueError: A flag beside the grid that the grid sets, or a number below 1.
    """
    for name, instead in _SET_BY_GRID.items():
        value = getattr(asked, name)
        if value != getattr(TrainConfig, name):
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {value} with --ablation: {instead}")
    for name in ("seeds", "before_steps", "jobs"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if not asked.folds:
        raise ValueError("--ablation compares what folds were kept for: give --folds 2 or more")
    row = ABLATIONS[asked.ablation]
    for name in ("policies", "seeds") if not row.trains else ():
        if getattr(asked, name):
            raise ValueError(f"--{name} with --ablation {asked.ablation}: it trains nothing")
    out = asked.out or f"runs/ablation-{asked.ablation}-{asked.data}".translate(SAFE)
    for flag, folder in (("out", out), ("checkpoint", asked.checkpoint), ("init", asked.init)):
        # So names of models and folders stand side by side in `eval.py --methods`.
        if set(folder) & set(" +"):
            raise ValueError(f"--{flag} {folder!r}: no spaces and no '+' here; choose another name")
    return dataclasses.replace(asked, out=out.rstrip("/"))


def cells(asked: AblationConfig) -> list[Cell]:
    """The grid, with `none` once for all fusions.

    Raises:
      ValueError: A single cell, or one that is there twice.
    """
    row = ABLATIONS[asked.ablation]
    filters = asked.filters or row.filters
    fusions, policies = asked.fusions or row.fusions, asked.policies or row.policies
    found: dict[tuple[str, str, str], Cell] = {}
    twice = 0
    for policy, fusion, name in itertools.product(policies, fusions, filters):
        shown = _shown(name, fusion)
        several = len(fusions) > 1 and name != NONE
        look = "-".join([name, fusion] if several else [name]).replace(">", "-then-")
        look = look.translate(SAFE)
        cell = Cell(f"{look}-{policy}" if len(policies) > 1 else look, look, *shown, policy)
        twice += name != NONE and (*shown, policy) in found
        found.setdefault((*shown, policy), cell)
    if twice or len(set(filters)) < len(filters) or len(found) < 2:
        raise ValueError(
            f"--filters {' '.join(filters)}: a comparison needs two cells or more, each once; name "
            "other filters, --fusions or --policies"
        )
    return list(found.values())


def _shown(name: str, fusion: str) -> tuple[str, str]:
    """Filter and fusion of a cell; beside a single response, `channels` shows the image twice."""
    if name == NONE:
        return NONE, "replace"
    if fusion == "channels" and "," not in name:
        return f"{NONE},{name}", fusion
    return name, fusion


def pairs_of(asked: AblationConfig) -> dict[str, str]:
    """What each cell but the first is compared with, by names.

    A filter is compared with the first filter under the same policy, and a policy with the first.
    """
    first, *others = cells(asked)
    same_look = {cell.policy: cell.name for cell in cells(asked) if cell.look == first.look}
    return {
        cell.name: first.name if cell.look == first.look else same_look[cell.policy]
        for cell in others
    }


def seeds_of(asked: AblationConfig) -> range:
    """The seed of each training of a cell."""
    return range(asked.seed, asked.seed + (asked.seeds or 1))


def begins_anew(asked: AblationConfig) -> bool:
    """Whether each cell first trains on phantoms: there are no weights to start from."""
    if asked.variant != "tiny" or asked.init != "checkpoint" or asked.checkpoint:
        return False
    return bool(ABLATIONS[asked.ablation].before)


def before_of(asked: AblationConfig, cell: Cell, seed: int) -> TrainConfig:
    """The training that a cell's folds start from, and those of its other policies.

    Raises:
      ValueError: As `config.resolve`.
    """
    row = ABLATIONS[asked.ablation]
    steps = {} if asked.before_steps is None else {"steps": asked.before_steps}
    own = {"out": f"{asked.out}/before/{cell.look}/seed{seed}", "folds": None, "fold": None}
    return _of_cell(asked, cell._replace(policy=""), seed, {**row.before, **steps, **own})


def run_of(asked: AblationConfig, cell: Cell, seed: int) -> TrainConfig:
    """The trainings of a cell with one seed, on all folds together.

    Raises:
      ValueError: As `config.resolve`.
    """
    own = {"out": f"{asked.out}/{cell.name}/seed{seed}"}
    if begins_anew(asked):
        own["init"] = before_of(asked, cell, seed).out
    return _of_cell(asked, cell, seed, own)


def twin_of(asked: AblationConfig, run: TrainConfig) -> TrainConfig:
    """The same trainings, from the same weights, of a model that is shown nothing."""
    return dataclasses.replace(config.blind_twin(run), out=f"{asked.out}/{BLIND}/seed{run.seed}")


def _of_cell(asked: AblationConfig, cell: Cell, seed: int, own: Mapping[str, Any]) -> TrainConfig:
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    told = {name: getattr(asked, name) for name in names if name not in ("ablation", "dry_run")}
    look = {"filter": cell.filter, "fusion": cell.fusion, "seed": seed}
    if cell.policy:
        look["trainable"] = cell.policy
    return config.resolve(ranges.drop_idle(TrainConfig(**{**told, **look, **own})))


_SET_BY_GRID: Mapping[str, str] = MappingProxyType(
    {
        "filter": "name it among --filters",
        "fusion": "name it among --fusions",
        "trainable": "name it among --policies",
        "recipe": "name its filter among --filters, its fusion among --fusions",
        "blind": "the twin of the first cell is trained unasked; leave it out",
        "fold": "all folds are trained; leave it out",
        "train_on": "what is compared are folds; leave it out",
        "resume": "the same command goes on; leave it out",
        "plan": "plan one training by itself; leave --ablation out",
        "distributed": "jobs of a grid run side by side, each by itself; leave it out",
    }
)


_COMMON = MappingProxyType(
    {
        "data": "cxr_seg",
        "prompting": "centre+none",
        "max_objects": 2,
        "validation": 0.05,
        "pictures_every": 0,
        "tensorboard": False,
        "folds": 5,
        "seeds": 2,
    }
)
# Chosen with the filter `none` on folds 0 and 1.
_TINY = MappingProxyType(
    {
        "batch": 4,
        "augment": "flip>rotate:15>scale:0.2>translate:0.1>elastic>shift:30>contrast:0.3"
        ">gamma:0.3>noise:8>cutout:0.2",
        "lr": 3e-4,
        "dice": 5.0,
        "best_mask": "highest-iou",
        "steps": 80,
        "save_every": 80,
    }
)
_PHANTOMS = MappingProxyType(
    {
        "data": "synthetic",
        "data_dir": "datasets/phantoms",
        "augment": "strong",
        "lr": 6e-4,
        "dice": 1.0,
        "best_mask": "lowest-loss",
        "steps": 700,
        "save_every": 350,
        "test": 0.01,
    }
)
_MAKE_PHANTOMS = "-m data.synthetic --out datasets/phantoms --images 1500 --side 320 --seed 5"

ABLATIONS: Mapping[str, Ablation] = MappingProxyType(
    {
        "filters": Ablation(
            "Does a filter's response beside the image help?",
            "which filter's response beside the image helps (60 trainings, and 10 blind twins)",
            _COMMON,
            filters=(NONE, "sobel", "canny", "log", "clahe", "musica"),
            tiny=_TINY,
            before=_PHANTOMS,
            needs=_MAKE_PHANTOMS,
        ),
        "fusions": Ablation(
            "How is a filter's response best shown?",
            "ways to show a filter's response",
            _COMMON,
            filters=(NONE, "sobel", "clahe"),
            fusions=("replace", "blend", "channels", "add-edges"),
            tiny=_TINY,
            before=_PHANTOMS,
            needs=_MAKE_PHANTOMS,
        ),
        "policies": Ablation(
            "How much of the model is to be trained, and does that change what edges are worth?",
            "how much of the model is trained, with and without edges",
            _COMMON,
            filters=(NONE, "sobel"),
            policies=("decoder", "lora", "full"),
            tiny=_TINY,
            before=_PHANTOMS,
            needs=_MAKE_PHANTOMS,
        ),
        "zero-shot-filters": Ablation(
            "What do filters do to weights as they are?",
            "what filters do to weights as they are, without training (`--checkpoint FOLDER`)",
            MappingProxyType({"folds": 5, "data": "cxr_seg"}),
            filters=(NONE, "sobel", "canny", "log", "clahe", "musica"),
            fusions=("replace", "blend"),
            trains=False,
        ),
    }
)
