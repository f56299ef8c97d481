"""Low-rank pairs: a side path that equals merged kernels, and costs no gradient of a kernel."""

import functools
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pp_jax import tree
from pp_jax.config import TrainConfig
from pp_jax.lora import KERNELS, Lora, lora_of, merge
from pp_jax.sam import Sam, SamConfig
from pp_jax.sam.image_encoder import ImageEncoder
from pp_jax.sam.model import init
from tests.test_step import COMPILER, SMALL

CONFIG = replace(SMALL, trained_size=256)  # One windowed block, one global.
ALL = Lora(rank=3, alpha=5.0, on=tuple(KERNELS))
KEY = jax.random.key(1)


@functools.cache
def fresh(lora: Lora | None) -> dict:
    """Of the image encoder alone: the rest would take longer to compile than all tests."""

    def draw(key: jax.Array) -> dict:
        held = init(Sam(CONFIG, lora=lora), key)
        return {
            name: {"image_encoder": held[name]["image_encoder"]}
            for name in held
            if name != "constants"
        }

    return jax.jit(draw, compiler_options=COMPILER)(KEY)


@functools.cache
def shapes(lora: Lora | None) -> dict:
    return jax.eval_shape(lambda key: init(Sam(CONFIG, lora=lora), key), KEY)


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


@functools.cache
def encoder(lora: Lora | None, scan_blocks: bool) -> Callable[[dict, jax.Array], jax.Array]:
    model = Sam(CONFIG, lora=lora, scan_blocks=scan_blocks)
    return jax.jit(functools.partial(model.apply, method="encode"), compiler_options=COMPILER)


def embed(variables: dict, lora: Lora | None = None, *, scan_blocks: bool = False) -> np.ndarray:
    return np.asarray(encoder(lora, scan_blocks)(variables, image()))


def test_pairs_lie_beside_the_parameters_which_they_leave_as_they_are() -> None:
    assert shapes(ALL).keys() == {"params", "constants", "lora"}
    plain, paired = (tree.flatten(shapes(lora)) for lora in (None, ALL))
    assert {path for path in paired if not path.startswith("lora/")} == plain.keys()
    drawn = tree.flatten({"params": fresh(ALL)["params"]})
    for path, leaf in tree.flatten(fresh(None)).items():
        np.testing.assert_array_equal(drawn[path], leaf, path)
    D, K, r = CONFIG.embed_dim, CONFIG.num_heads, ALL.rank
    d, wide = D // K, CONFIG.mlp_ratio * D
    sizes = {f"attn/lora_{name}": ((D, r), (r, K, d)) for name in "qkv"}
    sizes |= {
        "attn/lora_proj": ((K, d, r), (r, D)),
        "mlp/lora_lin1": ((D, r), (r, wide)),
        "mlp/lora_lin2": ((wide, r), (r, D)),
    }
    assert {path: x.shape for path, x in tree.flatten(shapes(ALL)["lora"]).items()} == {
        f"image_encoder/blocks_{i:02d}/{pair}/{part}": shape
        for i in range(CONFIG.depth)
        for pair, both in sizes.items()
        for part, shape in zip("ab", both, strict=True)
    }
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes(ALL)["lora"]))


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
    np.testing.assert_array_equal(embed(fresh(ALL), ALL), embed(fresh(None)))


@pytest.mark.parametrize("scan_blocks", [False, True])
def test_the_side_path_is_the_model_with_merged_kernels(scan_blocks: bool) -> None:
    variables = trained(fresh(ALL))
    got = embed(variables, ALL, scan_blocks=scan_blocks)
    want = embed(merge(variables, ALL))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * want.std())
    assert np.abs(embed(fresh(None)) - want).max() > 0.1 * want.std()


def test_each_pair_is_added_to_its_own_part_of_a_kernel_with_its_scale() -> None:
    variables = trained(fresh(ALL))
    before, after = (
        tree.flatten(x["params"]["image_encoder"]) for x in (variables, merge(variables, ALL))
    )
    pairs, r = tree.flatten(variables["lora"]["image_encoder"]), ALL.rank
    added = {path: np.asarray(after[path]) - np.asarray(x) for path, x in before.items()}
    for block in ("blocks_00", "blocks_01"):
        for name in KERNELS:
            layer = f"{block}/{'mlp' if name.startswith('lin') else 'attn'}"
            a, b = (np.asarray(pairs[f"{layer}/lora_{name}/{x}"]) for x in "ab")
            want = 5 / 3 * a.reshape(-1, r) @ b.reshape(r, -1)
            found = added.pop(f"{layer}/{name}/kernel", added.get(f"{layer}/qkv/kernel"))
            found = found[:, "qkv".index(name)] if name in "qkv" else found
            np.testing.assert_allclose(found.reshape(want.shape), want, rtol=0, atol=1e-6)
        del added[f"{block}/attn/qkv/kernel"]
    assert not any(x.any() for x in added.values())
    assert "lora" not in merge(variables, ALL)


