"""Every choice of a run, as a frozen dataclass of plain values.

A run is reproduced from its saved config and seed. The front shows these docstrings in `--help`.
"""

import dataclasses
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pp_jax import ranges
from pp_jax.look import RECIPES, SAFE, Look, check_blend, name_of

DTYPES = ("float32", "bfloat16")  # Of the image encoder's compute.
LOSS_WEIGHTS = ranges.LOSS_WEIGHTS


@dataclass(frozen=True)
class TrainConfig:
    """Fine-tune SAM on images with findings. Without any flag: `tiny` on the embedded data set."""

    variant: str = "tiny"
    """Which SAM, or which network beside it. `tiny` and the networks start from random weights; the
    others need converted ones. A network is trained without a prompt, or on boxes."""
    checkpoint: str = ""
    """Converted weights to start from; default: checkpoints/VARIANT (none for `tiny`)."""
    image_size: int | None = None
    """Longest side that SAM sees, a multiple of 16; default: the variant's own."""
    preprocess: str = ""
    """How images are prepared, `sam` or `medsam`; default: as the checkpoint says."""
    init: str = "checkpoint"
    """What a new training starts from: `checkpoint`, `random` weights, or the folder of a run (its
    weights alone: steps, moments and schedule begin anew) or of converted weights."""
    resume: str = ""
    """Go on with the run in this folder, with its own settings and schedule; no flag beside it that
    would make it another run."""
    ablation: str = ""
    """Train a grid of runs and compare them; `--ablation NAME --help` says more."""
    preset: str = ""
    """A name for the flags of a whole recipe; flags given beside it count more."""
    data: str = "synthetic"
    """Data set, or several with commas, each of which is split by itself."""
    data_dir: str = ""
    """Its folder, or as many with commas; default: datasets/DATA."""
    mix: str = ""
    """Shares of several data sets in the training, such as `2,1`; default: every image is shown as
    often as any other."""
    balance: bool = False
    """Show as many images with a finding as without, in turns; with `--prompting none`."""
    target: str = "mask"
    """What a finding's pixels are: `mask`, the outline where it is known and the filled box
    elsewhere; or made of its box everywhere: the box, its ellipse, or a pseudo-mask within it."""
    out: str = ""
    """Folder of the run; default: runs/VARIANT-DATA-PROMPTING-FILTER."""
    trainable: str = ""
    """What is trained; default: `full` for tiny, `decoder` for the others."""
    last_blocks: int = 4
    """Blocks of the image encoder that `--trainable last-k` trains, beside its neck and the
    decoder."""
    lora_rank: int = 8
    """Rank of the pairs of `--trainable lora`."""
    lora_alpha: float = 16.0
    """A pair's product is multiplied by this over the rank."""
    lora_on: str = "q,v"
    """Projections of each block that have a pair: any of q, k, v, proj, lin1, lin2."""
    prompting: str = "box"
    """What marks each finding: its box (jittered), one click in it, either of them (mixed), either
    and then clicks on the errors (iterative), or nothing."""
    rounds: int = 11
    """Of `--prompting iterative`: a first prompt, then clicks, two rounds of them without one."""
    recipe: str = ""
    """A name for a filter, a fusion and a weight that go together."""
    filter: str = "none"
    """What is shown to SAM instead of, or fused with, the image."""
    fusion: str = "replace"
    """How the filter's response and the image become SAM's three channels."""
    blend: float = 0.5
    """Weight of the response with the fusions `blend` and `add-edges`, in [0, 1]."""
    blind: bool = False
    """Train the blind twin of what the other flags say: mid-grey is shown in place of any image, so
    that it can learn the prompts and nothing else."""
    roi: str = "none"
    """What is cut out of the image before it is scaled: `content` is the largest region that is not
    black."""
    augment: str = "none"
    """How training images, with their findings, are changed at random in every step."""
    embeddings: str = ""
    """Compute each image's embedding once, with the encoder that is not trained, keep it on disk in
    this type, and train from there; runs on the same images and filter share them."""
    cache_dir: str = "datasets/embeddings"
    """Where embeddings are kept; 2 MiB an image in bfloat16, 4 in float32."""
    epochs: int | None = None
    """Length of the training in epochs; default: that of the variant."""
    steps: int | None = None
    """Length in optimizer steps, instead of epochs."""
    batch: int | None = None
    """Images per step over all devices; default: that of the variant."""
    max_objects: int = 4
    """Findings per image that are prompted in one step; of more, the largest."""
    accumulate: int = 1
    """Parts that each batch is computed in, one after the other: less memory, the same gradient."""
    optimizer: str = "adamw"
    """Optimizer."""
    schedule: str = "cosine"
    """Course of the learning rate after the warm-up."""
    lr: float | None = None
    """Peak learning rate; default: that of the variant."""
    warmup: int | None = None
    """Steps of linear warm-up; default: 250 as in the paper, at most a tenth of the training."""
    lr_scale: str = ""
    """Factors of the learning rate of parts of the model, such as
    `image_encoder=0.1,mask_decoder=1`."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block of the image encoder to the one before it; the
    paper's is 0.8 for ViT-H and L, 0.6 for B."""
    weight_decay: float | None = None
    """Of kernels only; default: that of the optimizer."""
    clip: float = 1.0
    """Largest global norm of the gradient; 0 for none."""
    focal: float = 20.0
    """Weight of the focal loss."""
    dice: float = 1.0
    """Weight of the Dice loss."""
    iou: float = 1.0
    """Weight of the squared error of the predicted IoU."""
    bce: float = 0.0
    """Weight of the binary cross-entropy."""
    boundary: float = 0.0
    """Weight of the boundary loss."""
    projection: float = 0.0
    """Weight of the loss that compares a mask's extent along both axes with its box's."""
    affinity: float = 0.0
    """Weight of the loss that asks similar neighbouring pixels for the same answer; with
    `--projection` and without the other three, a training from boxes."""
    best_mask: str = "lowest-loss"
    """Which of the three masks takes the gradient."""
    dtype: str = "float32"
    """Of the image encoder's compute; parameters, decoder and losses are float32."""
    attention: str = "auto"
    """The program of the image encoder's attention; auto: the one for the device."""
    remat: bool = False
    """Recompute encoder blocks in the backward pass: less memory, a third slower."""
    scan_blocks: bool = False
    """Compile equal encoder blocks once, as a loop: a shorter compilation."""
    mesh: str = ""
    """How devices are laid out, such as `data=2,fsdp=4,tensor=1`: copies of the model, parts of its
    parameters, parts of its heads and layers; default: all of them copies."""
    distributed: bool = False
    """Compute with the other processes of a cluster, each started by the same command."""
    plan: str = ""
    """Compile the step for devices that are not there, `cpu:8` or `tpu:v5e:4x4`, say what it takes
    of each, and stop."""
    limit: int | None = None
    """Use only this many patients."""
    validation: float = 0.1
    """Share of patients to validate on."""
    test: float = 0.2
    """Share of patients kept for eval.py."""
    folds: int | None = None
    """Cross-validation: so many runs in OUT/fold0, OUT/fold1, ..., each of which keeps another part
    of the patients for eval.py; the same command goes on with those that are not done."""
    fold: int | None = None
    """Train this one of the folds only."""
    train_on: str = ""
    """Train and validate on the images with one of these values, and keep all others for eval.py,
    such as `finding=COVID-19,SARS`."""
    save_every: int | None = None
    """Steps between checkpoints and validations; default: an epoch, at least 50."""
    keep: int = 2
    """Checkpoints kept, beside the best by validation."""
    patience: int | None = None
    """Stop after so many validations without a better Dice; default: never."""
    pictures_every: int | None = None
    """Steps between pictures of predictions; default: with every validation; 0: never."""
    tensorboard: bool = True
    """Write scalars for TensorBoard into the run's folder."""
    wandb: str = ""
    """Also log to this project of Weights & Biases, if it is installed."""
    workers: int = 0
    """Processes that read images; 0: threads of this one."""
    device: str = "auto"
    """Where to compute."""
    seed: int = 0
    """Of the split, the order, the prompts and random weights."""
    force: bool = False
    """Move an old run with other settings aside, instead of refusing."""
    dry_run: bool = False
    """Say what would be done and about how long it takes, and stop; nothing is written."""


