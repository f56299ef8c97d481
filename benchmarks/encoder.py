"""The image encoder beside the official one, transformers and keras-hub, in turn.

    python -m benchmarks.encoder --variant vit_b --repeats 5
    python -m benchmarks.encoder --programs ours official --keep official
    python -m benchmarks.encoder --variant vit_h --batch 8 --dtype bfloat16 --device cuda

Prints Markdown. `benchmarks/peers.py` says how the peers are installed; one that is not becomes a
row that says so. All weights are random.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from benchmarks import flops, turns
from benchmarks.peers import ENCODERS, PRODUCT_PROGRAMS, PRODUCTS, Place
from benchmarks.weights import weighed
from pp_jax.sam import VARIANTS, sized

PACKAGES = ("jax", "flax", "torch", "segment-anything", "transformers", "keras", "keras-hub")


@dataclass(frozen=True, kw_only=True)
class Benchmark(turns.Settings):
    """Time image encoders side by side."""

    variant: Literal[tuple(VARIANTS)] = "vit_b"
    """Of the model."""
    image_size: int | None = None
    """Side of the images; None: the variant's own."""
    batch: int = 1
    """Images in a batch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the compute."""
    programs: tuple[Literal[("ours", *ENCODERS)], ...] = ("ours", *ENCODERS)
    """What to run."""
    attention: tuple[str, ...] = ()
    """Attention implementations of ours to run as well, by name; `ours` chooses for itself."""


def main() -> None:
    """Measure, and print the table."""
    settings = turns.read(Benchmark, make_programs)
    turns.print_machine(settings, PACKAGES)
    rows = turns.take_turns("benchmarks.encoder", make_programs(settings), settings)
    place = _place(settings)
    products = PRODUCTS[settings.device]
    print()
    print(
        turns.table(
            rows,
            count=settings.batch,
            flops=flops.encoder_flops(place.config, settings.batch),
            product_flops=flops.product_flops(
                place.config, batch=settings.batch, products=products
            ),
        )
    )


def make_programs(settings: Benchmark) -> Mapping[str, turns.Prepare]:
    """What takes turns: the programs asked for, and the products."""
    place = _place(settings)
    builds = {"ours": ours} | ENCODERS
    chosen = {name: builds[name] for name in settings.programs}
    chosen |= {f"ours, {name}": partial(ours, attention=name) for name in settings.attention}
    return {name: partial(build, place) for name, build in (chosen | PRODUCT_PROGRAMS).items()}


def _place(settings: Benchmark) -> Place:
    config = sized(settings.variant, settings.image_size)
    return Place(config, settings.batch, settings.dtype, settings.device)


def ours(place: Place, *, attention: str = "auto") -> turns.Run:
    """Our encoder, as the fronts run it."""
    import jax

    from pp_jax.memory import keep_freed_memory
    from pp_jax.sam import Sam

    keep_freed_memory()
    model = Sam(place.config, dtype=jax.numpy.dtype(place.dtype), attention=attention)
    variables = weighed(model)
    side = place.config.image_size
    image = jax.random.normal(jax.random.key(1), (place.batch, side, side, 3))
    encode = jax.jit(partial(model.apply, method="encode"))
    return lambda: encode(variables, image).block_until_ready()


if __name__ == "__main__":
    main()
