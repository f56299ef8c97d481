"""A filter for each image, chosen from the image's own statistics by a rule of the other folds.

After "Do Edges Matter?" (Zaha et al. 2025, arXiv 2508.02281). The same: standard deviation and
entropy of the raw image choose among models that are trained already. Different: there one of two
models, pre-trained on raw or on Kirsch-filtered images, all fine-tuned on raw ones, and images of
seven kinds; here any number of models, each of which sees its own filter in training and in use,
the contrast as a third statistic, and a small tree that predicts the scores themselves. Where all
images are of one kind, less can be gained than there.

Fit and use never share a fold. What stays: the scores of the other folds are of models that were
trained on this fold too, as in any cross-validated stacking; the rule itself sees none of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.tree import DecisionTreeRegressor

from pp_jax.evaluate.ambiguity import Grey
from pp_jax.evaluate.analysis import column, p_value
from pp_jax.evaluate.evidence import NUMBERS, name_of, numbers
from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.sections import Cell, Column, Section, Table
from pp_jax.evaluate.statistics import Comparison, compare, interval_of
from pp_jax.evaluate.subjects import MODEL, Row
from pp_jax.evaluate.tables import text

HEADING = "A filter for each image"
SINGLE, ADAPTIVE, ORACLE = "best single filter", "adaptive choice", "oracle choice"
DEPTH = 2  # Questions to an image.
LEAF = 10  # Patients behind each answer: one with several images counts as one.

_METHOD = (
    "For each image a filter is chosen from {statistics} of its grey levels. The rule is a tree of "
    "at most {depth} questions with at least {leaf} patients behind each answer, fitted for each "
    "seed and fold on the other folds alone, and so is the best single filter."
)
_ORACLE = (
    "Oracle choice: the best filter of each image by its own score. No rule can have it: it is an "
    "upper bound, and above every filter by chance alone."
)
_SECONDARY = (
    "Secondary: images with a finding, paired, p (Wilcoxon on patient means) not corrected."
)
_STACKED = (
    "The scores that a rule is fitted on are of models that were trained on the rule's test fold "
    "too; no score of that fold itself is in the fit."
)
_ONE_FOLD = "Prompt: {prompt}. No rule: the images with a value lie in fewer than two folds."


class Statistic(NamedTuple):
    """A row of `STATISTICS`."""

    measure: Callable[[Float[np.ndarray, " n"]], float]  # Of grey levels in [0, 255].
    label: str
    unit: str


class Rule(NamedTuple):
    """Which filter an image gets, fitted on images of other folds."""

    tree: DecisionTreeRegressor  # Of each filter's score minus the mean of the image's scores.
    single: int  # The filter that is best on average there.
    images: int  # Fitted on.
    patients: int


class Choices(NamedTuple):
    """The filter of each image, as numbers of columns of the scores."""

    chosen: Int[np.ndarray, " n"]
    single: Int[np.ndarray, " n"]  # The best one for all, of the same other folds.
    rules: Mapping[int, Rule]  # By the fold that each is used on.


class _Answers(NamedTuple):
    """What the section has of one protocol."""

    rows: Mapping[str, list[Row]]  # By choice: the reference, `SINGLE`, `ADAPTIVE`, `ORACLE`.
    filters: Mapping[str, list[str]]  # Beside `rows`.
    rules: Mapping[tuple[str, int], Rule]  # By seed and fold.


# Statistics of an image.


def describe(image: Grey, *, size: tuple[int, int] | None = None) -> dict[str, float]:
    """The value of each row of `STATISTICS`, of all pixels alike.

    Args:
      image: Grey levels in [0, 255], before any filter.
      size: Height and width of the image on a padded canvas; None: there is no padding.

    Raises:
      ValueError: No pixel, or a level outside of [0, 255].
    """
    height, width = size or image.shape
    levels = np.asarray(image[:height, :width], np.float64).ravel()
    # Written so that NaN fails, too.
    if not levels.size or not (levels.min() >= 0 and levels.max() <= 255):
        told = f"{levels.min():g} to {levels.max():g}" if levels.size else "none"
        raise ValueError(f"grey levels of an image must lie in [0, 255], these: {told}")
    return {name: float(row.measure(levels)) for name, row in STATISTICS.items()}


def entropy(levels: Float[np.ndarray, " n"]) -> float:
    """Shannon's entropy of the histogram of 256 grey levels, bits, in [0, 8].

    Levels between two whole ones count for the nearer.
    """
    counts = np.bincount(np.rint(levels).astype(int), minlength=256)
    shares = counts[counts > 0] / counts.sum()
    return float(np.sum(shares * np.log2(1 / shares)))


def rms_contrast(levels: Float[np.ndarray, " n"]) -> float:
    """Standard deviation over mean, 0 or more; 0 of a black image.

    RMS contrast as in Kukkonen et al., Vision Research 33 (1993): the root mean square of local
    contrast. Michelson's, of the lightest and the darkest, is 1 for every image with a black rim.
    """
    mean = levels.mean()
    return float(levels.std() / mean) if mean else 0.0


# The rule.


def fit(
    statistics: Float[np.ndarray, "n S"],
    scores: Float[np.ndarray, "n F"],
    patients: Sequence[str],
    *,
    seed: int = 0,
    depth: int = DEPTH,
    leaf: int = LEAF,
) -> Rule:
    """The rule of some images; each patient counts once, as in every mean of a report.

    The tree predicts differences between filters: with the scores as they are, its questions would
    tell hard images from easy ones, which is no choice. With fewer than `2 * leaf` patients it asks
    nothing and chooses the best single filter.

    Args:
      statistics: Of each image.
      scores: Of each image under each filter, higher is better.
      patients: Of each image.
      seed: Decides between questions that are equally good.
      depth: Questions to an image at most.
      leaf: Patients behind each answer at least.
    """
    _, owner, images = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
    weights, count = 1 / images[owner], len(images)
    tree = DecisionTreeRegressor(
        max_depth=depth,
        min_samples_split=2 if count >= 2 * leaf else len(scores) + 1,
        # Weights of a patient's three images sum to 1 but for the last bit.
        min_weight_fraction_leaf=min(0.5, (leaf - 1e-6) / count),
        random_state=seed,
    )
    tree.fit(statistics, scores - scores.mean(1, keepdims=True), sample_weight=weights)
    single = _best(np.average(scores, axis=0, weights=weights))
    return Rule(tree, int(single), len(scores), count)


def choose(rule: Rule, statistics: Float[np.ndarray, "n S"]) -> Int[np.ndarray, " n"]:
    """The filter of the highest predicted score for each image; the first of equal ones."""
    return _best(rule.tree.predict(statistics))


def words(rule: Rule, *, filters: Sequence[str], statistics: Sequence[str]) -> str:
    """The rule as people read it: `if SD ≤ 41.2 grey levels: clahe, else none`.

    Questions that do not change the answer are left out; bounds are rounded to four digits.

    Args:
      rule: As `fit` has made it.
      filters: Names of the columns of its scores.
      statistics: Names of the columns of its statistics; rows of `STATISTICS` show their units.
    """
    tree = rule.tree.tree_
    answers = _best(tree.value[:, :, 0])

    def told(node: int) -> str:
        left, right = tree.children_left[node], tree.children_right[node]
        if left < 0:  # A leaf.
            return filters[answers[node]]
        below, above = told(left), told(right)
        if below == above:
            return below
        name = statistics[tree.feature[node]]
        row = STATISTICS.get(name)
        bound = f"{row.label if row else name} ≤ {tree.threshold[node]:.4g}"
        asked = bound + (f" {row.unit}" if row and row.unit else "")
        inner = f"({below})" if " " in below else below
        return f"if {asked}: {inner}, else {above}"

    return told(0)


def cross_fitted(
    statistics: Float[np.ndarray, "n S"],
    scores: Float[np.ndarray, "n F"],
    folds: Int[np.ndarray, " n"],
    patients: Sequence[str],
    *,
    seed: int = 0,
    depth: int = DEPTH,
    leaf: int = LEAF,
) -> Choices:
    """The choice for each image by a rule that was fitted on the other folds alone.

    Args:
      statistics: Of each image.
      scores: Of each image under each filter, two at least; higher is better.
      folds: Of each image.
      patients: Of each image.
      seed: As for `fit`, and so are the others.

    Raises:
      ValueError: Not one of each for each image, a number that is not finite, fewer than two
        filters or folds, or a patient in two folds.
    """
    _check(statistics, scores, folds, patients)
    chosen, single = np.zeros(len(scores), int), np.zeros(len(scores), int)
    names, rules = np.asarray(patients), {}
    for fold in np.unique(folds).tolist():
        test = folds == fold
        rule = fit(
            statistics[~test], scores[~test], names[~test], seed=seed, depth=depth, leaf=leaf
        )
        chosen[test], single[test] = choose(rule, statistics[test]), rule.single
        rules[fold] = rule
    return Choices(chosen, single, rules)


def _best(scores: Float[np.ndarray, "*n F"]) -> Int[np.ndarray, "*n"]:
    """The first of the highest; what differs in the last bits of a sum is equal."""
    return np.round(scores, 12).argmax(-1)


def _check(
    statistics: Float[np.ndarray, "n S"],
    scores: Float[np.ndarray, "n F"],
    folds: Int[np.ndarray, " n"],
    patients: Sequence[str],
) -> None:
    sizes = [len(one) for one in (statistics, scores, folds, patients)]
    if len(set(sizes)) > 1:
        told = "{} statistics, {} scores, {} folds, {} patients".format(*sizes)
        raise ValueError(f"{told}: each image needs one of each")
    if not (np.isfinite(statistics).all() and np.isfinite(scores).all()):
        raise ValueError("a statistic or score is not finite: leave out images without a value")
    if scores.shape[1] < 2:
        raise ValueError(f"{scores.shape[1]} filter: a choice needs two or more")
    if len(np.unique(folds)) < 2:
        raise ValueError("a rule is fitted on other folds: give two or more that have images")
    home: dict[str, int] = {}
    for patient, fold in zip(patients, folds.tolist(), strict=True):
        if home.setdefault(patient, fold) != fold:
            both = f"{home[patient]} and {fold}"
            raise ValueError(f"patient {patient!r} is in the folds {both}: split by patients")


# What a report says.


def section(
    rows: Sequence[Row],
    statistics: Mapping[str, Mapping[str, float]],
    folds: Mapping[tuple[str, str], int],
    *,
    filters: Sequence[str],
    metric: str = "dice",
    margin: float = 0.02,
    samples: int = 10_000,
    seed: int = 0,
) -> Section:
    """The adaptive choice against the first filter, the best single one and an oracle.

    One table of choices and one of rules for each protocol. Each seed has rules of its own.

    Args:
      rows: Per image, as of a report's images.csv; those of other methods, of masks that an oracle
        chose, and of images without a finding are left out.
      statistics: By id of an image, as `describe` gives them.
      folds: By seed and id.
      filters: The models, as `method` names them; the first is what all are compared with.
      metric: A row of `METRICS`.
      margin: Largest difference that does not matter.
      samples: Of the bootstrap.
      seed: Of the bootstrap and of the rules.

    Raises:
      ValueError: An image twice, in two data sets, without a row of a filter, without statistics
        or without a fold; a filter without rows; and as for `cross_fitted`.
    """
    draws = {"metric": metric, "samples": samples, "seed": seed}
    held = _by_protocol(rows, filters)
    names = next(iter(statistics.values()), {}).keys()
    labels = [STATISTICS[name].label if name in STATISTICS else name for name in names]
    method = _METHOD.format(statistics=", ".join(labels), depth=DEPTH, leaf=LEAF)
    told, made = [method], []
    for protocol, images in held.items():
        valued = _with_value(images, metric)
        if _fewest_folds(valued, folds) < 2:
            told.append(_ONE_FOLD.format(prompt=name_of(protocol)))
            continue
        found = _answers(valued, statistics, folds, filters=filters, metric=metric, seed=seed)
        table, own = _choices_table(protocol, found, margin=margin, **draws)
        told.append(f"Prompt: {name_of(protocol)}. {_sentence(own, metric)}")
        made += [table, _rules_table(protocol, found, filters=filters, statistics=list(names))]
    return Section(HEADING, told, made)


def _by_protocol(
    rows: Sequence[Row], filters: Sequence[str]
) -> dict[str, dict[tuple[str, str], dict[str, Row]]]:
    """The row of each filter, by protocol, then by seed and id."""
    held: dict[str, dict[tuple[str, str], dict[str, Row]]] = {}
    for row in rows:
        if row["method"] not in filters or row["choice"] != MODEL or not row["objects"]:
            continue
        of_image = held.setdefault(row["protocol"], {}).setdefault((row["seed"], row["id"]), {})
        if any(row["dataset"] != one["dataset"] for one in of_image.values()):
            raise ValueError(f"image {row['id']!r} is in two data sets: give rows of one")
        if row["method"] in of_image:
            raise ValueError(f"image {row['id']!r} stands twice under {row['method']!r}")
        of_image[row["method"]] = row
    if not held:
        raise ValueError(f"no rows of {', '.join(filters)} with a finding to choose among")
    for images in held.values():
        for (seed, name), of_image in images.items():
            if missing := [one for one in filters if one not in of_image]:
                raise ValueError(
                    f"image {name!r} has no row of {missing[0]!r} under seed {seed!r}: filters are "
                    "compared on the same images"
                )
    return held


def _with_value(
    images: Mapping[tuple[str, str], Mapping[str, Row]], metric: str
) -> dict[tuple[str, str], Mapping[str, Row]]:
    """Without the images that lack a value under any filter or seed."""
    lacking = {
        name
        for (_, name), of_image in images.items()
        if any(row[metric] is None for row in of_image.values())
    }
    return {key: of_image for key, of_image in images.items() if key[1] not in lacking}


def _fewest_folds(
    images: Mapping[tuple[str, str], Mapping[str, Row]], folds: Mapping[tuple[str, str], int]
) -> int:
    """In how many folds the images of a seed lie at least."""
    there: dict[str, set[int]] = {}
    for key in images:
        if key not in folds:
            raise ValueError(f"image {key[1]!r} has no fold under seed {key[0]!r}")
        there.setdefault(key[0], set()).add(folds[key])
    return min(map(len, there.values()), default=0)


def _answers(
    images: Mapping[tuple[str, str], Mapping[str, Row]],
    statistics: Mapping[str, Mapping[str, float]],
    folds: Mapping[tuple[str, str], int],
    *,
    filters: Sequence[str],
    metric: str,
    seed: int,
) -> _Answers:
    """The row of each image under each choice, the rules fitted seed by seed."""
    sign = 1 if METRICS[metric].higher_is_better else -1
    names = list(next(iter(statistics.values()), {}))
    kinds = (filters[0], SINGLE, ADAPTIVE, ORACLE)
    made = {kind: [] for kind in kinds}
    taken = {kind: [] for kind in kinds}
    rules: dict[tuple[str, int], Rule] = {}
    for run in dict.fromkeys(key[0] for key in images):
        keys = [key for key in images if key[0] == run]
        if missing := [name for _, name in keys if name not in statistics]:
            raise ValueError(f"image {missing[0]!r} has no statistics")
        scores = np.array([[sign * images[key][f][metric] for f in filters] for key in keys], float)
        first = [images[key][filters[0]] for key in keys]
        found = cross_fitted(
            np.array([[statistics[name][one] for one in names] for _, name in keys], float),
            scores,
            np.array([folds[key] for key in keys]),
            [f"{row['dataset']}/{row['patient']}" for row in first],
            seed=seed,
        )
        rules |= {(run, fold): rule for fold, rule in found.rules.items()}
        picked = (np.zeros(len(keys), int), found.single, found.chosen, _best(scores))
        for kind, columns in zip(kinds, picked, strict=True):
            own = [filters[at] for at in columns]
            made[kind] += [images[key][f] for key, f in zip(keys, own, strict=True)]
            taken[kind] += own
    named = {kind: [{**row, "method": kind} for row in own] for kind, own in made.items()}
    return _Answers(named, taken, rules)


def _choices_table(
    protocol: str, found: _Answers, *, metric: str, margin: float, samples: int, seed: int
) -> tuple[Table, Comparison]:
    """The table, and the adaptive choice against the best single filter."""
    draws = {"metric": metric, "samples": samples, "seed": seed}
    settled = {"margin": margin, "higher_is_better": METRICS[metric].higher_is_better}
    reference = next(iter(found.rows))
    lines, asked = [], None
    for kind, own in found.rows.items():
        line: list[Cell] = [kind, _often(found.filters[kind]), interval_of(own, **draws)]
        for other in (reference, SINGLE):
            if kind in (other, reference):
                line += [None, None]
                continue
            compared = compare(own, found.rows[other], **draws, **settled)
            # That an oracle is better is no finding.
            p = None if kind == ORACLE else p_value(compared.wilcoxon)
            line += [compared.difference, p]
            if (kind, other) == (ADAPTIVE, SINGLE):
                asked = compared
        lines.append(line)
    score = column(metric)
    columns = (
        Column("choice"),
        Column("filters, images times seeds"),
        score._replace(higher_is_better=None),
        Column(f"minus {reference}", score.unit, score.digits),
        Column(f"p of minus {reference}"),
        Column(f"minus {SINGLE}", score.unit, score.digits),
        Column(f"p of minus {SINGLE}"),
    )
    counted = f"{NUMBERS}: {numbers(found.rows[reference])}."
    notes = [_SECONDARY, counted, _ORACLE, _STACKED]
    return Table(f"Prompt: {name_of(protocol)}", columns, lines, notes), asked


def _rules_table(
    protocol: str, found: _Answers, *, filters: Sequence[str], statistics: Sequence[str]
) -> Table:
    lines = [
        (
            *key,
            f"{rule.images} / {rule.patients}",
            filters[rule.single],
            words(rule, filters=filters, statistics=statistics),
        )
        for key, rule in sorted(found.rules.items())
    ]
    names = ("seed", "used on fold", "fitted on images / patients", SINGLE, "rule")
    return Table(f"Rules, prompt: {name_of(protocol)}", [*map(Column, names)], lines)


def _often(filters: Sequence[str]) -> str:
    """How many times each is there, the most frequent first."""
    names, counts = np.unique(np.asarray(filters), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return ", ".join(f"{names[at]} {counts[at]}" for at in order)


def _sentence(own: Comparison, metric: str) -> str:
    difference = text(own.difference, column(metric))
    label = METRICS[metric].label
    return f"{ADAPTIVE.capitalize()} minus {SINGLE}, {label}: {difference}; {own.verdict}."


STATISTICS: Mapping[str, Statistic] = MappingProxyType(
    {
        "sd": Statistic(np.std, "SD", "grey levels"),
        "entropy": Statistic(entropy, "entropy", "bits"),
        "contrast": Statistic(rms_contrast, "RMS contrast", ""),
    }
)
