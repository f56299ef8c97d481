"""Whole recipes under one name: `python train.py --preset NAME`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Preset(NamedTuple):
    """Flags that go together, what to type, how long it takes, and what comes of it."""

    flags: Mapping[str, Any]  # Fields of TrainConfig.
    command: str  # One a line; the last is the training, the others what it needs.
    time: str
    result: str


def about(presets: Mapping[str, Preset]) -> str:
    """The presets as `--help` shows them."""
    return "; ".join(f"{name}: {preset.time}, {preset.result}" for name, preset in presets.items())


def check(name: str) -> None:
    """Nothing, or a ValueError that names the presets there are."""
    if name not in PRESETS:
        raise ValueError(f"--preset {name}: choose one of {', '.join(PRESETS)}")


_RSNA = MappingProxyType({"data": "rsna", "prompting": "point", "target": "ellipse"})
# `tiny` on the few real X-rays that are free: from phantoms, then folds of patients.
_PHANTOMS = MappingProxyType(
    {
        "variant": "tiny",
        "data": "synthetic",
        "data_dir": "datasets/phantoms",
        "prompting": "none",
        "augment": "strong",
        "lr": 6e-4,
        "validation": 0.03,
        "test": 0.01,
    }
)
_CXR = MappingProxyType(
    {
        "variant": "tiny",
        "data": "cxr_seg",
        "init": "runs/cxr-phantoms-2",
        "augment": "flip>rotate:15>scale:0.2>translate:0.1>elastic>shift:30>contrast:0.3"
        ">gamma:0.3>noise:8>cutout:0.2",
        "lr": 3e-4,
        "dice": 5.0,
        "steps": 200,
        "save_every": 200,
    }
)
_MAKE_PHANTOMS = (
    "python -m data.synthetic --out datasets/phantoms --images 1500 --side 320 --seed 5\n"
    "python train.py --preset cxr-phantoms\n"
)
_PRETRAIN = _MAKE_PHANTOMS + "python train.py --preset cxr-phantoms-2\n"
_PRETRAIN_CLICK = _MAKE_PHANTOMS + "python train.py --preset cxr-phantoms-click\n"
_NOT_MEASURED = "not measured yet: neither the weights nor RSNA can be shipped"

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "cxr-phantoms": Preset(
            MappingProxyType({**_PHANTOMS, "steps": 700, "out": "runs/cxr-phantoms"}),
            command=_MAKE_PHANTOMS.strip(),
            time="6 minutes on two cores",
            result="the first part of what the other cxr presets start from; Dice .77 on phantoms",
        ),
        "cxr-phantoms-2": Preset(
            MappingProxyType(
                {
                    **_PHANTOMS,
                    "init": "runs/cxr-phantoms",
                    "out": "runs/cxr-phantoms-2",
                    "steps": 1500,
                    "dice": 5.0,
                    "best_mask": "highest-iou",
                }
            ),
            command=_PRETRAIN.strip(),
            time="13 minutes on two cores",
            result="the second part; Dice .85 on phantoms",
        ),
        "cxr-phantoms-click": Preset(
            MappingProxyType(
                {
                    **_PHANTOMS,
                    "init": "runs/cxr-phantoms",
                    "out": "runs/cxr-phantoms-click",
                    "prompting": "point",
                    "steps": 700,
                }
            ),
            command=_PRETRAIN_CLICK.strip(),
            time="6 minutes on two cores",
            result="the second part for clicks",
        ),
        "cxr-tiny": Preset(
            MappingProxyType({**_CXR, "prompting": "none", "out": "runs/cxr-tiny"}),
            command=_PRETRAIN + "python train.py --preset cxr-tiny --data-dir DIR --folds 5",
            time="2 minutes a fold on two cores",
            result="Dice .52 without a prompt, lungs as outlined by experts .43, blind twin .34",
        ),
        "cxr-tiny-click": Preset(
            MappingProxyType(
                {
                    **_CXR,
                    "init": "runs/cxr-phantoms-click",
                    "prompting": "centre",
                    "best_mask": "highest-iou",
                    "steps": 150,
                    "save_every": 150,
                    "out": "runs/cxr-tiny-click",
                }
            ),
            command=_PRETRAIN_CLICK
            + "python train.py --preset cxr-tiny-click --data-dir DIR --folds 5",
            time="2 minutes a fold on two cores",
            result="Dice .65 with a click on the centre, mean shape there .59, blind twin .56",
        ),
        "rsna-vit_b-decoder": Preset(
            MappingProxyType(
                {
                    **_RSNA,
                    "variant": "vit_b",
                    "trainable": "decoder",
                    "embeddings": "bfloat16",
                    "batch": 8,
                    "epochs": 10,
                    "schedule": "paper",
                }
            ),
            command="python train.py --preset rsna-vit_b-decoder --data-dir DIR",
            time="2 hours on one GPU, most of them for embeddings made once (an estimate)",
            result=_NOT_MEASURED,
        ),
        "rsna-vit_h-lora": Preset(
            MappingProxyType(
                {
                    **_RSNA,
                    "variant": "vit_h",
                    "trainable": "lora",
                    "lora_rank": 8,
                    "batch": 16,
                    "epochs": 10,
                    "dtype": "bfloat16",
                    "remat": True,
                    "scan_blocks": True,
                    "augment": "flip>rotate:5>scale:0.05>translate:0.03>shift:10>contrast:0.1",
                }
            ),
            command="python train.py --preset rsna-vit_h-lora --data-dir DIR --mesh fsdp=8",
            time="7 hours on 8 GPUs of 40 GB (an estimate from operations at 40 %)",
            result=_NOT_MEASURED,
        ),
        "rsna-vit_b-boxes": Preset(
            MappingProxyType(
                {
                    "data": "rsna",
                    "variant": "vit_b",
                    "trainable": "lora",
                    "prompting": "point",
                    "focal": 0.0,
                    "dice": 0.0,
                    "iou": 0.0,  # The IoU with a filled box is not to be learned.
                    "projection": 1.0,
                    "affinity": 1.0,
                    "batch": 8,
                    "epochs": 10,
                    "augment": "flip>rotate:5>scale:0.05>translate:0.03>shift:10>contrast:0.1",
                }
            ),
            command="python train.py --preset rsna-vit_b-boxes --data-dir DIR",
            time="9 hours on one GPU (an estimate from operations at 40 %)",
            result=_NOT_MEASURED,
        ),
    }
)
