"""`python -m convert`: weights into our format, out of it, or from the official server.

python -m convert sam_vit_b_01ec64.pth checkpoints/vit_b     official, Hugging Face or MedSAM in
python -m convert runs/NAME fine_tuned.pth                   out, for every tool that reads SAM
python -m convert runs/NAME pairs.safetensors --part lora    out, only what was trained beside pairs
python -m convert sam_vit_b_01ec64.pth out.pth --add pairs.safetensors   such a part, put back in
python -m convert --download vit_b                           fetch, verify and convert
python -m convert vgg16-397923af.pth checkpoints/vgg16       an encoder of a U-Net (or resnet50)
"""

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from convert import download, pairs
from pp_jax import checkpoints, cli, tree
from pp_jax.config import SEGMENTERS, Look
from pp_jax.lora import lora_of

PREPROCESS = ("", "sam", "medsam")
PARTS = ("", "lora")


@dataclass(frozen=True)
class Convert:
    """Turn SAM weights (.pth, .bin, .safetensors) into a checkpoint folder, or a folder back."""

    source: Annotated[Path | None, tyro.conf.Positional] = None
    """A file of weights under official or Hugging Face names (sam_vit_b_01ec64.pth), one of an
    encoder for U-Nets (vgg16-397923af.pth, resnet50-0676ba61.pth; also timm's), or a folder: a
    converted checkpoint or a run."""
    out: Annotated[Path | None, tyro.conf.Positional] = None
    """The folder to write, for example checkpoints/vit_b; from a folder: a .pth or .safetensors."""
    download: str = ""
    """Fetch the official weights of this variant into checkpoints/ and convert them."""
    preprocess: str = ""
    """What images the weights were trained on: `sam`, or `medsam` (stretched to a square, min-max).
    Needed for a file that is not an official one, neither by its hash nor by its name."""
    part: str = ""
    """From a run with `--trainable lora`: `lora` writes its pairs and what else it trained, alone,
    as `convert/pairs.py` says; default: all weights, pairs merged into them."""
    add: Path | None = None
    """What `--part lora` wrote, put into the file of weights that its run began from: OUT is a .pth
    or .safetensors."""
    force: bool = False
    """Replace what is already there."""


def convert(source: Path, out: Path, *, preprocess: str = "") -> dict[str, Any]:
    """The manifest's facts of the checkpoint now at `out`.

    Raises:
      ValueError: Not the weights of a SAM or an encoder we know, images of an unknown kind, or
        torch is missing.
    """
    official = _torch_side()
    from convert import backbones  # It needs torch too.

    if source.name in backbones.FILES and not source.exists():
        raise ValueError(f"{source}: no such file; fetch {backbones.URL}{source.name}")
    state = official.read_state_dict(source)
    digest = checkpoints.sha256(source)
    backbone = backbones.backbone_name(list(state))
    if backbone:
        if preprocess:
            raise ValueError(f"{source}: a {backbone}, not SAM: leave --preprocess out")
        arrays = {name: tensor.detach().float().numpy() for name, tensor in state.items()}
        variables, left_out = backbones.to_variables(arrays, backbone=backbone, source=str(source))
        facts = backbones.facts_of(backbone, name=source.name, digest=digest, left_out=left_out)
        checkpoints.save(out, variables, facts=facts)
        return facts
    known = next((f for f in download.FILES.values() if f.sha256 == digest), None)
    preprocess = _preprocess_of(source, known=known is not None, told=preprocess)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    variant = official.detect_variant(shapes, source=str(source))
    arrays = {name: tensor.detach().float().numpy() for name, tensor in state.items()}
    variables = official.to_variables(arrays, variant=variant, source=str(source))
    del state, arrays  # Of `vit_h` 2.4 GiB, before as much again is written.
    facts = {
        "kind": "converted",
        "variant": variant,
        "source": source.name,
        "source_sha256": digest,
        "official": known is not None,
        "licence": "Apache-2.0 (Meta AI, Segment Anything)" if known else "that of the source",
        "preprocess": preprocess,
    }
    checkpoints.save(out, variables, facts=facts)
    return facts


def export(folder: Path, out: Path, *, part: str = "") -> dict[str, Any]:
    """What is known of the weights now in the file `out`, under official names.

    All of them, with pairs merged, or a part of `PARTS`. The official format has no place for what
    SAM was shown: that of a run stands beside it, in `out` with the suffix `.look.json`, the
    learned fusion's parameters included.

    Raises:
      ValueError: No checkpoint or run at `folder`, one without the part, another suffix, or torch
        is missing.
    """
    official = _torch_side()
    import jax

    from pp_jax import sharding
    from pp_jax.finetune import runs
    from pp_jax.finetune.recipe import rules_of

    load = runs.load_parts if part else runs.load
    loaded = load(folder, mesh=sharding.make_mesh(jax.devices("cpu")[:1]))
    if loaded.variant in SEGMENTERS:
        raise ValueError(
            f"{folder}: a network ({loaded.variant}), for which the official package has no "
            "format; name a run of SAM"
        )
    lora = lora_of(loaded.config) if part and loaded.config else None
    if part and not lora:
        raise ValueError(f"--part {part}: {folder} has no pairs; leave --part out")
    if lora:
        trained, _ = tree.partition(loaded.variables, rules_of(loaded.config))
        state = pairs.to_part(trained, loaded.variables)
        model = {name: loaded.variables[name] for name in ("params", "constants")}
        frozen = pairs.hash_frozen(official.to_state_dict(model), state)
        of_pairs = pairs.to_facts(pairs.Part(state, lora, _base_of(runs.home(folder)), frozen))
    else:
        model = {name: held for name, held in loaded.variables.items() if name != "fusion"}
        state, of_pairs = official.to_state_dict(model), None
    facts = {"variant": loaded.variant, "step": loaded.step, "look": ""}
    if loaded.look != Look():
        fusion = jax.tree.map(lambda x: x.tolist(), jax.device_get(loaded.variables.get("fusion")))
        look = out.with_suffix(".look.json")
        look.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.write_json(look, dataclasses.asdict(loaded.look) | {"learned": fusion})
        facts["look"] = str(look)
    official.write_state_dict(out, state, facts=of_pairs)
    return facts


