"""The gradient of all rounds of iterative training beside that of one round, in turn.

    python -m benchmarks.iterative --variant vit_b
    python -m benchmarks.iterative --variant tiny --repeats 3

Prompt encoder and mask decoder are trained, on an embedding that was computed before: the rounds
share one. `one round` goes forward and backward once, with a mask prompt and as many slots for
points as all rounds need. Weights are random. Prints Markdown: the rounds must take no longer than
as many times one round, and at most 1.3 times its memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from benchmarks import turns
from benchmarks.decoder import draw_embedding, our_sam
from benchmarks.peers import Place
from benchmarks.training import draw
from pp_jax.sam import VARIANTS, sized

PACKAGES = ("jax", "flax")
_WEIGHTS = (("focal", 20.0), ("dice", 1.0), ("iou", 1.0))
_MOST_MEMORY = 1.3


@dataclass(frozen=True, kw_only=True)
class Benchmark(turns.Settings):
    """Time the rounds of iterative training beside one round."""

    variant: Literal[tuple(VARIANTS)] = "vit_b"
    """Of the model that decodes."""
    rounds: int = 11
    """How often the model is asked."""


def main() -> None:
    """Measure, and print the table and what it says."""
    settings = turns.read(Benchmark, make_programs)
    turns.print_machine(settings, PACKAGES)
    rows = turns.take_turns("benchmarks.iterative", make_programs(settings), settings)
    print()
    print(turns.table(rows, count=1, unit="gradients", ours="one round"))
    print()
    every, one = rows["all rounds"], rows["one round"]
    if isinstance(every, turns.Measured) and isinstance(one, turns.Measured):
        ratio = every.median / one.median
        print(f"- {settings.rounds} rounds: {ratio:.2f} times the seconds of one ", end="")
        print(_verdict(ratio, settings.rounds))
        ratio = every.peak_mib / one.peak_mib
        print(f"- peak memory of the process: {ratio:.2f} times ", end="")
        print(_verdict(ratio, _MOST_MEMORY))
    every, one = (
        program_mib(build(place_of(settings), rounds=settings.rounds))
        for build in (all_rounds, one_round)
    )
    print(
        f"- memory of the program: {every:.0f} and {one:.0f} MiB, {every / one:.2f} times ", end=""
    )
    print(_verdict(every / one, _MOST_MEMORY))


def _verdict(ratio: float, most: float) -> str:
    return f"({'at most' if ratio <= most else 'MORE THAN'} {most:g})"


def place_of(settings: Benchmark) -> Place:
    """One image."""
    return Place(sized(settings.variant), 1, "float32", settings.device)


def all_rounds(place: Place, *, rounds: int) -> tuple[Callable, tuple]:
    """The gradient as a training step computes it, and what it is computed of."""
    import jax
    import jax.numpy as jnp

    from pp_jax.finetune.step import make_terms
    from pp_jax.prompts import Purpose
    from pp_jax.types import Batch

    model, trainable, frozen = _parted(place)
    terms = make_terms(
        model,
        lambda *_: None,  # No image is shown.
        prompting="iterative",
        purpose=Purpose.TRAIN_PROMPT,
        weights=dict(_WEIGHTS),
        rounds=rounds,
    )
    _, targets, boxes = draw(place)
    side = place.config.image_size
    batch = Batch(
        np.zeros((1, 0, 0, 3), np.uint8),
        np.full((1, 2), side, np.int32),
        targets,
        boxes,
        np.ones((1, 1), bool),
        np.zeros(1, np.int32),
        draw_embedding(place.config),
    )

    def loss(trainable: Any, *rest: Any) -> Any:
        return terms(trainable, *rest).loss

    given = frozen, batch, np.zeros(1, np.int32), jax.random.key(0), jnp.int32(0)
    return jax.jit(jax.value_and_grad(loss)), jax.device_put((trainable, *given))


def one_round(place: Place, *, rounds: int) -> tuple[Callable, tuple]:
    """The gradient of a later one of so many rounds, and what it is computed of."""
    import jax
    import jax.numpy as jnp

    from pp_jax import tree
    from pp_jax.finetune.losses import Wanted, sam_terms
    from pp_jax.prompts import make_prompts

    model, trainable, frozen = _parted(place)
    _, targets, boxes = draw(place)
    side, cells = place.config.image_size, place.config.mask_side
    rng = np.random.default_rng(2)
    points = rng.integers(0, side, (1, 1, rounds - 2, 2)).astype(np.float32)
    given = {
        "points": points,
        "labels": np.ones(points.shape[:3], np.int32),
        "boxes": boxes,
        "has_box": np.zeros((1, 1), bool),
        "masks": rng.standard_normal((1, 1, cells, cells), np.float32),
        "has_mask": np.ones((1, 1), bool),
    }
    wanted = Wanted(
        targets, np.ones((1, cells, cells), np.float32), np.ones((1, 1), bool), boxes / 4
    )

    def loss(trainable: Any, frozen: Any, embedding: Any, given: Any, wanted: Any) -> Any:
        variables, prompts = tree.combine(trainable, frozen), make_prompts(**given)
        output = model.apply(variables, embedding, prompts, method="decode")
        allowed = jnp.array([True, False, False, False])
        return sam_terms(output, wanted, weights=dict(_WEIGHTS), allowed=allowed).loss

    rest = frozen, draw_embedding(place.config), given, wanted
    return jax.jit(jax.value_and_grad(loss)), jax.device_put((trainable, *rest))


def _parted(place: Place) -> tuple[Any, dict, dict]:
    """A model without an encoder to speak of, what is trained of it, and the rest."""
    from pp_jax import tree
    from pp_jax.finetune.trainable import POLICIES

    model, variables = our_sam(place.config)
    return model, *tree.partition(variables, POLICIES["decoder+prompt"])


def program_mib(program: tuple[Callable, tuple]) -> float:
    """What the compiled program holds: arguments, results and scratch."""
    function, given = program
    memory = function.lower(*given).compile().memory_analysis()
    sizes = (
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.temp_size_in_bytes,
    )
    return sum(sizes) / 2**20


def prepare(build: Callable, place: Place, *, rounds: int) -> turns.Run:
    """A program of ours, ready to run."""
    import jax

    from pp_jax.memory import keep_freed_memory

    keep_freed_memory()
    function, given = build(place, rounds=rounds)
    return lambda: jax.block_until_ready(function(*given))


def make_programs(settings: Benchmark) -> Mapping[str, turns.Prepare]:
    """What takes turns."""
    place = place_of(settings)
    builds = {"all rounds": all_rounds, "one round": one_round}
    return {
        name: partial(prepare, build, place, rounds=settings.rounds)
        for name, build in builds.items()
    }


if __name__ == "__main__":
    main()
