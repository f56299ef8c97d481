"""An example moved as a whole: pixels, low-resolution targets and boxes by one map.

Places are `(x, y)` at the edges of pixels of the model frame: a pixel's centre is at +0.5, the
image is `(0, 0)` to `(width, height)`. A `Motion` says of each place of the moved image where it
comes from, so that everything is interpolated once. The frame, `size`, stays; what comes from
beyond the image is black and belongs to no object.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8

from pp_jax.preprocess.geometry import CELL, coverage

_INVERSIONS = 16  # A bend that does not fold is a contraction: each brings the answer nearer.


class Motion(NamedTuple):
    """Where a place of the moved image comes from: `matrix @ (place + bend(place))`.

    `bend` is the uniform cubic B-spline with these `controls` over `K - 3` by `K - 3` cells of the
    canvas; no displacement exceeds its largest control.
    """

    matrix: Float32[Array, "2 3"]
    controls: Float32[Array, "2 K K"] | None = None  # Of x and of y, in pixels.


def about_centre(linear: Float[Array, "2 2"], size: Int[Array, "2"]) -> Float32[Array, "2 3"]:
    """The map `linear` with the image's centre fixed."""
    centre = size[::-1] / 2
    # A sum, not a matrix product, which an accelerator would round.
    return jnp.column_stack([linear, centre - jnp.sum(linear * centre, axis=1)])


def mirroring(
    across: Bool[Array, ""], down: Bool[Array, ""], size: Int[Array, "2"]
) -> Float32[Array, "2 3"]:
    """Left and right exchanged, if `across`, and top and bottom, if `down`."""
    return about_centre(jnp.diag(1.0 - 2 * jnp.stack([across, down])), size)


def rotation(degrees: Float[Array, ""], size: Int[Array, "2"]) -> Float32[Array, "2 3"]:
    """The image turned counter-clockwise about its centre."""
    cosine, sine = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    return about_centre(jnp.array([[cosine, -sine], [sine, cosine]]), size)


def scaling(factor: Float[Array, ""], size: Int[Array, "2"]) -> Float32[Array, "2 3"]:
    """The image enlarged by `factor` about its centre."""
    return about_centre(jnp.eye(2) / factor, size)


def translation(offset: Float[Array, "2"]) -> Float32[Array, "2 3"]:
    """The image moved by `(x, y)` pixels."""
    return jnp.column_stack([jnp.eye(2), -offset])


def compose(first: Float32[Array, "2 3"], second: Float32[Array, "2 3"]) -> Float32[Array, "2 3"]:
    """The map of an image that is moved by `first` and then by `second`."""
    product = jnp.sum(first[:, :2, None] * second[None], axis=1)
    return product.at[:, 2].add(first[:, 2])


def move_image(
    image: UInt8[Array, "S S 3"], size: Int[Array, "2"], motion: Motion
) -> Float32[Array, "S S 3"]:
    """The moved image in grey levels, not rounded; right in the valid `size`.

    Bilinear between the pixels and the black around them, as SciPy's `map_coordinates` of order 1
    in mode `grid-constant`. Nothing is smoothed before it shrinks.
    """
    red, green, blue = jnp.moveaxis(image.astype(jnp.uint32), -1, 0)
    packed = (red | green << 8 | blue << 16).ravel()  # One gather for three channels.
    shifts = jnp.array([0, 8, 16], jnp.uint32)
    taps, inside = _taps(motion, size, side=len(image), step=1)
    mixed = sum(
        weight[..., None] * ((packed[index][..., None] >> shifts) & 255).astype(jnp.float32)
        for index, weight in taps
    )
    return mixed * inside[..., None]


def move_targets(
    targets: Float[Array, "N h w"], size: Int[Array, "2"], motion: Motion, *, side: int
) -> Float32[Array, "N h w"]:
    """The part of each cell's covered area that the moved mask fills, in [0, 1].

    The image's map at the centres of cells, bilinear between cells; 0 beyond `size`.
    """
    flat = targets.reshape(len(targets), -1)
    taps, inside = _taps(motion, size, side=side, step=CELL)
    cover = coverage(size, side=side)
    mixed = sum(weight * flat[:, index] for index, weight in taps)
    # Of a cell that the frame covers in part, as much comes from the image as the frame covers.
    share = jnp.minimum(inside, cover) / jnp.where(cover > 0, cover, 1)
    return mixed * share