def _base_of(run: Path) -> str:
    """What a run began from: a file with its sha256, a run, or `random`."""
    source = checkpoints.read_manifest(run / "base").get("source", "random")
    manifest = Path(source) / checkpoints.MANIFEST
    held = checkpoints.read_manifest(Path(source)) if manifest.is_file() else {}
    if "source_sha256" in held:
        return f"{held['source']}, sha256 {held['source_sha256']}"
    return source if source == "random" else f"run {source}"


def add_part(source: Path, out: Path, *, part: Path) -> str:
    """The file `out` holds the weights of `source` with a part; in words, what that began from.

    Raises:
      ValueError: No file of weights or no part, weights the part was not trained on, another
        suffix, or torch is missing.
    """
    official = _torch_side()
    held = official.read_part(part)
    state = official.read_state_dict(source)
    arrays = {name: tensor.detach().float().numpy() for name, tensor in state.items()}
    try:
        changed = pairs.apply_part(arrays, held)
    except ValueError as error:
        raise ValueError(f"{source} with --add {part}: {error}") from error
    official.write_state_dict(out, changed)
    return held.base


def _torch_side() -> Any:
    try:  # Here, so that `--help` does not wait for torch, and its absence is one clear line.
        from convert import official
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the converter needs {error.name}; install it with `make convert-tools`"
        ) from error
    return official


def _preprocess_of(source: Path, *, known: bool, told: str) -> str:
    """What the manifest says of the images; see the flag `--preprocess`."""
    if known:
        if told == "medsam":
            raise ValueError(f"{source}: an official file, whose images are prepared as `sam`")
        return "sam"
    if told:
        return told
    if source.name in {file.name for file in download.FILES.values()}:
        warnings.warn(
            f"{source}: an official name, not the official sha256; taken as --preprocess sam",
            stacklevel=2,
        )
        return "sam"
    raise ValueError(
        f"{source}: not an official file; say how its training images were prepared: --preprocess "
        "sam (longest side, mean and deviation) or --preprocess medsam (square, min-max)"
    )


def require_free(out: Path, *, force: bool) -> None:
    """Nothing, when the folder `out` may be written.

    Raises:
      ValueError: Something stands there, and `force` is not given or it is no checkpoint.
    """
    if not out.exists():
        return
    if not force:
        raise ValueError(f"{out}: already there; choose another name or add --force")
    if not (out / checkpoints.MANIFEST).is_file():
        raise ValueError(f"{out}: --force replaces a checkpoint only, and this is none; remove it")


def main() -> None:
    """The command line."""
    choices = {"download": ("", *download.FILES), "preprocess": PREPROCESS, "part": PARTS}
    args = cli.parse(Convert, prog="python -m convert", choices=choices)
    with cli.one_line_errors():
        source, out = args.source, args.out
        if args.download:
            if source is not None:
                raise ValueError(f"--download {args.download} takes no source; leave out {source}")
            out = Path("checkpoints") / args.download
            require_free(out, force=args.force)
            source = download.download(args.download, out.parent)
        if source is None or out is None:
            raise ValueError("give SOURCE and OUT, or --download VARIANT; see --help")
        if args.add and (source.is_dir() or args.part):
            raise ValueError(f"--add {args.add}: needs a file of weights, without --part")
        to_file = source.is_dir() or args.add
        if to_file and (out.is_dir() or (out.exists() and not args.force)):
            raise ValueError(f"{out}: already there; choose another file or add --force")
        if args.add:
            base = add_part(source, out, part=args.add)
            print(f"{out}: {base}, with the pairs of {args.add}, official names")
        elif source.is_dir():
            facts = export(source, out, part=args.part)
            step = f", step {facts['step']}" if facts["step"] is not None else ""
            names = "pairs alone" if args.part else "official names"
            print(f"{out}: {facts['variant']}{step}, {names}")
            if facts["look"]:
                print(f"{facts['look']}: what these weights expect to be shown")
        else:
            if args.part:
                raise ValueError(f"--part {args.part}: {source} is no folder of a run")
            require_free(out, force=args.force)
            facts = convert(source, out, preprocess=args.preprocess)
            kind = "official weights" if facts["official"] else "not a known official file"
            name = facts.get("variant") or facts["backbone"]
            print(f"{out}: {name}, sha256 {facts['source_sha256'][:12]} ({kind})")


if __name__ == "__main__":
    main()