# Networks that read an image, and a box at most. Their table is `pp_jax.baselines.segmenter`'s.
SEGMENTERS = ranges.SEGMENTERS
_NETWORK = MappingProxyType({"trainable": "full", "batch": 8, "lr": 3e-4, "epochs": 24})

# What a variant means where the user says nothing.
DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "tiny": MappingProxyType({"trainable": "full", "batch": 8, "lr": 1e-3, "epochs": 24}),
        "vit_b": MappingProxyType({"trainable": "decoder", "batch": 1, "lr": 1e-4, "epochs": 20}),
        "vit_l": MappingProxyType({"trainable": "decoder", "batch": 1, "lr": 1e-4, "epochs": 20}),
        "vit_h": MappingProxyType({"trainable": "decoder", "batch": 1, "lr": 1e-4, "epochs": 20}),
        **dict.fromkeys(SEGMENTERS, _NETWORK),
    }
)

# Flags that change where or how a run is computed, not what it computes.
_NOT_THE_RUN = frozenset(
    {
        "out",
        "device",
        "force",
        "dry_run",
        "workers",
        "keep",
        "cache_dir",
        "resume",
        "ablation",
        "preset",
        "plan",
        "mesh",
        "distributed",
        "scan_blocks",
        "remat",
        "pictures_every",
        "tensorboard",
        "wandb",
    }
)


