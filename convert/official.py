"""Reading an official checkpoint file, and turning its tensors into our variables."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from convert.rules import correspondence
from pp_jax import tree
from pp_jax.sam import VARIANTS, Sam
from pp_jax.sam.model import init

_SHOWN = 12  # Names listed in an error before the rest is counted.


class ConversionError(ValueError):
    """A file that is not the checkpoint of a SAM we know."""


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pth` file by official name, without running any code that is in it.

    Raises:
      ConversionError: No such file, not a torch file, code in its pickle, or no dict of tensors.
    """
    if not path.is_file():
        raise ConversionError(
            f"{path}: no such file; the official weights are linked in the README of "
            "facebookresearch/segment-anything"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path}: refused, since its pickle asks for code to be run "
            f"({_reason(error)}); save a plain dict of tensors"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ConversionError(f"{path}: not a torch checkpoint ({_reason(error)})") from error
    odd = (
        [repr(k) for k, v in state.items() if not isinstance(v, torch.Tensor)]
        if isinstance(state, dict)
        else [type(state).__name__]
    )
    if odd or not state:
        raise ConversionError(
            f"{path}: not a flat dict of tensors as the official files are; found {odd[:3]}"
        )
    return state


def _reason(error: Exception) -> str:
    text = str(error)
    for line in text.splitlines():
        if "GLOBAL" in line or "global" in line:
            return line.strip()[:200]
    return (text.splitlines() or [type(error).__name__])[0][:200]


def detect_variant(shapes: Mapping[str, tuple[int, ...]], *, source: str) -> str:
    """The name of the variant whose width, depth and grid the tensors have.

    Raises:
      ConversionError: No variant has them.
    """
    position = shapes.get("image_encoder.pos_embed")
    if position is None or len(position) != 4:
        raise ConversionError(
            f"{source}: no tensor `image_encoder.pos_embed` of four axes, so this is no SAM; "
            f"its names begin with {sorted(shapes)[:3]}"
        )
    depth = len({name.split(".")[2] for name in shapes if name.startswith("image_encoder.blocks.")})
    for name, config in VARIANTS.items():
        if (config.embed_dim, config.depth, config.trained_grid) == (
            position[3],
            depth,
            position[1],
        ):
            return name
    raise ConversionError(
        f"{source}: width {position[3]}, depth {depth} and grid {position[1]} are those of no "
        f"variant among {list(VARIANTS)}"
    )


def to_variables(state: Mapping[str, np.ndarray], *, variant: str, source: str) -> dict[str, Any]:
    """Our variables `{"params", "constants"}`, float32, from tensors under official names.

    Raises:
      ConversionError: Missing, unused or mis-shaped tensors; all kinds are named in one message.
    """
    model = Sam(VARIANTS[variant])
    entries = correspondence(jax.eval_shape(lambda key: init(model, key), jax.random.key(0)))
    faults = [f"missing {name}" for name in entries if name not in state]
    faults += [f"unused {name}" for name in state if name not in entries]
    faults += [
        f"{name} is {tuple(state[name].shape)}, not {entry.torch_shape}"
        for name, entry in entries.items()
        if name in state and tuple(state[name].shape) != entry.torch_shape
    ]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ConversionError(f"{source} is no {variant}: " + "; ".join(faults[:_SHOWN]) + more)
    flat = {}
    for name, entry in entries.items():
        array = np.asarray(state[name], np.float32)
        if not np.isfinite(array).all():
            raise ConversionError(f"{source}: {name} holds values that are not finite")
        flat[f"{entry.collection}/{entry.path}"] = np.ascontiguousarray(
            entry.layout.to_flax(array, entry.shape)
        )
    return tree.unflatten(flat)
