"""`python -m convert sam_vit_b_01ec64.pth OUT`: an official checkpoint becomes one of ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import tyro

from pp_jax import checkpoints, cli


@dataclass(frozen=True)
class Convert:
    """Turn an official SAM checkpoint (.pth) into an Orbax checkpoint with a manifest."""

    source: Annotated[Path, tyro.conf.Positional]
    """The official file, for example sam_vit_b_01ec64.pth."""
    out: Annotated[Path, tyro.conf.Positional]
    """The folder to write, for example checkpoints/vit_b."""
    force: bool = False
    """Replace a checkpoint that is already there."""


def convert(source: Path, out: Path) -> dict[str, Any]:
    """The manifest's facts of the checkpoint now at `out`.

    Raises:
      ValueError: Not the weights of a SAM we know, or torch is not installed.
    """
    try:  # Here, so that `--help` does not wait for torch, and its absence is one clear line.
        from convert import official
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the converter needs {error.name}; install it with `make convert-tools`"
        ) from error
    state = official.read_state_dict(source)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    variant = official.detect_variant(shapes, source=str(source))
    arrays = {name: tensor.detach().float().numpy() for name, tensor in state.items()}
    variables = official.to_variables(arrays, variant=variant, source=str(source))
    digest = checkpoints.sha256(source)
    known = digest in OFFICIAL
    facts = {
        "kind": "converted",
        "variant": variant,
        "source": source.name,
        "source_sha256": digest,
        "official": known,
        "licence": "Apache-2.0 (Meta AI, Segment Anything)" if known else "that of the source",
        "preprocess": "sam",
    }
    checkpoints.save(out, variables, facts=facts)
    return facts


def require_free(out: Path, *, force: bool) -> None:
    """Nothing, when `out` may be written.

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
    args = cli.parse(Convert, prog="python -m convert")
    with cli.one_line_errors():
        require_free(args.out, force=args.force)
        facts = convert(args.source, args.out)
        kind = "official weights" if facts["official"] else "not a known official file"
        print(f"{args.out}: {facts['variant']}, sha256 {facts['source_sha256'][:12]} ({kind})")


# The sha256 of each official file. The digits in its name are those of its md5.
OFFICIAL: Mapping[str, str] = MappingProxyType(
    {
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912": "sam_vit_b_01ec64.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622": "sam_vit_l_0b3195.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e": "sam_vit_h_4b8939.pth",
    }
)


if __name__ == "__main__":
    main()
