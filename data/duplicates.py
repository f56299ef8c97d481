"""Pictures that are the same, exactly or nearly: scaled, framed, recompressed, inverted, turned.

Two steps, as all pairs are compared: a perceptual hash of 63 bits proposes, the correlation of two
small thumbnails decides. Both are made after uniform margins were cut off, so that the same picture
padded to a square or cropped to its content has the same thumbnail. A crop that takes 1 % off each
side is found, one of 2 % often not: a threshold that finds it calls films of two people one.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from PIL import Image
from scipy import fft, ndimage, sparse

from pp_jax.preprocess.colour import to_grey

SIDE = 32  # Of a thumbnail.
# Correlation of two thumbnails less what is smooth in them. Different chest films of one view stay
# below .65 and different heads below .75; a rescaled, padded or recompressed copy is above .95.
NEAR = 0.85
# Of 63 bits. A copy differs by up to 6, two films of one view by 24 on average and hardly by 10.
MOST_BITS = 14
_FLAT = 10.0  # Grey levels, standard deviation of a line: below it the line is margin.
_SMOOTH = 1.0  # Pixels of the thumbnail: sigma of the Gaussian that is subtracted.
_ROWS = 256  # Of a block of hashes that are compared at once.


class Appearance(NamedTuple):
    """What is kept of a picture to find it again."""

    digest: str  # Equal for equal decoded pixels, grey or colour.
    thumbnail: UInt8[np.ndarray, "32 32"]


class Pair(NamedTuple):
    """Two pictures by their rows, and how alike they are."""

    first: int
    second: int
    correlation: float  # Negative where one is the other's negative.
    turned: str  # How the second is to be turned, a name in `TURNS`.


def appearance(image: UInt8[np.ndarray, "H W 3"]) -> Appearance:
    """The digest of the pixels, and the thumbnail of what is left without margins."""
    grey = without_margins(to_grey(image))
    small = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    digest = hashlib.sha256(f"{image.shape}".encode())
    digest.update(np.ascontiguousarray(image))
    return Appearance(digest.hexdigest(), np.asarray(small))


def without_margins(grey: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "h w"]:
    """The picture less the rows, then the columns, at its edges that are nearly uniform; twice.

    A line is uniform when its grey levels deviate by 10 at most. What is uniform all over stays.
    """
    kept = grey
    for axis in (1, 0, 1, 0):
        lines = np.flatnonzero(kept.std(axis, dtype=np.float32) > _FLAT)
        if not len(lines):
            return grey
        part = slice(lines[0], lines[-1] + 1)
        kept = kept[part] if axis == 1 else kept[:, part]
    return kept


def near_pairs(
    first: UInt8[np.ndarray, "n 32 32"],
    second: UInt8[np.ndarray, "m 32 32"],
    *,
    turns: Sequence[str] = ("upright",),
) -> list[Pair]:
    """Pairs whose thumbnails correlate by `NEAR` at least, or by minus that; in order of rows.

    A uniform thumbnail is like no other. Of several turns that fit, the best is given.

    Args:
      turns: Names in `TURNS` to try on the second.
    """
    best: dict[tuple[int, int], Pair] = {}
    for turn in turns:
        for pair in _near(first, np.ascontiguousarray(TURNS[turn](second)), turn):
            held = best.get(pair[:2])
            if held is None or abs(pair.correlation) > abs(held.correlation):
                best[pair[:2]] = pair
    return [best[rows] for rows in sorted(best)]


def near_pairs_within(thumbnails: UInt8[np.ndarray, "n 32 32"]) -> list[Pair]:
    """`near_pairs` of one set, each once, `first` being the smaller row."""
    return [pair for pair in near_pairs(thumbnails, thumbnails) if pair.first < pair.second]


def equal_pairs(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """Rows of all pairs of equal digests, in order."""
    rows: dict[str, list[int]] = {}
    for row, digest in enumerate(second):
        rows.setdefault(digest, []).append(row)
    return [(row, other) for row, digest in enumerate(first) for other in rows.get(digest, ())]


def components(count: int, pairs: Iterable[tuple[int, int]]) -> Int[np.ndarray, " n"]:
    """For each of `count` rows the number of its group: rows joined by a chain of pairs."""
    ends = np.array(list(pairs), np.int64).reshape(-1, 2)
    graph = sparse.coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return sparse.csgraph.connected_components(graph, directed=False)[1]


def perceptual_hash(thumbnails: UInt8[np.ndarray, "n 32 32"]) -> Bool[np.ndarray, "n 63"]:
    """Which of the 63 lowest cosine frequencies, the mean left out, are above their median.

    Of a negative nearly all bits are the others.
    """
    waves = fft.dctn(thumbnails.astype(np.float32), axes=(1, 2), norm="ortho")[:, :8, :8]
    waves = waves.reshape(len(thumbnails), 64)[:, 1:]
    return waves > np.median(waves, axis=1, keepdims=True)


def details(thumbnails: UInt8[np.ndarray, "n 32 32"]) -> Float32[np.ndarray, "n 1024"]:
    """Thumbnails less their smooth part, of mean 0 and length 1: products are correlations.

    Zeros for a uniform one.
    """
    levels = thumbnails.astype(np.float32)
    fine = levels - ndimage.gaussian_filter(levels, (0, _SMOOTH, _SMOOTH))
    fine = fine.reshape(len(levels), SIDE * SIDE)
    fine -= fine.mean(1, keepdims=True)
    length = np.linalg.norm(fine, axis=1, keepdims=True)
    return fine / np.maximum(length, 1e-2)  # One pixel of one grey level more: .9.


def _near(
    first: UInt8[np.ndarray, "n 32 32"], second: UInt8[np.ndarray, "m 32 32"], turn: str
) -> Iterator[Pair]:
    signs = [np.where(perceptual_hash(x), 1, -1).astype(np.float32) for x in (first, second)]
    fine = [details(x) for x in (first, second)]
    bits = signs[0].shape[1]
    for start in range(0, len(first), _ROWS):
        # The product of two hashes of signs: as many as agree, less those that differ.
        agreement = np.abs(signs[0][start : start + _ROWS] @ signs[1].T)
        rows, columns = np.nonzero(agreement >= bits - 2 * MOST_BITS)
        for part in range(0, len(rows), 1 << 15):
            i, j = rows[part : part + (1 << 15)] + start, columns[part : part + (1 << 15)]
            correlation = np.einsum("nd,nd->n", fine[0][i], fine[1][j])
            for k in np.flatnonzero(np.abs(correlation) >= NEAR):
                yield Pair(int(i[k]), int(j[k]), round(float(correlation[k]), 4), turn)


def _turn(quarters: int, *, mirrored: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """Of a stack of pictures: mirrored left to right if so, then turned left by quarters."""

    def turn(pictures: np.ndarray) -> np.ndarray:
        pictures = pictures[:, :, ::-1] if mirrored else pictures
        return np.rot90(pictures, quarters, axes=(1, 2))

    return turn


TURNS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {
        "upright": _turn(0),
        "turned left": _turn(1),
        "upside down": _turn(2),
        "turned right": _turn(3),
        "mirrored": _turn(0, mirrored=True),
        "mirrored, turned left": _turn(1, mirrored=True),
        "mirrored, upside down": _turn(2, mirrored=True),
        "mirrored, turned right": _turn(3, mirrored=True),
    }
)