def resolve(config: TrainConfig) -> TrainConfig:
    """The config with every default filled in that depends on other choices.

    Raises:
      ValueError: Values outside their range, or `--steps` beside `--epochs`; names the value.
    """
    config = _with_recipe(_with_init(config))
    if config.blind:
        config = _blinded(config)
    preset = dict(DEFAULTS[config.variant])
    if config.steps is not None:
        if config.epochs is not None:
            raise ValueError(
                f"--steps {config.steps} and --epochs {config.epochs}: give one of them"
            )
        del preset["epochs"]
    fills = {k: v for k, v in preset.items() if getattr(config, k) in (None, "")}
    official = config.variant != "tiny" and config.variant not in SEGMENTERS
    if official and config.init == "checkpoint" and not config.checkpoint:
        fills["checkpoint"] = f"checkpoints/{config.variant}"
    if not config.data_dir:
        fills["data_dir"] = _folders(config.data)
    if not config.out:
        fills["out"] = f"runs/{_run_name(config)}"
    config = dataclasses.replace(config, **fills)
    ranges.check(config)
    weights_of(config)
    check_blend(config.blend)
    check_seed(config.seed)
    return config


def weights_of_losses(config: TrainConfig) -> dict[str, float]:
    """The weight of each loss, and of the error of the predicted IoU, which a network has not."""
    weights = {name: getattr(config, name) for name in LOSS_WEIGHTS}
    return weights | {"iou": 0.0 if config.variant in SEGMENTERS else config.iou}


def weights_of(config: TrainConfig) -> tuple[int, ...]:
    """The shares of the data sets in the training; empty where none were given.

    Raises:
      ValueError: Not a whole number from 1 to 1000 for each data set.
    """
    if not config.mix:
        return ()
    told, count = config.mix.split(","), len(config.data.split(","))
    weights = tuple(int(part) for part in told if part.isascii() and part.isdigit())
    if not len(told) == len(weights) == count or not all(1 <= w <= _LARGEST for w in weights):
        raise ValueError(
            f"--mix {config.mix}: give a whole number from 1 to {_LARGEST} for each of the {count} "
            f"data sets of --data {config.data}, with commas"
        )
    return weights


_LARGEST = 1000


def _folders(data: str) -> str:
    """Where data sets lie by default."""
    return ",".join(f"datasets/{name}" for name in data.split(","))


def _run_name(config: TrainConfig) -> str:
    """The name that tells a run by its kind; lengths and rates are left to `differences`."""
    parts = [config.variant, config.data, config.prompting, *name_of(look_of(config))]
    if config.augment != "none":
        parts.append(config.augment)
    parts += target_name(config.target)
    if config.mix:
        parts.append(f"mix_{config.mix}")
    if config.balance:
        parts.append("balanced")
    if config.trainable not in ("", DEFAULTS[config.variant]["trainable"]):
        parts.append(config.trainable)
    if config.embeddings:
        parts.append(f"embedded_{config.embeddings}")
    if config.train_on:
        parts.append(re.sub(r"[^\w.,-]", "_", f"train_on_{config.train_on}"))
    if config.folds:
        parts.append(f"folds{config.folds}")
    if config.seed:
        parts.append(f"seed{config.seed}")
    return "-".join(part.translate(SAFE) for part in parts)


def fold_of(config: TrainConfig, fold: int) -> TrainConfig:
    """The run of one fold of a resolved config."""
    return dataclasses.replace(config, fold=fold, out=f"{config.out}/fold{fold}")


