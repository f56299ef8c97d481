"""What SAM is shown of an image, in plain values. The lowest floor: imports nothing of ours."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Look:
    """What SAM is shown of an image."""

    filter: str = "none"
    """A spec of `pp_jax.preprocess.filters`."""
    fusion: str = "replace"
    blend: float = 0.5
    roi: str = "none"
    preprocess: str = "sam"


def override(
    look: Look,
    *,
    recipe: str = "",
    filter: str = "",
    fusion: str = "",
    blend: float | None = None,
    roi: str = "",
) -> Look:
    """The look with what the user chose in its place; an empty choice keeps what is there.

    Raises:
      ValueError: A recipe beside what it chooses, or a weight outside [0, 1].
    """
    told: dict[str, Any] = {"filter": filter, "fusion": fusion, "blend": blend, "roi": roi}
    told = {name: value for name, value in told.items() if value not in ("", None)}
    if recipe:
        if twice := [name for name in told if name != "roi"]:
            raise ValueError(
                f"--recipe {recipe} chooses the {', '.join(twice)} itself: leave out "
                f"{' and '.join('--' + name for name in twice)}"
            )
        told |= RECIPES[recipe]
    look = dataclasses.replace(look, **told)
    check_blend(look.blend)
    return look


def name_of(look: Look) -> list[str]:
    """The look in parts of a folder's name, in characters that file systems and shells take."""
    parts = [look.filter]
    if look.fusion != "replace":
        parts += [look.fusion, *([f"{look.blend:g}"] if look.fusion in _WEIGHTED else [])]
    if look.roi != "none":
        parts.append(look.roi)
    return [part.translate(SAFE) for part in parts]


def check_blend(blend: float) -> None:
    """Nothing, or a ValueError that names the weight outside [0, 1]."""
    if not 0 <= blend <= 1:
        raise ValueError(f"--blend {blend}: must lie in [0, 1]")


# For the names of folders: what file systems and shells do not take.
SAFE = str.maketrans({">": "+", ":": "_", "=": "", " ": ""})
_WEIGHTED = ("blend", "add-edges")


# Filters, fusions and weights that go together: `--recipe`.
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "edges": MappingProxyType({"filter": "canny", "fusion": "blend", "blend": 0.3}),
        "edge-channels": MappingProxyType({"filter": "canny,log", "fusion": "channels"}),
        "contrast": MappingProxyType({"filter": "clahe", "fusion": "replace"}),
        "detail": MappingProxyType({"filter": "median:3>musica", "fusion": "replace"}),
        "regions": MappingProxyType({"filter": "median:5", "fusion": "regions"}),
    }
)
