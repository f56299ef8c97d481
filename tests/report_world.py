"""Rows of an evaluation that never took place: drawn numbers, from which reports are made."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pp_jax.eval_config import EvalConfig
from pp_jax.evaluate import report
from pp_jax.evaluate.calibration import Reliability
from pp_jax.evaluate.evidence import Evidence
from pp_jax.evaluate.methods import Source
from pp_jax.evaluate.metrics import METRICS
from pp_jax.evaluate.protocols import Drawn, parse_protocols, to_plain
from pp_jax.evaluate.score import Scores
from pp_jax.evaluate.subjects import CONFIDENCES, MODEL, ORACLE, Marks

FIRST, OTHER, SWAPPED, TWIN = "first", "other", "first, another patient's image", "first, blind"
GUESSES = ("filled box", "inscribed ellipse", "mean shape", "atlas", "Otsu")
# Where the Dice of a method lies; Otsu sees pixels.
LEVELS = {FIRST: 0.8, OTHER: 0.7, SWAPPED: 0.3, TWIN: 0.5, "mean shape": 0.55, "Otsu": 0.75}
LOOK = {"filter": "none", "fusion": "replace", "blend": 0.5, "roi": "none", "preprocess": "sam"}
NORMAL, OTHERWISE = "Normal", "No Lung Opacity / Not Normal"


def model(label: str, *, kind: str = "model", of: str = "", **changed: Any) -> dict[str, Any]:
    """What is known of a model."""
    facts = {
        "seed": "",
        "folder": f"runs/{label}",
        "fold": False,
        "variant": "tiny",
        "weights": "0123456789abcdef" * 4,
        "trained_on": "synthetic",
        "trained_under": "box",
        "training_seed": 0,
        "from_random": False,
        "look": LOOK,
        "refine": [],
    }
    return {"label": label, "kind": kind, "of": of} | facts | changed


MODELS = (model(FIRST), model(SWAPPED, kind="swap", of=FIRST), model(OTHER))


def images(patients: int, *, negatives: bool = True) -> list[dict[str, Any]]:
    """Two images of every third patient, one of the others; every fourth patient has no finding."""
    found = []
    for number in range(patients):
        healthy = negatives and number % 4 == 3
        for index in range(2 if number % 3 == 0 else 1):
            found.append(
                {
                    "dataset": "set",
                    "id": f"i{number}_{index}",
                    "patient": f"p{number}",
                    "target": "mask",
                    "label": (NORMAL, OTHERWISE)[number % 8 == 3] if healthy else "Opacity",
                    "view": ("AP", "PA")[number % 2],
                    "sex": ("F", "M", "")[number % 3],
                    "age": None if number % 5 == 4 else 20.0 + 9 * (number % 7),
                    "objects": 0 if healthy else 1 + (number + index) % 2,
                }
            )
    return found


def figures(rng: np.random.Generator, level: float, *, thin: bool, empty: bool) -> dict[str, Any]:
    """A value of each metric, but for the thin parts of a target that has none."""
    dice = 0.0 if empty else float(np.clip(level + 0.1 * rng.standard_normal(), 0, 1))
    held: dict[str, Any] = {name: float(rng.random()) * (not empty) for name in METRICS}
    held |= {"dice": dice, "f1": dice, "iou": dice / (2 - dice), "hd95": 100 * (1 - dice)}
    held |= {"spurious_count": float(rng.integers(3)) * (not empty), "hd95_mm": None}
    return held | {"thin_recall": held["recall"] if thin else None}


def rows_of(
    method: str,
    protocol: str,
    image: Mapping[str, Any],
    *,
    seed: str = "",
    choice: str = MODEL,
    empty: bool = False,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One method's rows of one image: per object, and for all of it."""
    name = "/".join((method, protocol, image["dataset"], image["id"], seed, choice))
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    key = {"method": method, "seed": seed, "protocol": protocol, "choice": choice}
    facts = {column: value for column, value in image.items() if column != "objects"}
    guessed = method in GUESSES or choice == ORACLE
    level = LEVELS.get(method, 0.4) + 0.1 * (choice == ORACLE)
    thin = image["patient"] != "p0"  # Whose targets have no thin part.
    objects = []
    for index in range(image["objects"]):
        drawn = np.random.default_rng(zlib.crc32(f"{image['id']}/{index}".encode()))
        sure = (
            dict.fromkeys(CONFIDENCES)
            if guessed
            else dict(zip(CONFIDENCES, rng.random(6), strict=True))
        )
        own = figures(rng, level, thin=thin, empty=empty)
        objects.append(
            key
            | facts
            | {"object": index, "area": float(5 * drawn.random()), "contrast": drawn.random()}
            | {n: None if v is None else float(v) for n, v in sure.items()}
            | {"empty": "one" if empty else "neither"}
            | {"error": "missed" if empty else "over" if own["dice"] < 0.6 else ""}
            | own
        )
    truth = bool(image["objects"])
    nothing = empty and not truth
    whole = figures(rng, level, thin=thin, empty=empty) | (
        {"dice": 1.0, "hd95": 0.0} if nothing else {}
    )
    free = protocol in ("none", "auto") and not guessed
    found = 0 if empty else 1
    return objects, key | facts | {
        "objects": image["objects"],
        "area": sum(row["area"] for row in objects),
        "contrast": objects[0]["contrast"] if objects else None,
        **{n: objects[0][n] if objects else None for n in CONFIDENCES},
        "score": float(np.clip(0.3 * truth + 0.6 * rng.random(), 0, 1)) if free else None,
        "tp": min(found, image["objects"]),
        "fp": found - min(found, image["objects"]),
        "fn": image["objects"] - min(found, image["objects"]),
        "matched_iou": 0.7 * min(found, image["objects"]),
        "empty": ("both" if nothing else "one") if empty or not truth else "neither",
        "error": "",
        **whole,
    }


