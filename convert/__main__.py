"""`python -m convert sam_vit_b_01ec64.pth OUT`: an official checkpoint becomes one of ours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from convert.official import ConversionError, detect_variant, read_state_dict, to_variables
from pp_jax import checkpoints, cli

# The first digits of the sha256 of each official file, as its own name has them.
OFFICIAL = {"01ec64": "vit_b", "0b3195": "vit_l", "4b8939": "vit_h"}


@dataclass(frozen=True)
class Convert:
    """Turn an official SAM checkpoint (.pth) into an Orbax checkpoint with a manifest."""

    source: Annotated[Path, tyro.conf.Positional]
    """The official file, for example sam_vit_b_01ec64.pth."""
    out: Annotated[Path, tyro.conf.Positional]
    """The folder to write, for example checkpoints/vit_b."""
    force: bool = False
    """Replace a checkpoint that is already there."""


def convert(source: Path, out: Path) -> dict[str, object]:
    """The manifest's facts of the checkpoint now at `out`."""
    state = read_state_dict(source)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    variant = detect_variant(shapes, source=str(source))
    arrays = {name: tensor.float().numpy() for name, tensor in state.items()}
    variables = to_variables(arrays, variant=variant, source=str(source))
    digest = checkpoints.sha256(source)
    official = OFFICIAL.get(digest[:6]) == variant
    facts = {
        "kind": "converted",
        "variant": variant,
        "source": source.name,
        "source_sha256": digest,
        "official": official,
        "licence": "Apache-2.0 (Meta AI, Segment Anything)" if official else "that of the source",
        "preprocess": "sam",
    }
    checkpoints.save(out, variables, facts=facts)
    return facts


def main() -> None:
    """The command line."""
    args = cli.parse(Convert, prog="python -m convert")
    with cli.one_line_errors():
        if args.out.exists() and not args.force:
            raise ConversionError(f"{args.out}: already there; choose another name or add --force")
        facts = convert(args.source, args.out)
        kind = "official weights" if facts["official"] else "not a known official file"
        print(f"{args.out}: {facts['variant']}, sha256 {facts['source_sha256'][:12]} ({kind})")


if __name__ == "__main__":
    main()
