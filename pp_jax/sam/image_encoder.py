"""The image encoder: a ViT with windowed and global attention, and a convolutional neck."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pp_jax import tree
from pp_jax.lora import Lora
from pp_jax.sam.attention import Attention
from pp_jax.sam.config import SamConfig
from pp_jax.sam.interpolate import resize_positions
from pp_jax.sam.low_rank import with_side_path


def layer_norm(
    *, epsilon: float, dtype: jnp.dtype = jnp.float32, name: str | None = None
) -> nn.LayerNorm:
    """LayerNorm over channels, with the two-pass variance that torch computes.

    Flax's default variance, E[x^2] - E[x]^2, loses three digits on SAM's activations.
    """
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


@jax.custom_jvp
def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The exact GELU by `erf`, as torch computes it, in float32 whatever `x` is.

    `jax.nn.gelu` takes `erfc`, which XLA's CPU computes at half the speed. The backward pass keeps
    one array, of the type of `x`: the slope.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal(wide)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    wide = x.astype(jnp.float32)
    slope = _normal(wide) + wide * jnp.exp(-0.5 * wide**2) * (2 * jnp.pi) ** -0.5
    return gelu(x), slope.astype(x.dtype) * dx


def _normal(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The standard normal's distribution function."""
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


def to_windows(x: Float[Array, "B h w D"], *, side: int) -> Float[Array, "windows side side D"]:
    """The grid cut into `side` x `side` windows, after zero padding at the right and bottom.

    The padding is attended without a mask, as in the official code: to mask it breaks parity.
    """
    B, h, w, D = x.shape
    rows, columns = -(-h // side), -(-w // side)
    x = jnp.pad(x, ((0, 0), (0, rows * side - h), (0, columns * side - w), (0, 0)))
    x = x.reshape(B, rows, side, columns, side, D).swapaxes(2, 3)
    return x.reshape(B * rows * columns, side, side, D)


def from_windows(
    windows: Float[Array, "windows side side D"], *, batch: int, height: int, width: int
) -> Float[Array, "B h w D"]:
    """The inverse of `to_windows`, without the padding."""
    side, D = windows.shape[1], windows.shape[-1]
    rows, columns = -(-height // side), -(-width // side)
    x = windows.reshape(batch, rows, columns, side, side, D).swapaxes(2, 3)
    return x.reshape(batch, rows * side, columns * side, D)[:, :height, :width]


class Mlp(nn.Module):
    """Two dense layers with an exact GELU between them."""

    hidden: int
    dtype: jnp.dtype = jnp.float32
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        """The transformed features."""
        hidden = nn.Dense(self.hidden, dtype=self.dtype, name="lin1")(x)
        hidden = gelu(with_side_path(hidden, x, lora=self.lora, name="lin1"))
        y = nn.Dense(x.shape[-1], dtype=self.dtype, name="lin2")(hidden)
        return with_side_path(y, hidden, lora=self.lora, name="lin2")


class Block(nn.Module):
    """A pre-norm transformer block; `window_size` 0 means global attention."""

    num_heads: int
    mlp_ratio: int
    window_size: int
    trained_grid: int  # Side of the whole grid that the tables were trained on.
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        """The grid after attention and MLP, each with its residual."""
        B, h, w, D = x.shape
        attn = Attention(
            self.num_heads,
            self.window_size or self.trained_grid,
            dtype=self.dtype,
            attention=self.attention,
            lora=self.lora,
            name="attn",
        )
        y = layer_norm(epsilon=1e-6, dtype=self.dtype, name="norm1")(x)
        if self.window_size:
            y = attn(to_windows(y, side=self.window_size))
            y = from_windows(y, batch=B, height=h, width=w)
        else:
            y = attn(y)
        x = x + y
        y = layer_norm(epsilon=1e-6, dtype=self.dtype, name="norm2")(x)
        return x + Mlp(self.mlp_ratio * D, dtype=self.dtype, lora=self.lora, name="mlp")(y)


class PatchEmbed(nn.Module):
    """One token for each square patch of pixels."""

    patch_size: int
    embed_dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B S S C"]) -> Float[Array, "B h w D"]:
        """The grid of tokens."""
        patch = (self.patch_size, self.patch_size)
        return nn.Conv(
            self.embed_dim, patch, strides=patch, padding="VALID", dtype=self.dtype, name="proj"
        )(x)


class ImageEncoder(nn.Module):
    """Normalised pixels to the image embedding."""

    config: SamConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False  # Recompute each block in the backward pass: less memory, a third slower.
    attention: str = "auto"  # A row of ATTENTIONS.
    lora: Lora | None = None  # Pairs of every block.
    scan_blocks: bool = False  # Compile equal blocks once, as a loop.
    rows: jax.sharding.Sharding | None = None  # Where each image's features stay in that loop.

    @nn.compact
    def __call__(self, image: Float[Array, "B S S C"]) -> Float[Array, "B h w D"]:
        """The embedding, width `config.out_dim`."""
        c = self.config
        x = PatchEmbed(c.patch_size, c.embed_dim, dtype=self.dtype, name="patch_embed")(image)
        shape = (1, c.trained_grid, c.trained_grid, c.embed_dim)
        # Not zeros, as officially before training: padding would be a row of equal numbers, and the
        # gradient of their norm a million times too large.
        position = self.param("pos_embed", nn.initializers.truncated_normal(0.02), shape)
        x = x + resize_positions(position, grid=c.grid).astype(self.dtype)
        windows = [0 if i in c.global_blocks else c.window_size for i in range(c.depth)]
        # To draw parameters, blocks are as they are named.
        scan = self.scan_blocks and not self.is_initializing()
        x = self._scanned(x, windows) if scan else self._unrolled(x, windows)
        x = nn.Conv(c.out_dim, (1, 1), use_bias=False, dtype=self.dtype, name="neck_0")(x)
        x = layer_norm(epsilon=1e-6, dtype=self.dtype, name="neck_1")(x)
        x = nn.Conv(c.out_dim, (3, 3), padding=1, use_bias=False, dtype=self.dtype, name="neck_2")(
            x
        )
        return layer_norm(epsilon=1e-6, dtype=self.dtype, name="neck_3")(x)

    def _unrolled(self, x: Float[Array, "B h w D"], windows: list[int]) -> Float[Array, "B h w D"]:
        block = nn.remat(Block) if self.remat else Block
        for i, window in enumerate(windows):
            x = self._block(block, window, name=_name(i))(x)
        return x

    def _scanned(self, x: Float[Array, "B h w D"], windows: list[int]) -> Float[Array, "B h w D"]:
        """`_unrolled`, as a loop over groups of blocks, in which each run of equal ones is a loop.

        Parameters of equal blocks are stacked here, in a copy of the kernels in the type that they
        are computed in.
        """
        length = _period(windows)
        blocks = [self._held(i) for i in range(len(windows))]
        held, steps, first = [], [], 0
        for window, same in itertools.groupby(windows[:length]):
            after = first + len(list(same))
            groups = [_stack(blocks[i + first : i + after]) for i in range(0, len(blocks), length)]
            held.append(_stack(groups))
            steps.append(self._step(window))
            first = after

        def group(x: Array, runs: list[Any]) -> tuple[Array, None]:
            for step, run in zip(steps, runs, strict=True):
                x, _ = jax.lax.scan(step, x, run)
            return x, None

        return jax.lax.scan(group, x, held)[0]

    def _step(self, window: int) -> Callable[[Array, Any], tuple[Array, None]]:
        apply = self._block(Block, window, parent=None).apply
        if self.remat:
            apply = jax.checkpoint(apply, prevent_cse=False)  # In a loop nothing is merged.

        def step(x: Array, variables: Any) -> tuple[Array, None]:
            # Unasked, the compiler moves features in a loop, not the parts of the parameters.
            x = x if self.rows is None else jax.lax.with_sharding_constraint(x, self.rows)
            return apply(variables, x), None

        return step

    def _block(self, kind: type[Block], window: int, **where: Any) -> Block:
        c = self.config
        return kind(
            c.num_heads,
            c.mlp_ratio,
            window,
            c.trained_grid,
            dtype=self.dtype,
            attention=self.attention,
            lora=self.lora,
            **where,
        )

    def _held(self, index: int) -> dict[str, Any]:
        """The variables of one block."""
        own = {kind: held.get(_name(index), {}) for kind, held in self.variables.items()}
        return tree.unflatten(
            {
                path: leaf.astype(self.dtype) if path.endswith("/kernel") else leaf
                for path, leaf in tree.flatten(own).items()
            }
        )


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _name(index: int) -> str:
    return f"blocks_{index:02d}"


def _period(windows: list[int]) -> int:
    """The length of the shortest group that blocks repeat."""
    fitting = (n for n in range(1, len(windows)) if windows == windows[:n] * (len(windows) // n))
    return next(fitting, len(windows))