def blind_twin(config: TrainConfig) -> TrainConfig:
    """The same training of a model that is shown mid-grey in place of any image.

    It is a run of its own, in the default folder for one if `config` has the default folder, or
    else in a folder beside it whose name ends in `-blind`.

    Args:
      config: Resolved, or a run's; of a fold, the twin is that fold of the twin.
    """
    twin = _blinded(config)
    below = f"/fold{config.fold}" if config.fold is not None else ""
    out = config.out.removesuffix(below)
    named = out == f"runs/{_run_name(config)}"
    out = f"runs/{_run_name(twin)}" if named else f"{out}-blind"
    return dataclasses.replace(twin, out=out + below)


def twin_command(config: TrainConfig) -> str:
    """What to type for the blind twin of a run; empty where no loss is left that it could learn."""
    twin = blind_twin(config)
    return command(twin) if ranges.learns(twin) else ""


def command(config: TrainConfig) -> str:
    """What to type for a run: the flags that differ from the defaults.

    Raises:
      ValueError: As `resolve`.

    Examples:
      >>> command(TrainConfig(filter="clahe>sobel", fusion="blend", steps=50))
      "python train.py --filter 'clahe>sobel' --fusion blend --steps 50"
    """
    # A preset's flags are told one by one: beside its name, one set back to the default is lost.
    told = dataclasses.replace(config, force=False, dry_run=False, preset="", resume="", plan="")
    plain = TrainConfig(variant=told.variant)
    if told.fold is not None:
        told = dataclasses.replace(told, out=told.out.removesuffix(f"/fold{told.fold}"))
    # What follows from the other flags need not be said.
    for name in ("out", "data_dir", "checkpoint", "trainable", "batch", "lr", "epochs"):
        bare = dataclasses.replace(told, **{name: getattr(plain, name)})
        if getattr(resolve(bare), name) == getattr(told, name):
            told = bare
    words = ["python", "train.py"]
    for field in dataclasses.fields(told):
        value = getattr(told, field.name)
        flag = field.name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)


def _blinded(config: TrainConfig) -> TrainConfig:
    """In a single grey a learned fusion has nothing to learn, the affinity loss nothing to read."""
    return dataclasses.replace(
        config,
        blind=False,
        recipe="",
        filter="blank",
        fusion="replace",
        blend=TrainConfig.blend,
        affinity=0.0,
    )


def _with_init(config: TrainConfig) -> TrainConfig:
    """The folder that `--init` names stands under `checkpoint`, as from `--checkpoint`."""
    if config.init in ("checkpoint", "random"):
        if config.init == "random" and config.checkpoint:
            raise ValueError(
                f"--init random and --checkpoint {config.checkpoint}: each says what to start "
                "from; give one of them"
            )
        return config
    if config.checkpoint not in ("", config.init):
        raise ValueError(
            f"--init {config.init} and --checkpoint {config.checkpoint}: each says what to start "
            "from; give one of them"
        )
    return dataclasses.replace(config, init="checkpoint", checkpoint=config.init.rstrip("/"))


def _with_recipe(config: TrainConfig) -> TrainConfig:
    """The config with the recipe's choices in place of its name: a run is what it is shown."""
    if not config.recipe:
        return config
    plain = TrainConfig()
    told = [name for name in ("filter", "fusion", "blend") if _differs(config, plain, name)]
    if told:
        raise ValueError(
            f"--recipe {config.recipe} chooses the {', '.join(told)} itself: leave out "
            f"{' and '.join('--' + name for name in told)}"
        )
    return dataclasses.replace(config, recipe="", **RECIPES[config.recipe])


def _differs(one: Any, other: Any, name: str) -> bool:
    return getattr(one, name) != getattr(other, name)


def look_of(config: TrainConfig) -> Look:
    """What SAM is shown in a training."""
    return Look(config.filter, config.fusion, config.blend, config.roi, config.preprocess or "sam")


def target_name(target: str) -> list[str]:
    """The target in parts of a folder's name: nothing for the usual one."""
    return [] if target == "mask" else [f"on_{target}"]


def check_seed(seed: int) -> None:
    """Nothing, or a ValueError that names the seed."""
    # jax cuts larger seeds to 32 bits: 2**32 would silently draw what 0 draws.
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed {seed}: must lie in [0, 2**32)")


def differences(old: Mapping[str, Any], new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """`{key: (old, new)}` of what makes two configs different runs."""
    fresh = dataclasses.asdict(new)
    old = dataclasses.asdict(TrainConfig()) | dict(old)  # A run from before a choice had none.
    keys = (old.keys() | fresh.keys()) - _NOT_THE_RUN
    return {
        key: (old.get(key), fresh.get(key))
        for key in sorted(keys)
        if old.get(key) != fresh.get(key)
    }
