"""The stages of the study: which programs each runs, how long they take, what they leave."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pp_jax.ablations import ABLATIONS, NONE
from pp_jax.checkpoints import MANIFEST
from pp_jax.finetune import runs
from pp_jax.jobs import Job
from pp_jax.study import cost
from pp_jax.study.cost import Sizes
from pp_jax.study.settings import PROMPTS, TUNED, ZERO_SHOT, Study

DATA = "rsna"  # The reader: RSNA's files, or files in its layout.
SCREEN = "zero-shot-filters"
DECODER, LORA, UNET, BLIND = "decoder", "lora", "unet", "decoder-blind"
CANDIDATES = tuple(name for name in ABLATIONS[SCREEN].filters if name != NONE)
_UNSEEN = ("mean_shape", "atlas")
_PROTOCOLS = 13  # Of `--prompt all`, beside automatic masks: about as many answers an image.


class Step(NamedTuple):
    """A job, and estimates of it."""

    job: Job
    seconds: float
    gib: float = 0.0


class Stage(NamedTuple):
    """A row of `STAGES`."""

    help: str
    make: Callable[[Study, Sizes, Sequence[str]], list[Step]]  # Given the filters chosen.
    chosen: bool = False  # Whether it needs to know the filters.


def steps_of(study: Study, sizes: Sizes, filters: Sequence[str] | None) -> dict[str, list[Step]]:
    """What each stage runs, by its name; without the filters, the stages up to their choice."""
    return {
        name: stage.make(study, sizes, filters or ())
        for name, stage in STAGES.items()
        if filters is not None or not stage.chosen
    }


def with_filter(name: str, model: str) -> str:
    """What a model is called that is shown a filter's response beside the image."""
    return f"{model}-{name}"


def models(filters: Sequence[str]) -> tuple[str, ...]:
    """The fine-tuned ones that the study compares."""
    return tuple(
        name
        for model in (DECODER, LORA)
        for name in (model, *(with_filter(one, model) for one in filters))
    )


# Stages.


def _convert(study: Study, sizes: Sizes, filters: Sequence[str]) -> list[Step]:
    told = ("--preprocess", study.preprocess) if study.preprocess else ()
    words = ("-m", "convert", study.sam, str(study.weights), *told)
    size = cost.file_size(study)
    return [
        Step(_made("convert", words, study.weights), cost.seconds(study, "convert", size), size)
    ]


def _prepare(study: Study, sizes: Sizes, filters: Sequence[str]) -> list[Step]:
    limit = ("--limit", str(study.limit)) if study.limit else ()
    words = ("-m", "data", "prepare", DATA, "--source", str(study.source), "--out", str(study.data))
    job = _made("prepare", (*words, *limit), study.data)
    return [Step(job, cost.seconds(study, "prepare", sizes.images), cost.prepared(sizes))]


def _zero_shot(study: Study, sizes: Sizes, filters: Sequence[str]) -> list[Step]:
    methods = (f"{ZERO_SHOT}={study.weights}",)
    grid = ("--auto-points", str(study.auto_points))
    job = _scoring(study, ZERO_SHOT, methods, "all", *grid, after=("convert", "prepare"))
    share = (study.auto_points / 32) ** 2
    took = (
        cost.seconds(study, "encode", 2 * sizes.images)
        + cost.seconds(study, "decode", _PROTOCOLS * sizes.images)
        + cost.seconds(study, "automatic", share * sizes.images)
        + cost.seconds(study, "measures", 5 * _PROTOCOLS * sizes.images)
    )
    return [Step(job, took, 0.1)]


def _screen(study: Study, sizes: Sizes, filters: Sequence[str]) -> list[Step]:
    out = study.report(SCREEN)
    words = (
        *("train.py", "--ablation", SCREEN, "--variant", study.variant),
        *("--checkpoint", str(study.weights), *_told(study), "--scored-under", ",".join(PROMPTS)),
        *("--out", str(out)),
    )
    done = (out / "ablation.html").is_file
    cells = 1 + len(CANDIDATES) * len(ABLATIONS[SCREEN].fusions)
    took = _scored(study, 2 * cells, sizes.images)
    return [Step(Job(SCREEN, words, done, ("convert", "prepare")), took, 0.1)]


