"""The image encoder in bfloat16: masks stay, and training goes the same way."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.ladder import cases, to_prompts
from convert.official import to_variables
from pp_jax import tree
from pp_jax.sam import VARIANTS, Sam
from pp_jax.sam.model import init
from tests import official

# Programs that run once.
COMPILER = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.mark.parametrize(
    "variant",
    ["tiny", pytest.param("vit_b", marks=[pytest.mark.parity, pytest.mark.timeout(1800)])],
)
def test_masks_from_a_bfloat16_embedding_agree_with_those_in_float32(variant: str) -> None:
    """Intersection over union of .99 at least, for each mask of each kind of prompt."""
    config = VARIANTS[variant]
    model = official.randomise(official.build(config), seed=0)
    state = {name: x.numpy() for name, x in model.state_dict().items()}
    variables = to_variables(state, variant=variant, source="random")
    side = config.image_size
    image = np.random.default_rng(1).normal(size=(1, side, side, 3)).astype(np.float32)
    prompts = to_prompts(cases(side), batch=1, mask_side=config.mask_side)

    @functools.partial(jax.jit, static_argnames="dtype", compiler_options=COMPILER)
    def run(variables: dict, *, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        sam = Sam(config, dtype=dtype)
        embedding = sam.apply(variables, image, method="encode")
        logits = Sam(config).apply(variables, embedding, prompts, method="decode").logits
        return embedding, logits > 0

    exact, want = run(variables, dtype=jnp.float32)
    embedding, got = run(variables, dtype=jnp.bfloat16)
    assert embedding.dtype == jnp.float32
    assert np.abs(embedding - exact).max() > 1e-3 * np.std(exact)  # It did compute in bfloat16.
    axes = (-2, -1)
    iou = (want & got).sum(axes) / (want | got).sum(axes)
    print(f"\n{variant}: intersection over union {iou.min():.4f} at least, {iou.mean():.4f} mean")
    assert 0.05 < want.mean() < 0.95
    assert iou.min() >= 0.99


def test_gradients_in_bfloat16_point_where_those_in_float32_point() -> None:
    config = dataclasses.replace(VARIANTS["tiny"], depth=2, global_blocks=(1,))
    side = config.image_size
    image = np.random.default_rng(1).normal(size=(1, side, side, 3)).astype(np.float32)
    weight = np.random.default_rng(2).normal(size=(1, 16, 16, 256)).astype(np.float32)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(init, Sam(config)), jax.random.key(0))["params"]
    params = tree.unflatten(
        {
            path: rng.normal(path.endswith("scale"), max(x.shape[0], 4) ** -0.5, x.shape)
            for path, x in tree.flatten(shapes).items()
            if path.startswith("image_encoder/")
        }
    )
    params = jax.tree.map(jnp.float32, params)

    @functools.partial(jax.jit, static_argnames="dtype", compiler_options=COMPILER)
    def gradient(params: dict, *, dtype: jnp.dtype) -> dict:
        def loss(params: dict) -> jax.Array:
            sam = Sam(config, dtype=dtype)
            return jnp.mean(weight * sam.apply({"params": params}, image, method="encode"))

        return jax.grad(loss)(params)

    exact, got = (
        tree.flatten(gradient(params, dtype=dtype)["image_encoder"])
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    for path, want in exact.items():
        assert got[path].dtype == jnp.float32
        if path.endswith("qkv/bias"):
            continue  # Of which a third is zero, but for rounding: a key's bias has no influence.
        cosine = np.vdot(want, got[path]) / np.linalg.norm(want) / np.linalg.norm(got[path])
        assert cosine > 0.99, path
