"""Which of an image's automatic masks are the finding: a rule fitted on the training fold.

Taking the best mask by its target is an oracle that no reader has. The honest answer is a rule that
sees the masks and the image only: a logistic regression on `FEATURES` says how likely a mask fits
an object, and all masks from a threshold on are the answer.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt8
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from pp_jax.evaluate.ambiguity import FLOOR, boundary
from pp_jax.evaluate.consistency import pairwise_iou

FEATURES = (
    "predicted_iou",
    "stability",
    "area",  # Share of the image.
    "log_area",
    "x",  # Of the centre, 0 at the left edge of the image, 1 at the right.
    "off_middle",  # |x - 1/2|
    "y",
    "mean",  # Grey level.
    "deviation",  # Of the grey levels inside.
    "contrast",  # Signed boundary contrast-to-noise ratio, 0 where it is unknown.
    "fill",  # Share of its bounding box.
    "border",  # 1 if it touches the border of the image.
)
GOOD = 0.5  # The IoU with an object from which a mask is one to take.
_NEVER = 2.0  # A threshold that no probability reaches.

Grey = UInt8[np.ndarray, "H W"] | Float[np.ndarray, "H W"]
# The Dice of the union of an image's first 1, 2 ... m masks, given the image and their order.
UnionDice = Callable[[int, Int[np.ndarray, " m"]], Float[np.ndarray, " m"]]


class Rule(NamedTuple):
    """A logistic regression on standardised features, and from which probability on it takes."""

    mean: Float64[np.ndarray, " F"]
    scale: Float64[np.ndarray, " F"]
    weights: Float64[np.ndarray, " F"]
    bias: float
    threshold: float
    masks: int  # Fitted on.
    positives: int  # Of them.


# Applying a rule.


def features(
    image: Grey, mask: Bool[np.ndarray, "H W"], *, predicted_iou: float, stability: float
) -> Float64[np.ndarray, " F"]:
    """What a rule may know of one mask: the values of `FEATURES`, all finite.

    Args:
      image: Grey levels in [0, 255].
      mask: At the size of the image.
      predicted_iou: As the model says.
      stability: As `automatic.generate` says.

    Raises:
      ValueError: The mask is empty.
    """
    rows, columns = (np.count_nonzero(mask, axis=axis) for axis in (1, 0))
    area, (height, width) = int(rows.sum()), mask.shape
    if not area:
        raise ValueError("an empty mask has no features: leave it out")
    x, y = (
        float(line @ (np.arange(len(line)) + 0.5)) / (area * len(line)) for line in (columns, rows)
    )
    levels = image[mask].astype(np.float64)
    box = np.prod([np.ptp(np.flatnonzero(line)) + 1 for line in (rows, columns)])
    share, edges = area / (height * width), (rows[0], rows[-1], columns[0], columns[-1])
    sides = boundary(image, mask)
    contrast = (sides.inside - sides.outside) / max(sides.spread, FLOOR) if sides else 0.0
    return np.array(
        [
            predicted_iou,
            stability,
            share,
            np.log(share),
            x,
            abs(x - 0.5),
            y,
            levels.mean(),
            levels.std(),
            contrast,
            area / box,
            any(edges),
        ],
        np.float64,
    )


def probability(rule: Rule, features: Float[np.ndarray, "n F"]) -> Float64[np.ndarray, " n"]:
    """How likely each mask fits an object, in [0, 1], as the rule has it.

    The highest of an image is its confidence that there is a finding.
    """
    return expit(((features - rule.mean) / rule.scale) @ rule.weights + rule.bias)


def select(rule: Rule, features: Float[np.ndarray, "n F"]) -> Bool[np.ndarray, " n"]:
    """Which masks of one image the rule takes: the likeliest, and all from its threshold on."""
    likely = probability(rule, features)
    taken = likely >= rule.threshold
    if len(taken):
        taken[np.argmax(likely)] = True
    return taken


def oracle(
    masks: Bool[np.ndarray, "n H W"], objects: Bool[np.ndarray, "N H W"]
) -> Bool[np.ndarray, "N H W"]:
    """For each object the mask of the highest IoU with it, empty where there is no mask at all.

    The best answer that any choice among the masks could give; it looks at the objects.
    """
    if not len(masks):
        return np.zeros_like(objects)
    return masks[pairwise_iou(objects, masks).argmax(-1)]


# Fitting a rule.


def best_iou(
    masks: Bool[np.ndarray, "n H W"], objects: Bool[np.ndarray, "N H W"]
) -> Float64[np.ndarray, " n"]:
    """Each mask's IoU with the object that it fits best, in [0, 1]; 0 where there is no object."""
    return pairwise_iou(masks, objects).max(-1, initial=0.0)


