"""Where an image encoder's time goes: its parts, each compiled and timed by itself.

    python -m benchmarks.parts --variant vit_b --repeats 7

Prints Markdown: milliseconds of a part, how often it stands in the encoder, the product. The parts
of a part are indented below it. In each repeat every part runs once before any runs again.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn

from pp_jax.memory import keep_freed_memory
from pp_jax.sam import VARIANTS, SamConfig
from pp_jax.sam.attention import Attention
from pp_jax.sam.image_encoder import (
    ImageEncoder,
    Mlp,
    PatchEmbed,
    from_windows,
    gelu,
    layer_norm,
    to_windows,
)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Time the parts of an image encoder, on one image in float32."""

    variant: Literal[tuple(VARIANTS)] = "vit_b"
    """Of the model."""
    repeats: int = 7
    """Of which medians are taken."""
    attention: str = "auto"
    """The program of the attention."""


class Part(NamedTuple):
    """A program, and how often the encoder runs it."""

    run: Callable[[], object]
    count: int


def main() -> None:
    """Measure, and print the table."""
    settings = tyro.cli(Benchmark)
    keep_freed_memory()
    parts = make_parts(VARIANTS[settings.variant], attention=settings.attention)
    for part in parts.values():
        part.run()
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(settings.repeats):
        for name, part in parts.items():
            begun = time.perf_counter()
            part.run()
            seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    whole = medians["whole encoder"]
    print(f"- jax {jax.__version__}, {jax.devices()[0].device_kind}, {settings}\n")
    print("| part | ms | times | ms in all | share |")
    print("|---|---:|---:|---:|---:|")
    for name, part in parts.items():
        total = part.count * medians[name]
        cells = (f"{1e3 * medians[name]:.1f}", str(part.count), f"{1e3 * total:.0f}")
        print(f"| {name} | {' | '.join(cells)} | {100 * total / whole:.0f} % |")


def make_parts(c: SamConfig, *, attention: str) -> Mapping[str, Part]:
    """The parts by name, in the encoder's order."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def module(part: nn.Module, x: jax.Array, count: int) -> Part:
        variables = jax.jit(part.init)(jax.random.key(0), x)
        apply = jax.jit(part.apply)
        return Part(lambda: jax.block_until_ready(apply(variables, x)), count)

    def function(part: Callable[[jax.Array], jax.Array], x: jax.Array, count: int) -> Part:
        run = jax.jit(part)
        return Part(lambda: jax.block_until_ready(run(x)), count)

    g, D, wide = c.grid, c.embed_dim, c.global_blocks
    image, tokens = draw(1, c.image_size, c.image_size, 3), draw(1, g, g, D)
    windows, hidden = to_windows(tokens, side=c.window_size), draw(1, g, g, c.mlp_ratio * D)
    narrow = c.depth - len(wide)

    def attend(side: int) -> nn.Module:
        return Attention(c.num_heads, side, attention=attention)

    def together(x: jax.Array) -> jax.Array:
        return from_windows(to_windows(x, side=c.window_size), batch=1, height=g, width=g)

    return {
        "whole encoder": module(ImageEncoder(c, attention=attention), image, 1),
        "patches": module(PatchEmbed(c.patch_size, D), image, 1),
        "attention of a window block": module(attend(c.window_size), windows, narrow),
        "- its products with weights": module(_Products((3 * D, D)), windows, narrow),
        "- into windows and back": function(together, tokens, narrow),
        "attention of a global block": module(attend(c.trained_grid), tokens, len(wide)),
        "- its products with weights ": module(_Products((3 * D, D)), tokens, len(wide)),
        "MLP": module(Mlp(c.mlp_ratio * D), tokens, c.depth),
        "- its products with weights  ": module(_Products((c.mlp_ratio * D, D)), tokens, c.depth),
        "- GELU": function(gelu, hidden, c.depth),
        "LayerNorm": module(layer_norm(epsilon=1e-6, dtype=jnp.float32), tokens, 2 * c.depth),
    }


class _Products(nn.Module):
    """Two dense layers; after queries, keys and values the second reads a third of the first."""

    widths: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        first, last = self.widths
        y = nn.Dense(first, name="first")(x)
        reads = y if first != 3 * last else y[..., :last]
        return nn.Dense(last, name="last")(reads)


if __name__ == "__main__":
    main()