def detection(row: Mapping[str, Any]) -> dict[str, Any]:
    """Boxes that were found in the image of a row, beside the true ones."""
    rng = np.random.default_rng(zlib.crc32("/".join(map(str, row.values())).encode()))
    truth = np.array([[10 + 40 * k, 10, 40 + 40 * k, 40] for k in range(row["objects"])], float)
    moved = (truth + rng.integers(-5, 6, truth.shape)).tolist()
    boxes = [box for box in moved if rng.random() < 0.8] if row["empty"] != "both" else []
    boxes += [[60.0, 60.0, 80.0, 80.0]] if rng.random() < 0.3 and row["empty"] != "both" else []
    key = ("method", "seed", "protocol", "choice", "dataset", "id", "patient", "label")
    told = {"boxes": boxes, "confidences": rng.random(len(boxes)).tolist()}
    return {name: row[name] for name in key} | told | {"truth": truth.tolist()}


def make_scores(
    shown: Sequence[Mapping[str, Any]],
    methods: Sequence[tuple[str, str]],
    protocols: Sequence[str],
    *,
    empty: bool = False,
) -> Scores:
    """What an evaluation of methods (each with the seed of a run) would have found."""
    scores = Scores([], [], [], {}, {}, {}, {})
    for method, seed in methods:
        for image in shown:
            for protocol in protocols:
                free = protocol in ("none", "auto")
                blind = method in GUESSES and (
                    protocol.startswith("clicks") or (free and method not in ("atlas", "Otsu"))
                )
                if blind or not (free or image["objects"]):
                    continue
                guessed = method in GUESSES
                for choice in (MODEL,) if guessed or protocol != "box" else (MODEL, ORACLE):
                    none = empty and not guessed and choice == MODEL
                    told = rows_of(method, protocol, image, seed=seed, choice=choice, empty=none)
                    scores.objects.extend(told[0])
                    scores.images.append(told[1])
                if free:
                    scores.detections.append(detection(scores.images[-1]))
                scores.seconds.setdefault((method, protocol), []).append(0.5)
                if image["objects"]:
                    boxes = np.array([[2.0, 2.0, 9.0, 9.0]] * image["objects"])
                    drawn = Drawn(Marks(boxes=boxes), np.zeros((len(boxes), 0)))
                    scores.prompts.setdefault(protocol, {})[image["id"]] = to_plain(drawn)
        if method not in GUESSES:
            rng = np.random.default_rng(len(method) + len(seed))
            counts = rng.integers(1, 50, 15)
            sums = (counts * rng.random(15) for _ in range(3))
            scores.reliability[method, seed, "box"] = Reliability(counts, *sums, len(shown), 0)
    return scores


def make_plan(
    shown: Sequence[Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]],
    protocols: str,
    *,
    missing: Mapping[str, str] | None = None,
    **changed: Any,
) -> dict[str, Any]:
    """What was laid down before."""
    given = {"data": "synthetic", "data_dir": "datasets/synthetic", "samples": 200} | changed
    sources = [Source(i["dataset"], i["id"], i["patient"], lambda: None) for i in shown]
    return report.make_plan(
        EvalConfig(**given),
        parse_protocols(protocols),
        models,
        missing=missing or {},
        images=sources,
    )


def evidence(
    patients: int = 8,
    *,
    protocols: str = "box,none",
    models: Sequence[Mapping[str, Any]] = MODELS,
    guesses: Sequence[str] = GUESSES,
    target: str = "mask",
    empty: bool = False,
    missing: Mapping[str, str] | None = None,
    **changed: Any,
) -> Evidence:
    """An evaluation of the models and guesses; `changed` are fields of `EvalConfig`."""
    shown = [image | {"target": target} for image in images(patients)]
    specs = []
    for spec, protocol in parse_protocols(protocols).items():
        specs += [f"clicks:{k + 1}" for k in range(protocol.rounds)] if protocol.rounds else [spec]
    methods = [(m["label"], m["seed"]) for m in models] + [(name, "") for name in guesses]
    scores = make_scores(shown, methods, specs, empty=empty)
    return Evidence(scores, make_plan(shown, models, protocols, missing=missing, **changed))


def mean_of(rows: Sequence[Mapping[str, Any]], column: str = "dice") -> float:
    """Images of a patient, then patients, then seeds, without the code that is tested."""
    seeds = sorted({row["seed"] for row in rows})
    totals = []
    for seed in seeds:
        by_patient: dict[str, list[float]] = {}
        for row in rows:
            if row["seed"] == seed and row[column] is not None:
                by_patient.setdefault(row["patient"], []).append(float(row[column]))
        totals.append(np.mean([np.mean(own) for own in by_patient.values()]))
    return float(np.mean(totals))
