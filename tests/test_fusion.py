"""Fusions against OpenCV's and torch's sums of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pp_jax.config import Look
from pp_jax.preprocess import specs
from pp_jax.preprocess.fusion import FUSIONS, Given, pass_through
from pp_jax.preprocess.stage import initial_fusion, make_stage
from tests import references

RNG = np.random.default_rng(0)


def test_every_row_has_an_independent_answer():
    assert set(references.FUSIONS) == set(FUSIONS)


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_fusion_equals_its_reference(name, weight):
    fusion = FUSIONS[name]()
    image = RNG.integers(0, 256, (5, 7, 3)).astype(np.float32)
    count = min(max(fusion.fewest, 2), fusion.most)
    # Few levels: the reference of regions tries all cuts between them.
    responses = RNG.choice(RNG.choice(256, 12), (count, 5, 7)).astype(np.float32)
    given = Given(image, responses, np.array([5, 7]), weight, references.LEARNED)
    want = references.FUSIONS[name](image, list(responses), weight)
    # Five float32 roundings of terms below 255 times a parameter of at most 3.
    got = jax.jit(fusion.function)(given)
    np.testing.assert_allclose(got, want, rtol=3e-7, atol=5 * 3 * 255 * 2**-24)


def test_three_chains_are_red_green_and_blue():
    responses = jnp.arange(3.0)[:, None, None] * jnp.ones((3, 2, 2))
    given = Given(jnp.zeros((2, 2, 3)), responses, jnp.array([2, 2]), 0.5, None)
    np.testing.assert_array_equal(FUSIONS["channels"]().function(given)[0, 0], [0, 1, 2])


def test_a_learned_fusion_starts_by_passing_the_image_through():
    images = RNG.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    sizes = np.array([[16, 16], [9, 16]], np.int32)
    look = Look("sobel,none", "learned")
    parameters = initial_fusion(look)["fusion"]
    assert {name: x.shape for name, x in parameters.items()} == {"mixing": (5, 3), "shift": (3,)}
    got = jax.jit(make_stage(look, side=16))(images, sizes, parameters)
    want = jax.jit(make_stage(Look(), side=16))(images, sizes)
    np.testing.assert_allclose(got, want, atol=2 * 255 * 2**-23 / 57)


def test_a_learned_fusion_gets_a_gradient_from_every_response():
    images = RNG.integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    stage = make_stage(Look("sobel,none", "learned"), side=16)

    def total(parameters):
        return (stage(images, jnp.array([[16, 16]]), parameters) ** 2).sum()

    gradient = jax.jit(jax.grad(total))(pass_through(2))
    assert (np.abs(gradient["mixing"]) > 0).all()
    assert (np.abs(gradient["shift"]) > 0).all()


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (Look("sobel,none", "replace"), "fusion 'replace' takes 1 filters separated by commas"),
        (
            Look("sobel", "channels"),
            "takes 2 to 3 filters separated by commas, not the 1 of 'sobel'",
        ),
        (Look("sobel", "mix"), "fusion 'mix' is unknown: choose one of replace"),
        (Look("sobel", "blend:3"), "fusion 'blend:3': '3' is unknown; blend takes no parameters"),
    ],
)
def test_a_wrong_look_is_named_with_the_choices(look, message):
    with pytest.raises(ValueError, match=message):
        make_stage(look, side=8)


def test_a_learned_fusion_refuses_other_filters_than_it_was_trained_with():
    stage = jax.jit(make_stage(Look("sobel", "learned"), side=8))
    images, sizes = np.zeros((1, 8, 8, 3), np.uint8), np.array([[8, 8]])
    with pytest.raises(ValueError, match="trained with 2 filters, not 1"):
        stage(images, sizes, pass_through(2))
    with pytest.raises(ValueError, match="has no parameters"):
        stage(images, sizes)


def test_a_spec_takes_parameters_by_position_or_by_name():
    table = {"row": lambda *, count=3, share=0.5, kind="a": (count, share, kind)}
    for text in ("row:7:0.25:b", "row:kind=b:count=7:share=.25", "row:7:kind=b:share=0.25"):
        named = specs.parse_row(text, table, what="thing")
        assert specs.make_row(named, table) == (7, 0.25, "b")
        assert str(named) == "row:count=7:share=0.25:kind=b"
    for text, message in (
        ("row:x", "thing 'row:x': count='x' must be a whole number"),
        ("row:1:2:3:4", "'4' is unknown; row takes count=3:share=0.5:kind=a"),
        ("row:1:count=2", "'count=2' is given twice"),
        ("row:size=2", "'size=2' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            specs.parse_row(text, table, what="thing")
