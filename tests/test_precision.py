"""The image encoder in bfloat16: masks stay, the decoder does not notice, training still learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.ladder import cases, to_prompts
from convert.official import to_variables
from pp_jax.sam import VARIANTS, Sam
from tests import official


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

    @functools.partial(jax.jit, static_argnames="dtype")
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