# A quarter of its step would be gradients of kernels. Windows need no padding.
WIDE = SamConfig(
    image_size=256,
    trained_size=256,
    embed_dim=128,
    depth=2,
    num_heads=2,
    global_blocks=(1,),
    window_size=8,
    out_dim=32,
)
TOKENS, WIDTH = 16**2, 128
DENSE = 2 * TOKENS * 12 * WIDTH**2  # Products of a block with its kernels.
PAIRS = Lora(rank=8, alpha=16.0, on=("q", "v"))


@functools.cache
def gradient(chosen: str, remat: bool) -> jax.stages.Lowered:
    """Of the leaves that the pattern chooses, and of them alone."""
    model = ImageEncoder(WIDE, attention="plain", lora=PAIRS, remat=remat)
    image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    variables = jax.eval_shape(model.init, KEY, image)
    leaves, frozen = tree.partition(variables, ((chosen, True), (".*", False)))

    def power(leaves: dict, frozen: dict, image: jax.Array) -> jax.Array:
        return (model.apply(tree.combine(leaves, frozen), image) ** 2).sum()

    lowered = jax.jit(jax.grad(power)).lower(leaves, frozen, image)
    assert tree.flatten(lowered.out_info).keys() == tree.flatten(leaves).keys()
    return lowered


@pytest.mark.parametrize("remat", [False, True])
def test_the_gradient_of_pairs_forms_no_gradient_of_a_kernel(remat: bool) -> None:
    chosen = ("lora/.*", r"params/blocks_\d+/.*/(qkv|proj|lin1|lin2)/kernel")
    pairs, kernels = (gradient(leaves, remat).cost_analysis()["flops"] for leaves in chosen)
    assert pairs < kernels - 0.97 * 2 * DENSE


def test_the_compiled_gradient_of_pairs_costs_what_is_counted_by_hand() -> None:
    token = 2 * TOKENS * WIDTH
    scores = (token * 8**2, token * 16**2)  # As many operations as the weighted sums of values.
    terms = (token * 2 * 8, token * 2 * 16)  # Relative positions.
    neck = 2 * TOKENS * (WIDTH * 32 + 9 * 32**2)
    pair = 2 * TOKENS * 8 * (WIDTH + WIDTH)
    forward = token * 3 * 16**2 + 2 * DENSE + 2 * sum(scores) + sum(terms) + neck + 4 * pair
    # Into the first block's qkv no gradient goes, and none is asked of its keys.
    first = DENSE * (1 + 8) / 12 + 3 * scores[0] + terms[0]
    second = DENSE + 4 * scores[1] + terms[1]
    rank = 4 * pair + 2 * pair + 2 * pair / 2  # dA and dB; to both operands; to x A alone.
    program = gradient("lora/.*", remat=False).compile(compiler_options=COMPILER)
    found = program.cost_analysis()["flops"]  # With sums, norms and softmax.
    assert found == pytest.approx(forward + neck + first + second + rank, rel=0.03)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"lora_rank": 0}, "--lora-rank 0: must be at least 1"),
        ({"lora_on": "q,o"}, "--lora-on q,o: .*q, k, v, proj, lin1, lin2"),
        ({"lora_on": "v,v"}, "--lora-on v,v: .*each once"),
        ({"lora_on": ""}, "--lora-on : give some of"),
        ({"lora_on": "q, v"}, "--lora-on q, v: .*without spaces"),
    ],
)
def test_pairs_that_cannot_be_are_one_clear_line(flags: dict, told: str) -> None:
    settings = TrainConfig(trainable="lora", **flags)
    with pytest.raises(ValueError, match=told):
        lora_of(settings)
    assert lora_of(replace(settings, trainable="decoder")) is None


def test_the_settings_say_which_pairs_are_trained() -> None:
    settings = TrainConfig(trainable="lora", lora_rank=4, lora_alpha=6.0, lora_on="k,lin2")
    lora = lora_of(settings)
    assert lora == Lora(4, 6.0, ("k", "lin2"))
    assert lora.scale == 1.5
    held = tree.flatten(shapes(lora)["lora"])
    assert {path.split("/")[-2] for path in held} == {"lora_k", "lora_lin2"}
