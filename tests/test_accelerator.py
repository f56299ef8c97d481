"""The accelerator computes what the CPU computes: `make gpu-check`."""

import jax
import numpy as np
import pytest

from pp_jax.config import Look
from pp_jax.preprocess.filters import FILTERS
from pp_jax.preprocess.stage import make_stage
from pp_jax.prompts import make_prompts
from pp_jax.sam import VARIANTS, Sam
from pp_jax.sam.model import init

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("filter", FILTERS)
def test_masks_on_the_accelerator_equal_those_on_the_cpu(filter: str) -> None:
    if jax.devices()[0].platform == "cpu":
        pytest.skip("jax sees no accelerator on this machine")
    config = VARIANTS["tiny"]
    stage = make_stage(Look(filter, "blend"), side=config.image_size)
    model = Sam(config)

    def run(variables: dict, image: np.ndarray, size: np.ndarray):
        prompts = make_prompts(boxes=np.array([[[20.0, 30, 200, 180]]], np.float32), mask_side=64)
        return model.apply(variables, stage(image, size), prompts)

    image = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), np.uint8)
    size = np.array([[256, 200]], np.int32)
    variables = jax.device_get(init(model, jax.random.key(0)))
    got = jax.device_get(jax.jit(run)(variables, image, size))
    with jax.default_device(jax.devices("cpu")[0]):
        want = jax.device_get(jax.jit(run)(variables, image, size))
    assert np.abs(got.logits - want.logits).max() < 1e-3 * want.logits.std()
    assert np.abs(got.iou - want.iou).max() < 1e-4