def fit_rule(
    features: Float[np.ndarray, "n F"],
    ious: Float[np.ndarray, " n"],
    images: Int[np.ndarray, " n"],
    *,
    union_dice: UnionDice,
) -> Rule:
    """The rule for masks of the given features, fitted on images whose objects are known.

    Its weights tell masks of an IoU of at least .5 from the others; its threshold is the one with
    the highest mean over the images of the union's Dice, of equal ones the highest. Where all masks
    are alike in that respect the weights rank by predicted IoU alone, and if none is good the rule
    takes only the mask with the highest one.

    Args:
      features: Of all masks of all images.
      ious: See `best_iou`.
      images: The image of each mask, as `union_dice` knows it.
      union_dice: See `growing_dice`. It is called once per image, with the indices of all its masks
        in the order in which they stand in `features`.

    Raises:
      ValueError: There is no mask, or not one row of each for every mask.
    """
    if not len(features) or not len(features) == len(ious) == len(images):
        raise ValueError(
            f"{len(features)} masks with features, {len(ious)} with an IoU, {len(images)} with an "
            "image: a rule is fitted on one or more that have all three"
        )
    good, scale = ious >= GOOD, features.std(0)
    mean, scale = features.mean(0), np.where(scale > 0, scale, 1.0)
    weights, bias = _weights((features - mean) / scale, good)
    rule = Rule(mean, scale, weights, bias, _NEVER, len(good), int(good.sum()))
    if not good.any():
        return rule
    likely = probability(rule, features)
    return rule._replace(threshold=_best_threshold(likely, images, union_dice))


def growing_dice(
    masks: Iterable[Bool[np.ndarray, "H W"]], target: Bool[np.ndarray, "H W"]
) -> Float64[np.ndarray, " m"]:
    """The Dice of the union of the first 1, 2 ... of the masks against the target, in [0, 1].

    One pass over the masks, one of which is looked at at a time.
    """
    size, union, common, total = np.count_nonzero(target), np.zeros_like(target), 0, 0
    values = []
    for mask in masks:
        new = mask & ~union
        union |= new
        common += np.count_nonzero(new & target)
        total += np.count_nonzero(new)
        values.append(2 * common / (total + size) if total + size else 1.0)
    return np.array(values, np.float64)


def _weights(
    standardised: Float64[np.ndarray, "n F"], good: Bool[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " F"], float]:
    if good.all() or not good.any():
        return np.array([float(name == "predicted_iou") for name in FEATURES]), 0.0
    model = LogisticRegression(max_iter=1000).fit(standardised, good)
    return model.coef_[0].astype(np.float64), float(model.intercept_[0])


def _best_threshold(
    likely: Float64[np.ndarray, " n"], images: Int[np.ndarray, " n"], union_dice: UnionDice
) -> float:
    """The threshold with the highest mean Dice.

    As the threshold falls, one mask after the other joins its image's union, and the mean changes
    by what that union gains or loses: a running sum over all masks, the likeliest first.
    """
    gains = np.zeros(len(likely))
    for image in np.unique(images):
        own = np.flatnonzero(images == image)
        order = np.argsort(-likely[own], kind="stable")
        gains[own[order[1:]]] = np.diff(union_dice(int(image), order))  # The first is always taken.
    falling = np.argsort(-likely, kind="stable")
    levels, total = likely[falling], np.cumsum(gains[falling])
    whole = np.append(levels[1:] < levels[:-1], True)  # Equally likely masks join together.
    at = int(np.flatnonzero(whole)[np.argmax(total[whole])])
    below = levels[at + 1] if at + 1 < len(levels) else 0.0
    return float((levels[at] + below) / 2)


# Rules as plain values.


def to_plain(rule: Rule) -> dict[str, Any]:
    """The rule as numbers and lists, for a JSON file."""
    values = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in rule._asdict().items()
    }
    return {"features": list(FEATURES), **values}


def from_plain(values: Mapping[str, Any]) -> Rule:
    """The inverse of `to_plain`.

    Raises:
      ValueError: The rule was fitted on other features than today's.
    """
    if tuple(values["features"]) != FEATURES:
        raise ValueError(
            f"the rule knows masks by {', '.join(values['features'])}, not by "
            f"{', '.join(FEATURES)}: fit it again"
        )
    rule = Rule(**{name: values[name] for name in Rule._fields})
    arrays = {name: np.array(getattr(rule, name), float) for name in ("mean", "scale", "weights")}
    return rule._replace(**arrays)