def _decoder(study: Study, sizes: Sizes, filters: Sequence[str]) -> list[Step]:
    folds = (*TUNED, *study.reported)
    return _embedded(study, sizes, [(DECODER, folds, ()), (BLIND, study.reported, ("--blind",))])


def _candidates(study: Study, sizes: Sizes, filters: Sequence[str]) -> list[Step]:
    wanted = [(with_filter(one, DECODER), TUNED, _look(one)) for one in CANDIDATES]
    return _embedded(study, sizes, wanted)


def _tuning(study: Study, sizes: Sizes, filters: Sequence[str]) -> list[Step]:
    steps = []
    for fold in TUNED:
        named = {NONE: DECODER} | {one: with_filter(one, DECODER) for one in CANDIDATES}
        methods = [f"{label}={study.run(name, fold)}" for label, name in named.items()]
        after = [_job_name(name, fold) for name in named.values()]
        job = _scoring(study, f"choice-fold{fold}", (*methods, "atlas"), None, after=after)
        tested = sizes.images / study.folds
        steps.append(Step(job, _scored(study, len(methods), tested), 0.02))
    return steps


def _best(study: Study, sizes: Sizes, filters: Sequence[str]) -> list[Step]:
    wanted = [(with_filter(one, DECODER), study.reported, _look(one)) for one in filters]
    return _embedded(study, sizes, wanted, known=True)


def _lora(study: Study, sizes: Sizes, filters: Sequence[str]) -> list[Step]:
    looks = [(LORA, ()), *((with_filter(one, LORA), _look(one)) for one in filters)]
    flags = ("--trainable", "lora", "--remat", "--scan-blocks")
    took = cost.trained(study, "lora step")
    return [
        Step(_training(study, sizes, name, fold, *flags, *look), took, cost.of_run(study))
        for (name, look), fold in itertools.product(looks, study.reported)
    ]


def _unet(study: Study, sizes: Sizes, filters: Sequence[str]) -> list[Step]:
    took = cost.trained(study, "unet step")
    return [Step(_network(study, sizes, fold), took, 0.1) for fold in study.reported]


def _scores(study: Study, sizes: Sizes, filters: Sequence[str]) -> list[Step]:
    steps, tested = [], sizes.images / study.folds
    # Another patient's image needs another patient.
    swap = ("swap",) if sizes.patients // study.folds > 1 else ()
    for fold in study.reported:
        named = {name: name for name in models(filters)} | {"blind": BLIND, UNET: UNET}
        methods = [f"{label}={study.run(name, fold)}" for label, name in named.items()]
        methods = [f"{ZERO_SHOT}={study.weights}", *methods, "classical", *_UNSEEN, *swap]
        after = [_job_name(name, fold) for name in named.values()]
        job = _scoring(study, f"fold{fold}", methods, None, after=after)
        shown = (len(named) + 1) * (1 + bool(swap))
        took = _scored(study, shown, tested) + 2 * cost.seconds(study, "classical", tested)
        steps.append(Step(job, took, 0.05))
    return steps


# Jobs.


def _made(name: str, words: tuple[str, ...], folder: Path) -> Job:
    """A job that writes a folder whose manifest is written last."""
    return Job(name, words, (folder / MANIFEST).is_file)


def _told(study: Study) -> tuple[str, ...]:
    """What trainings and reports are told alike."""
    side = ("--image-size", str(study.image_size)) if study.image_size else ()
    return (
        *("--data", DATA, "--data-dir", str(study.data), "--target", study.target),
        *("--device", study.device, "--seed", str(study.seed), *side),
    )


def _job_name(name: str, fold: int) -> str:
    return f"{name}/fold{fold}"


