"""Reading an official checkpoint file, and turning its tensors into our variables."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as numpy_safetensors
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file as save_safetensors

from convert import hugging_face
from convert.pairs import Part, from_facts
from convert.rules import Entry, correspondence
from pp_jax import tree
from pp_jax.sam import VARIANTS, Sam
from pp_jax.sam.model import init

_DAMAGED = "not a torch checkpoint, or a damaged or incomplete one; download it again"


class ConversionError(ValueError):
    """A file that is not the checkpoint of a SAM we know."""


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pth`, `.bin` or `.safetensors` file by official name; runs no code in it.

    Names of Hugging Face's `SamModel` become the official ones.

    Raises:
      ConversionError: No such file, not a torch file, code in its pickle, or no dict of tensors.
    """
    if path.is_dir():
        raise ConversionError(f"{path}: a folder, not the .pth file")
    if not path.is_file():
        raise ConversionError(
            f"{path}: no such file; the official weights are linked in the README of "
            "facebookresearch/segment-anything"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # They ask for issues to be filed with torch.
            state = _read(path)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        # Of torch's own text only the name: the rest advises to load the file without protection.
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise ConversionError(
                f"{path}: refused, since its pickle asks for code to be run ({code[1]}); "
                "save a plain dict of tensors"
            ) from error
        raise ConversionError(f"{path}: {_DAMAGED}") from error
    except Exception as error:  # Damaged pickles make torch raise nearly every kind of exception.
        reason = f"{type(error).__name__} {str(error)[:80]}".strip()
        raise ConversionError(f"{path}: {_DAMAGED} ({reason})") from error
    odd = (
        [repr(k) for k, v in state.items() if not (isinstance(k, str) and _is_weight(k, v))]
        if isinstance(state, Mapping)
        else [f"a {type(state).__name__}"]
    )
    if odd or not state:
        raise ConversionError(
            f"{path}: not a flat dict of floating-point tensors as the official files are; found "
            f"{', '.join(odd[:3]) or 'nothing in it'}; save the inner dict of tensors alone"
        )
    return hugging_face.to_official(state) if hugging_face.is_hugging_face(state) else dict(state)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    # Mapped where the format allows it: of `vit_h` 2.4 GiB stay on the disk until they are needed.
    mapped = zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _is_weight(name: str, value: object) -> bool:
    # Batch normalisation of ImageNet's encoders counts its batches.
    counter = name.endswith("num_batches_tracked")
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or counter)


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
      ConversionError: Missing, unused or mis-shaped tensors, each named in the one message, or
        values that are not finite.
    """
    model = Sam(VARIANTS[variant])
    entries = correspondence(jax.eval_shape(lambda key: init(model, key), jax.random.key(0)))
    return place(state, entries, model=variant, source=source)


def place(
    state: Mapping[str, np.ndarray], entries: Mapping[str, Entry], *, model: str, source: str
) -> dict[str, Any]:
    """The variables, float32, that `entries` make of all tensors: none missing and none unused.

    Args:
      state: Tensors under official names.
      entries: For each official name where it goes.
      model: What the tensors should be, for the message.
      source: Where they are from, for the message.

    Raises:
      ConversionError: As `to_variables`.
    """
    faults = {
        "missing": [name for name in entries if name not in state],
        "unused": [name for name in state if name not in entries],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {entry.torch_shape}"
            for name, entry in entries.items()
            if name in state and tuple(state[name].shape) != entry.torch_shape
        ],
    }
    listed = [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in faults.items() if names]
    if listed:
        raise ConversionError(f"{source} is no {model}: " + "; ".join(listed))
    flat = {}
    for name, entry in entries.items():
        array = np.asarray(state[name], np.float32)
        if not np.isfinite(array).all():
            raise ConversionError(f"{source}: {name} holds values that are not finite")
        # A copy always: a view would keep the whole mapped file in memory.
        flat[f"{entry.collection}/{entry.path}"] = np.array(
            entry.layout.to_flax(array, entry.shape), order="C"
        )
    return tree.unflatten(flat)


def to_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Float32 tensors under official names: the inverse of `to_variables`, bit for bit."""
    flat = tree.flatten(variables)
    return {
        name: np.array(  # A copy in C's order: torch wants arrays that it may write to.
            entry.layout.to_torch(np.asarray(flat[f"{entry.collection}/{entry.path}"], np.float32)),
            order="C",
        )
        for name, entry in correspondence(variables).items()
    }


def write_state_dict(
    path: Path, state: Mapping[str, np.ndarray], *, facts: Mapping[str, Any] | None = None
) -> None:
    """The file at `path` (`.pth` or `.safetensors`) holds the tensors, never half of them.

    Args:
      path: Replaced if it is there.
      state: Under official names, or a part; see `convert/pairs.py`.
      facts: Of the pairs in a part.

    Raises:
      ConversionError: Another suffix.
    """
    if path.suffix not in (".pth", ".safetensors"):
        raise ConversionError(f"{path}: must end in .pth or .safetensors")
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    facts = dict(facts or {})
    if path.suffix == ".pth":
        torch.save(tensors | ({"lora": facts} if facts else {}), partial)
    else:
        save_safetensors(tensors, partial, {name: str(x) for name, x in facts.items()} or None)
    partial.rename(path)


def read_part(path: Path) -> Part:
    """What a file holds that `--part lora` wrote.

    Raises:
      ConversionError: There is none.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                facts = file.metadata()
            return from_facts(numpy_safetensors(path), facts)
        held = torch.load(path, map_location="cpu", weights_only=True)
        facts = held.pop("lora")
        return from_facts({name: tensor.numpy() for name, tensor in held.items()}, facts)
    except (KeyError, TypeError, OSError, SafetensorError, pickle.UnpicklingError) as error:
        raise ConversionError(f"{path}: no file that `--part lora` wrote ({error})") from error
