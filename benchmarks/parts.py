"""Where an image encoder's time goes: its parts, each compiled and timed by itself.

    python -m benchmarks.parts --variant vit_b --repeats 7

Prints Markdown: milliseconds of a part, how often it stands in the encoder, the product. The parts
of a part follow it with a dash. In each repeat every part runs once before any runs again.

Parts do not add up to the encoder: by itself a part reads its input from memory and writes its
result there, and in the encoder XLA makes one loop of what follows one another (residuals, norms).
"""

import statistics
import time
from collections.abc import Callable, Sequence
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
    for _, part in parts:
        part.run()
    seconds: list[list[float]] = [[] for _ in parts]
    for _ in range(settings.repeats):
        for times, (_, part) in zip(seconds, parts, strict=True):
            begun = time.perf_counter()
            part.run()
            times.append(time.perf_counter() - begun)
    medians = [statistics.median(times) for times in seconds]
    print(f"- jax {jax.__version__}, {jax.devices()[0].device_kind}, {settings}\n")
    print("| part | ms | times | ms in all | share |")
    print("|---|---:|---:|---:|---:|")
    for median, (name, part) in zip(medians, parts, strict=True):
        total = part.count * median
        cells = (f"{1e3 * median:.1f}", str(part.count), f"{1e3 * total:.0f}")
        print(f"| {name} | {' | '.join(cells)} | {100 * total / medians[0]:.0f} % |")


def make_parts(c: SamConfig, *, attention: str) -> Sequence[tuple[str, Part]]:
    """Names and parts: the whole encoder, then its parts in their order."""
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

    weights = "- its products with weights"
    return (
        ("whole encoder", module(ImageEncoder(c, attention=attention), image, 1)),
        ("patches", module(PatchEmbed(c.patch_size, D), image, 1)),
        ("into windows and back", function(together, tokens, narrow)),
        ("attention of a window block", module(attend(c.window_size), windows, narrow)),
        (weights, module(_Products((3 * D, D)), windows, narrow)),
        ("attention of a global block", module(attend(c.trained_grid), tokens, len(wide))),
        (weights, module(_Products((3 * D, D)), tokens, len(wide))),
        ("MLP", module(Mlp(c.mlp_ratio * D), tokens, c.depth)),
        (weights, module(_Products((c.mlp_ratio * D, D)), tokens, c.depth)),
        ("- GELU", function(gelu, hidden, c.depth)),
        ("LayerNorm", module(layer_norm(epsilon=1e-6, dtype=jnp.float32), tokens, 2 * c.depth)),
        ("residual", function(lambda x: x + tokens, tokens, 2 * c.depth)),
        ("neck", module(_Neck(c.out_dim), tokens, 1)),
    )


class _Neck(nn.Module):
    """The end of `ImageEncoder`."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (1, 1), use_bias=False)(x)
        x = layer_norm(epsilon=1e-6, dtype=jnp.float32)(x)
        x = nn.Conv(self.width, (3, 3), padding=1, use_bias=False)(x)
        return layer_norm(epsilon=1e-6, dtype=jnp.float32)(x)


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