def move_boxes(
    boxes: Float[Array, "N 4"],
    moved: Float[Array, "N h w"],
    size: Int[Array, "2"],
    motion: Motion,
    *,
    side: int,
) -> Float32[Array, "N 4"]:
    """The boxes of the moved objects, cut off at the image.

    A map that keeps the axes moves a box exactly. Else it is the box around the cells that the
    moved target fills by half or more: precise to half a cell at a straight side, to a cell where
    the object is pointed. Where there are no such cells, it is the box around the box's four moved
    corners.
    """
    corners = boxes[:, jnp.array([[0, 1], [2, 1], [0, 3], [2, 3]])]  # N 4 2
    corners = _destinations(motion, corners, side=side)
    around = jnp.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=-1)
    filled = moved >= 0.5
    tight = jax.vmap(_tight_box)(filled)
    bent = jnp.any(jnp.stack([motion.matrix[0, 1], motion.matrix[1, 0]]) != 0)
    if motion.controls is not None:
        bent |= jnp.any(motion.controls != 0)
    known = bent & jnp.any(filled, axis=(1, 2))
    chosen = jnp.where(known[:, None], tight, around)
    return jnp.clip(chosen, 0, jnp.tile(size[::-1], 2)).astype(jnp.float32)


def _tight_box(filled: Bool[Array, "h w"]) -> Float32[Array, "4"]:
    """The box around the true cells, in pixels."""
    ends = []
    for axis in (0, 1):
        line = jnp.any(filled, axis=axis)
        ends.append((jnp.argmax(line), len(line) - jnp.argmax(line[::-1])))
    (x0, x1), (y0, y1) = ends
    return CELL * jnp.stack([x0, y0, x1, y1]).astype(jnp.float32)


def _taps(
    motion: Motion, size: Int[Array, "2"], *, side: int, step: int
) -> tuple[list[tuple[Int[Array, "n n"], Float32[Array, "n n"]]], Float32[Array, "n n"]]:
    """Four indices with weights for each of the flat samples, `step` pixels apart.

    And the part of each sample that comes from the image.
    """
    count = side // step
    across, down = _sources(motion, (jnp.arange(count) + 0.5) * step, side=side)
    columns, inside_x = _line(across / step, size[1] / step)
    rows, inside_y = _line(down / step, size[0] / step)
    taps = [(y * count + x, wy * wx) for y, wy in rows for x, wx in columns]
    return taps, inside_y * inside_x


def _line(
    place: Float[Array, "n n"], length: Float[Array, ""]
) -> tuple[tuple[tuple[Int[Array, "n n"], Float32[Array, "n n"]], ...], Float32[Array, "n n"]]:
    """The two samples a place lies between, their weights, and its part within the `length`."""
    last = jnp.ceil(length) - 1
    position = jnp.clip(place - 0.5, 0, last)
    low = jnp.floor(position)
    high = jnp.minimum(low + 1, last)
    weight = position - low
    inside = jnp.clip(place + 0.5, 0, 1) * jnp.clip(length - place + 0.5, 0, 1)
    return ((low.astype(jnp.int32), 1 - weight), (high.astype(jnp.int32), weight)), inside


def _sources(
    motion: Motion, at: Float[Array, " n"], *, side: int
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """x and y of where the places of an even grid come from."""
    x, y = jnp.meshgrid(at, at)
    if motion.controls is not None:
        basis = _basis(at, motion.controls, side=side)
        bend = jnp.einsum("yj,cjk,xk->cyx", basis, motion.controls, basis, precision="highest")
        x, y = x + bend[0], y + bend[1]
    m = motion.matrix
    return m[0, 0] * x + m[0, 1] * y + m[0, 2], m[1, 0] * x + m[1, 1] * y + m[1, 2]


def _destinations(
    motion: Motion, places: Float[Array, "*n 2"], *, side: int
) -> Float[Array, "*n 2"]:
    """Where places of the image come to lie."""
    (a, b, tx), (c, d, ty) = motion.matrix
    x, y = places[..., 0] - tx, places[..., 1] - ty
    goal = jnp.stack([d * x - b * y, a * y - c * x], axis=-1) / (a * d - b * c)
    if motion.controls is None:
        return goal

    def nearer(_: int, found: Float[Array, "*n 2"]) -> Float[Array, "*n 2"]:
        columns, rows = (_basis(found[..., axis], motion.controls, side=side) for axis in (0, 1))
        bend = jnp.einsum(
            "...j,cjk,...k->...c", rows, motion.controls, columns, precision="highest"
        )
        return goal - bend

    return jax.lax.fori_loop(0, _INVERSIONS, nearer, goal)  # The place which, bent, is `goal`.


def _basis(
    at: Float[Array, "*n"], controls: Float[Array, "2 K K"], *, side: int
) -> Float[Array, "*n K"]:
    """Weight of each control, the uniform cubic B-splines around the grid's knots."""
    knots = jnp.arange(controls.shape[-1]) - 1
    distance = jnp.abs(at[..., None] * ((len(knots) - 3) / side) - knots)
    near = 2 / 3 - distance**2 + distance**3 / 2
    return jnp.where(distance < 1, near, jnp.maximum(2 - distance, 0) ** 3 / 6)
