"""Low-rank pairs: a side path that equals merged kernels, and costs no gradient of a kernel."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pp_jax import tree
from pp_jax.config import TrainConfig
from pp_jax.lora import KERNELS, Lora, lora_of, merge
from pp_jax.sam import Sam
from pp_jax.sam.image_encoder import ImageEncoder
from pp_jax.sam.model import init
from tests.test_step import COMPILER, SMALL

CONFIG = replace(SMALL, trained_size=256)  # One windowed block, one global.
ALL = Lora(rank=3, alpha=5.0, on=tuple(KERNELS))
KEY = jax.random.key(1)


@functools.cache
def fresh(lora: Lora | None) -> dict:
    return jax.jit(lambda key: init(Sam(CONFIG, lora=lora), key), compiler_options=COMPILER)(KEY)


def trained(variables: dict) -> dict:
    """Variables whose B are no longer zero, as after some training."""
    rng = np.random.default_rng(2)
    flat = tree.flatten(variables["lora"])
    flat = {
        path: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32) if path.endswith("/b") else x
        for path, x in flat.items()
    }
    return variables | {"lora": tree.unflatten(flat)}


@functools.cache
def image() -> jax.Array:
    side = CONFIG.image_size
    return jax.random.normal(jax.random.key(5), (1, side, side, 3))


def embed(model: Sam, variables: dict) -> np.ndarray:
    run = jax.jit(functools.partial(model.apply, method="encode"), compiler_options=COMPILER)
    return np.asarray(run(variables, image()))


def test_pairs_lie_beside_the_parameters_which_they_leave_as_they_are() -> None:
    plain, paired = fresh(None), fresh(ALL)
    assert paired.keys() == {"params", "constants", "lora"}
    without = tree.flatten({name: paired[name] for name in ("params", "constants")})
    want = tree.flatten(plain)
    assert without.keys() == want.keys()
    for path, leaf in want.items():
        np.testing.assert_array_equal(without[path], leaf, path)
    D, K, r = CONFIG.embed_dim, CONFIG.num_heads, ALL.rank
    d, wide = D // K, CONFIG.mlp_ratio * D
    shapes = {f"attn/lora_{name}": ((D, r), (r, K, d)) for name in "qkv"}
    shapes |= {
        "attn/lora_proj": ((K, d, r), (r, D)),
        "mlp/lora_lin1": ((D, r), (r, wide)),
        "mlp/lora_lin2": ((wide, r), (r, D)),
    }
    assert {path: x.shape for path, x in tree.flatten(paired["lora"]).items()} == {
        f"image_encoder/blocks_{i:02d}/{pair}/{part}": shape
        for i in range(CONFIG.depth)
        for pair, both in shapes.items()
        for part, shape in zip("ab", both, strict=True)
    }
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(paired["lora"]))


def test_pairs_begin_as_those_of_peft_whose_b_is_zero() -> None:
    for path, x in tree.flatten(fresh(ALL)["lora"]).items():
        if path.endswith("/b"):
            assert not x.any()
            continue
        there = torch.empty(ALL.rank, x.size // ALL.rank)
        torch.nn.init.kaiming_uniform_(there, a=5**0.5)  # peft's `reset_lora_parameters`.
        bound = (x.size // ALL.rank) ** -0.5
        for held in (x, there.numpy()):
            assert 0.9 * bound < np.abs(held).max() <= bound
            assert abs(np.std(held) - bound / 3**0.5) < 0.2 * bound
    firsts = [
        x[..., 0].ravel() for p, x in tree.flatten(fresh(ALL)["lora"]).items() if p[-1] == "a"
    ]
    assert len({tuple(np.asarray(x[:8]).tolist()) for x in firsts}) == len(firsts)


def test_pairs_that_were_not_trained_change_nothing() -> None:
    want = embed(Sam(CONFIG), fresh(None))
    np.testing.assert_array_equal(embed(Sam(CONFIG, lora=ALL), fresh(ALL)), want)


@pytest.mark.parametrize("remat", [False, True])
def test_the_side_path_is_the_model_with_merged_kernels(remat: bool) -> None:
    variables = trained(fresh(ALL))
    got = embed(Sam(CONFIG, lora=ALL, remat=remat), variables)
    want = embed(Sam(CONFIG), merge(variables, ALL))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * want.std())
    assert np.abs(embed(Sam(CONFIG), fresh(None)) - want).max() > 0.1 * want.std()
