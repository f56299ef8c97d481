"""Automatic masks in an evaluation: proposed once, chosen by a rule that was fitted elsewhere.

The rule is fitted on the run's own training images; where there are none, on the images of other
patients among those that are scored, in five parts.
"""

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import Bool, Float, Int, UInt8
from tqdm import tqdm

from pp_jax.evaluate import selection
from pp_jax.evaluate.methods import Source
from pp_jax.evaluate.selection import Rule
from pp_jax.evaluate.subjects import Subject
from pp_jax.predict.automatic import AutomaticConfig
from pp_jax.predict.masks import Rle, decode_rle, encode_rle
from pp_jax.preprocess.colour import to_grey
from pp_jax.preprocess.geometry import resize_image

# More pass than in the official generator, whose limits presuppose SAM's own scores on photographs.
IOU, STABILITY = 0.5, 0.8
FITTED = 20  # Images that a rule is fitted on, at most.
LONGEST = 1024  # Pixels: every one of hundreds of masks is scaled up to the image to be judged.
_PARTS = 5
_NEVER = 2.0  # A threshold that no probability reaches.

Image = UInt8[np.ndarray, "H W 3"]
Generate = Callable[[Image], list[dict[str, Any]]]  # Records with run lengths.


class Proposals(NamedTuple):
    """The automatic masks of one image, as run lengths, with what a rule may know of them."""

    rles: Sequence[Any]
    features: Float[np.ndarray, "n F"]
    seconds: float


class Found(NamedTuple):
    """The automatic masks of one image, and which of them are the answer."""

    masks: Bool[np.ndarray, "n H W"]
    predicted_iou: Float[np.ndarray, " n"]
    stability: Float[np.ndarray, " n"]
    probability: Float[np.ndarray, " n"]  # That a mask fits an object, as the rule has it.
    taken: Bool[np.ndarray, " n"]
    seconds: float  # That the proposals took.


# Of what a model is shown, and whose findings it is asked for.
Search = Callable[[Image, Subject], Found]


def config(points: int) -> AutomaticConfig:
    """The generator's parameters in an evaluation, for a grid of `points` to a side."""
    return AutomaticConfig(
        points_per_side=points,
        pred_iou_thresh=IOU,
        stability_score_thresh=STABILITY,
        output_mode="uncompressed_rle",
    )


def make_searcher(
    generate: Generate,
    *,
    fit: Sequence[Source],
    scored: Sequence[Source],
) -> Search:
    """A search whose rules never saw the patient that they choose for.

    Args:
      generate: Proposes the masks of an image.
      fit: Training images; none: the rules are fitted on other patients of `scored`.
      scored: All images that it may be asked for.
    """
    part_of = {p: i % _PARTS for i, p in enumerate(sorted({one.patient for one in scored}))}
    fit = [one for one in fit if one.patient not in part_of]
    groups = [_spread(fit)] if fit else [_others(scored, part_of, i) for i in range(_PARTS)]
    kept = {one.id for group in groups for one in group}
    searched: dict[str, Searched] = {}
    rules: dict[int, Rule] = {}

    def search(name: str, read: Callable[[], Subject]) -> Searched:
        if name not in searched:
            searched[name] = _search(generate, read())
        return searched[name]

    def rule_for(patient: str) -> Rule:
        index = 0 if fit else part_of[patient]
        if index not in rules:
            told = tqdm(groups[index], desc="fitting the rule for automatic masks", unit="image")
            rules[index] = fit_rule([search(one.id, one.read) for one in told])
        return rules[index]

    def find(image: Image, subject: Subject) -> Found:
        rule = rule_for(subject.patient)
        # Another's image may be shown in the place of the subject's.
        if image is subject.image and subject.id in kept:
            found = search(subject.id, lambda: subject).proposals
        else:
            found = propose(generate, image)
        return _choose(found, rule, size=subject.findings.shape)

    return find


def propose(generate: Generate, image: Image) -> Proposals:
    """The masks that the generator finds in an image, the empty ones left out.

    An image larger than SAM sees it is searched at that size, and its masks are scaled up after.
    """
    start = perf_counter()
    large = max(image.shape[:2]) > LONGEST
    shown = resize_image(image, longest=LONGEST) if large else image
    records = generate(shown)
    seconds = perf_counter() - start
    grey = to_grey(shown)
    rles, rows = [], []
    for one in records:
        mask = decode_rle(one["segmentation"])
        if mask.any():
            scores = {"predicted_iou": one["predicted_iou"], "stability": one["stability_score"]}
            rows.append(selection.features(grey, mask, **scores))
            rles.append(_scaled(mask, image.shape[:2]) if large else one["segmentation"])
    features = np.array(rows, float).reshape(-1, len(selection.FEATURES))
    return Proposals(rles, features, seconds)


def _scaled(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Rle:
    """The mask at another size: what is more than half covered, bilinearly."""
    levels = PIL.Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
    return encode_rle(np.asarray(levels.resize(size[::-1], PIL.Image.Resampling.BILINEAR)) > 127)


class Searched(NamedTuple):
    """An image whose findings are known, for the fit of a rule."""

    proposals: Proposals
    ious: Float[np.ndarray, " n"]  # With the object that each fits best.
    findings: Bool[np.ndarray, "H W"]


def _search(generate: Generate, subject: Subject) -> Searched:
    found = propose(generate, subject.image)
    masks = _masks(found, subject.findings.shape)
    return Searched(found, selection.best_iou(masks, subject.objects), subject.findings)


def _others(scored: Sequence[Source], part_of: Mapping[str, int], part: int) -> list[Source]:
    """What the rule for the patients of one part is fitted on."""
    return _spread([one for one in scored if part_of[one.patient] != part])


def _spread(sources: Sequence[Source]) -> list[Source]:
    """At most `FITTED` of them, evenly."""
    count = min(len(sources), FITTED)
    return [sources[i * len(sources) // count] for i in range(count)]


def fit_rule(images: Sequence[Searched]) -> Rule:
    """The rule for automatic masks; where no image has any, the highest predicted IoU decides."""

    def union_dice(image: int, order: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        rles, findings = images[image].proposals.rles, images[image].findings
        return selection.growing_dice((decode_rle(rles[i]) for i in order), findings)

    if not any(len(one.ious) for one in images):
        count = len(selection.FEATURES)
        first = np.array([float(name == "predicted_iou") for name in selection.FEATURES])
        return Rule(np.zeros(count), np.ones(count), first, 0.0, _NEVER, 0, 0)
    return selection.fit_rule(
        np.concatenate([one.proposals.features for one in images]),
        np.concatenate([one.ious for one in images]),
        np.concatenate([np.full(len(one.ious), i) for i, one in enumerate(images)]),
        union_dice=union_dice,
    )


def _masks(found: Proposals, size: tuple[int, int]) -> Bool[np.ndarray, "n H W"]:
    masks = np.zeros((len(found.rles), *size), bool)
    for mask, rle in zip(masks, found.rles, strict=True):
        mask[:] = decode_rle(rle)
    return masks


def _choose(found: Proposals, rule: Rule, *, size: tuple[int, int]) -> Found:
    columns = [selection.FEATURES.index(name) for name in ("predicted_iou", "stability")]
    predicted, stability = found.features[:, columns].T
    return Found(
        _masks(found, size),
        predicted,
        stability,
        selection.probability(rule, found.features),
        selection.select(rule, found.features),
        found.seconds,
    )
