"""Which values the choices of a run may have, each by itself and beside the others.

Written for the fields of `config.TrainConfig`, which imports this.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

SEGMENTERS = (
    "unet",
    "unet-tiny",
    "unet-2015",
    "unet-bilinear",
    "unet-vgg16",
    "unet-resnet",
    "fcn",
    "deeplabv3+",
)
LOSS_WEIGHTS = ("focal", "dice", "bce", "boundary", "projection", "affinity")
_WEIGHTS = (*LOSS_WEIGHTS, "iou", "lr", "weight_decay", "clip")
_COUNTS = (
    "epochs",
    "steps",
    "batch",
    "max_objects",
    "limit",
    "save_every",
    "keep",
    "patience",
    "accumulate",
    "last_blocks",
    "lora_rank",
)

# Of each group one is told: where it stands on the command line, a preset's others are left out.
ALTERNATIVES = (("epochs", "steps"), ("folds", "train_on", "test"), ("init", "checkpoint"))


def check(config: Any) -> None:
    """Nothing, where all values lie in their ranges and go together.

    Args:
      config: Of a training, with every default filled in.

    Raises:
      ValueError: One does not; names the flag and its value.
    """
    _check_numbers(config)
    _check_losses(config)
    _check_parts(config)
    if config.variant in SEGMENTERS:
        _check_network(config)
    if config.balance and not config.prompting.endswith("none"):
        raise ValueError(
            f"--balance with --prompting {config.prompting}: an image without a finding has "
            "nothing to prompt for and is left out; add --prompting none, or leave --balance out"
        )


def _check_numbers(config: Any) -> None:
    def require(names: tuple[str, ...], holds: Callable[[Any], bool], told: str) -> None:
        for name in names:
            value = getattr(config, name)
            if value is not None and not holds(value):
                raise ValueError(f"{_flag(name)} {value}: must be {told}")

    require(_COUNTS, lambda x: x >= 1, "at least 1")
    require(_WEIGHTS, lambda x: 0 <= x < float("inf"), "a number from 0 up")
    require(("warmup", "workers", "pictures_every"), lambda x: x >= 0, "0 or more")
    require(("layer_decay",), lambda x: 0 < x <= 1, "above 0 and at most 1")
    require(("lora_alpha",), lambda x: 0 < x < float("inf"), "a number above 0")
    require(("rounds",), lambda x: x == 1 or x >= 4, "1, or at least 4 (two are without a click)")
    if config.batch % config.accumulate:
        raise ValueError(
            f"--accumulate {config.accumulate} with --batch {config.batch}: the parts must be "
            "equal; choose a divisor of the batch"
        )


def _check_losses(config: Any) -> None:
    if config.affinity and (config.embeddings or config.filter == "blank"):
        beside = "--embeddings" if config.embeddings else "--filter blank"
        raise ValueError(f"--affinity {config.affinity} reads pixels: leave it out with {beside}")
    if not learns(config):
        raise ValueError(
            f"every weight of {', '.join(LOSS_WEIGHTS)} is 0: nothing is learned (a blind twin has "
            "no affinity, which reads pixels)"
        )


def learns(config: Any) -> bool:
    """Whether any loss of the masks has a weight."""
    return any(getattr(config, name) for name in LOSS_WEIGHTS)


def _check_network(config: Any) -> None:
    """Nothing, when a network can be trained as asked: as a whole, without a prompt or on boxes."""
    name = f"--variant {config.variant}"
    if config.prompting not in ("none", "box"):
        raise ValueError(
            f"--prompting {config.prompting} with {name}: a network reads a box or nothing; choose "
            "--prompting box or none"
        )
    told = {"trainable": "full", "layer_decay": 1.0, "scan_blocks": False, "embeddings": ""}
    for field, value in told.items():
        if getattr(config, field) != value:
            raise ValueError(
                f"{_flag(field)} {getattr(config, field)} with {name}: it has no parts or blocks "
                f"as SAM has, and no encoder that stays; leave {_flag(field)} out"
            )


def _check_parts(config: Any) -> None:
    """Nothing, when at most one flag says who is tested."""
    if config.folds is not None and config.folds < 2:
        raise ValueError(f"--folds {config.folds}: must be at least 2")
    if config.fold is not None and not 0 <= config.fold < (config.folds or 0):
        raise ValueError(f"--fold {config.fold}: give --folds, and a number from 0 below that")
    test = config.test if config.test != type(config).test else None
    told = {"--folds": config.folds, "--train-on": config.train_on, "--test": test}
    told = [f"{flag} {value}" for flag, value in told.items() if value]
    if len(told) > 1:
        raise ValueError(f"{' and '.join(told)}: each says who is tested; give one of them")


# Settings that would do nothing.


class Idle(NamedTuple):
    """When a setting does nothing, and what to do about it."""

    holds: Callable[[Any], bool]  # Of the config.
    remedy: str


def check_idle(config: Any, given: Any) -> None:
    """Nothing, where all that the user said has an effect.

    Args:
      config: Of a training, as it was asked for.
      given: The same without the user's own flags: the defaults, a preset or the run that goes on.

    Raises:
      ValueError: A flag that differs from both `given` and the default does nothing.
    """
    for name in _idle(config):
        value = getattr(config, name)
        if value != getattr(given, name):
            words = _flag(name) if value is True else f"{_flag(name)} {value}"
            raise ValueError(f"{words}: {IDLE[name].remedy}, or leave {_flag(name)} out")


def drop_idle(config: T) -> T:
    """The config with the default of what does nothing, as a preset's own beside another flag."""
    fresh = {name: getattr(type(config), name) for name in _idle(config)}
    return dataclasses.replace(config, **fresh)


def _idle(config: Any) -> list[str]:
    return [
        name
        for name, row in IDLE.items()
        if getattr(config, name) != getattr(type(config), name) and row.holds(config)
    ]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


_LORA = Idle(lambda x: x.trainable != "lora", "it is of --trainable lora; add that")
_NOT_SAM = Idle(lambda x: x.variant in SEGMENTERS, "it is of SAM; name another --variant")
_ENCODER = Idle(
    lambda x: bool(x.embeddings),
    "with --embeddings the encoder is not in the step; leave --embeddings out",
)

IDLE: Mapping[str, Idle] = MappingProxyType(
    {
        "rounds": Idle(
            lambda x: x.prompting != "iterative", "it is of --prompting iterative; add that"
        ),
        "lora_rank": _LORA,
        "lora_alpha": _LORA,
        "lora_on": _LORA,
        "last_blocks": Idle(
            lambda x: x.trainable != "last-k", "it is of --trainable last-k; add that"
        ),
        "remat": _ENCODER,
        "scan_blocks": _ENCODER,
        "iou": _NOT_SAM,
        "best_mask": _NOT_SAM,
        "attention": _NOT_SAM,
        "warmup": Idle(
            lambda x: x.steps is not None and x.warmup >= x.steps,
            "the rate would never reach its peak; give more --steps than that",
        ),
        "patience": Idle(
            lambda x: x.validation == 0, "it counts validations; give --validation a share above 0"
        ),
    }
)