def _training(
    study: Study, sizes: Sizes, name: str, fold: int, *flags: str, network: bool = False
) -> Job:
    model = () if network else ("--variant", study.variant, "--checkpoint", str(study.weights))
    prompting = () if network else ("--prompting", "+".join(PROMPTS))
    # Of RSNA's images three of four have no finding.
    turns = ("--balance",) if 2 * sizes.findings < sizes.images else ()
    folder = study.run(name, fold)
    words = (
        *("train.py", *model, *_told(study), *prompting, *turns),
        *("--folds", str(study.folds), "--fold", str(fold), "--steps", str(study.steps)),
        *("--batch", str(study.batch), "--save-every", str(max(1, study.steps // 4))),
        *("--pictures-every", "0", "--no-tensorboard", *flags, "--out", str(folder.parent)),
    )
    after = ("prepare",) if network else ("convert", "prepare")
    return Job(_job_name(name, fold), words, partial(runs.is_done, folder), after)


def _network(study: Study, sizes: Sizes, fold: int) -> Job:
    flags = ("--variant", "unet-tiny", "--prompting", "none")
    return _training(study, sizes, UNET, fold, *flags, network=True)


def _embedded(
    study: Study,
    sizes: Sizes,
    wanted: Sequence[tuple[str, Sequence[int], tuple[str, ...]]],
    *,
    known: bool = False,
) -> list[Step]:
    """Trainings of the decoder, of which each look's embeddings are made once.

    Args:
      wanted: Name, folds and what is shown of each.
      known: The embeddings are there by then.
    """
    own = ("--trainable", "decoder")
    kind = "decoder step from images"
    if study.embeddings:
        own += ("--embeddings", "bfloat16", "--cache-dir", str(study.folder / "embeddings"))
        kind = "decoder step"
    steps = []
    for name, folds, look in wanted:
        took, gib = cost.embedded(study, sizes.images, looks=int(study.embeddings and not known))
        for place, fold in enumerate(folds):
            first = place == 0
            job = _training(study, sizes, name, fold, *own, *look)
            seconds = cost.trained(study, kind) + first * took
            steps.append(Step(job, seconds, cost.of_run(study) + first * gib))
    return steps


def _look(filter_: str) -> tuple[str, ...]:
    """The image twice and the response, so that nothing of the image is lost."""
    return ("--filter", f"{NONE},{filter_}", "--fusion", "channels")


def _scoring(
    study: Study,
    name: str,
    methods: Sequence[str],
    prompt: str | None,
    *more: str,
    after: Sequence[str],
) -> Job:
    out, asked = study.report(name), prompt or ",".join(PROMPTS)
    words = (
        *("eval.py", "--methods", *methods, *_told(study), "--prompt", asked),
        *("--confidence", "", "--pictures", "12", *more, "--out", str(out)),
    )
    return Job(
        f"reports/{name}",
        words,
        partial(runs.is_reported, out, {"methods": list(methods)}),
        tuple(after),
    )


def _scored(study: Study, shown: int, images: float) -> float:
    """Seconds of a report, of so many models or the same shown other images."""
    answers = shown * len(PROMPTS) * images
    return (
        cost.seconds(study, "encode", shown * images)
        + cost.seconds(study, "decode", answers)
        + cost.seconds(study, "measures", answers)
        + cost.seconds(study, "start", 1)
    )


STAGES: Mapping[str, Stage] = MappingProxyType(
    {
        "convert": Stage("the official weights into a checkpoint of ours", _convert),
        "prepare": Stage("RSNA's files, decoded once", _prepare),
        ZERO_SHOT: Stage("SAM as it is, under every protocol", _zero_shot),
        SCREEN: Stage("SAM as it is, behind each filter", _screen),
        DECODER: Stage("the decoder fine-tuned, and its blind twin", _decoder),
        "candidates": Stage("the same with each filter, on folds 0 and 1", _candidates),
        "choice": Stage("scores of folds 0 and 1, which choose the best filters", _tuning),
        "best": Stage("the decoder with the best filters, on the other folds", _best, chosen=True),
        LORA: Stage("LoRA, without and with the best filters", _lora, chosen=True),
        UNET: Stage("a U-Net from random weights", _unet, chosen=True),
        "scores": Stage("all of them, baselines and controls on the other folds", _scores, True),
    }
)
