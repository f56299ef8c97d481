"""Records that cross module borders.

Axis letters, everywhere the same: `B` batch, `H W` image pixels, `S` side of the padded model
canvas, `h w` embedding grid or low-resolution mask, `C` image channels, `D` model width,
`N` prompts (one object each), `P` points per prompt, `M` masks per prompt, `L` tokens,
`T` attended tokens, `K` heads, `d` width per head.

Points are `(x, y)` and boxes `(x0, y0, x1, y1)`, in pixels of the frame that is named beside them.
The *model frame* is the image after its longest side was scaled to `S`, at the top left of an `S S`
canvas; the *original frame* is the image as the file holds it.
"""

from typing import Literal, NamedTuple

import numpy as np
from beartype import beartype
from jaxtyping import Array, Bool, Float, Int, UInt8, jaxtyped

BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = 0, 1, 2, 3
NOT_A_POINT = -1  # SAM's own padding point: attended, with an embedding of its own.
NEUTRAL = -2  # Ours: a slot that no token may attend to.


# What has a slot of its own in a batch: each object, all findings together, or these and then each.
Objects = Literal["each", "union", "both"]


class Prompts(NamedTuple):
    """What a user marks on each image: `N` objects, each by points, a box, a mask, or any mix.

    A box is two points labelled 2 (top left) and 3 (bottom right). Points are in the model frame.
    """

    points: Float[Array, "B N P 2"]
    labels: Int[Array, "B N P"]
    # Raw logits of an earlier mask, never 0/1 and never a sigmoid; "B N 0 0" where none has one.
    masks: Float[Array, "B N h w"]
    has_mask: Bool[Array, "B N"]
    valid: Bool[Array, "B N"]  # False: padding; finite output, no loss.


class Batch(NamedTuple):
    """What the host hands to the device: pixels and answers, before any filter."""

    image: UInt8[np.ndarray, "B S S 3"]  # Model frame, zero right and below `size`.
    size: Int[np.ndarray, "B 2"]  # Valid (height, width) in the model frame.
    targets: Float[np.ndarray, "B N h w"]  # Area average of each object's mask, side S / 4.
    boxes: Float[np.ndarray, "B N 4"]  # Model frame.
    valid: Bool[np.ndarray, "B N"]  # False: no such object.
    index: Int[np.ndarray, " B"]  # Row in the list of records; -1 for padding of a last batch.
    # The frozen encoder's, computed before; `image` is then "B 0 0 3".
    features: Float[np.ndarray, "B h w D"] | None = None


def slots(objects: Objects, *, most: int) -> int:
    """How many objects each image of a batch has, where `most` may be marked apart."""
    return {"each": most, "union": 1, "both": 1 + most}[objects]


@jaxtyped(typechecker=beartype)
def _check(
    points: Float[Array, "B N P 2"],
    labels: Int[Array, "B N P"],
    masks: Float[Array, "B N h w"],
    has_mask: Bool[Array, "B N"],
    valid: Bool[Array, "B N"],
) -> None:
    del points, labels, masks, has_mask, valid


def check(prompts: Prompts) -> Prompts:
    """The same prompts, after the shapes and dtypes of all fields were checked against each other.

    jaxtyping does not look into a NamedTuple, so the public borders call this.
    """
    _check(*prompts)
    return prompts
