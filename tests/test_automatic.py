"""The automatic mask generator finds the same set of masks as the official one.

Random weights find noise, so `weights` scales some tensors. The scales and the seed were chosen
with the official generator alone, before ours was run, by looking at its counts: positions vary
slowly over the image (`POSITION`) and attend sharply (`ATTENTION`), the image moves the masks
without cutting them into patches (`IMAGE`, and kernels of the upscaling that are equal within their
2x2 window), logits are far larger than the stability's offset (`HEAD`), a constant channel shifts
each of the three masks to cover about a tenth of the image (`MASK_BIAS`), and the predicted IoU
scatters around the official threshold (`IOU_BIAS`). Thresholds are the official defaults, but for
the crops' suppression.
"""

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from convert.official import to_variables
from data.dicom import read_dicom
from pp_jax.predict.automatic import AutomaticConfig, SamAutomaticMaskGenerator
from pp_jax.predict.masks import decode_rle, to_coco
from pp_jax.sam import VARIANTS, Sam
from tests import official
from tests.test_masks import suppress

SEED = 0
POSITION, IMAGE, ATTENTION, UPSCALING, HEAD = 0.5, 0.1, 3.0, 2.0, 200.0
CONSTANT, MASK_BIAS, IOU_BIAS = 10.0, (-126.4, -0.66, -28.7), (0.89, 0.62, 0.2)

SIDE = 12  # Points per side: 432 masks per image.
CROPS = {"crop_n_layers": 1, "crop_nms_thresh": 0.5, "crop_n_points_downscale_factor": 2}
LEAST = 5  # What each filter has to remove, else its part of the parity is idle.

official_amg = official.segment_anything.automatic_mask_generator


class Both(NamedTuple):
    """The same weights on both sides."""

    torch: official.segment_anything.modeling.Sam
    variables: dict


@functools.cache
def weights() -> Both:
    model = official.randomise(official.build(VARIANTS["tiny"]), seed=SEED)
    state = model.state_dict()
    scales = {
        r"prompt_encoder\.pe_layer\..*": POSITION,
        r"image_encoder\.neck\.3\..*": IMAGE,
        r"prompt_encoder\.no_mask_embed\.weight": IMAGE,
        r"mask_decoder\.transformer\..*\.[qk]_proj\.weight": ATTENTION,
        r"mask_decoder\.output_upscaling\.[03]\.weight": UPSCALING,
        r"mask_decoder\.output_hypernetworks_mlps\..\.layers\.2\..*": HEAD,
    }
    for pattern, scale in scales.items():
        names = [name for name in state if re.fullmatch(pattern, name)]
        assert names, pattern
        for name in names:
            state[name] *= scale
    decoder = model.mask_decoder
    for layer in (decoder.output_upscaling[0], decoder.output_upscaling[3]):
        layer.weight[:] = layer.weight.mean((2, 3), keepdim=True)
    decoder.output_upscaling[3].weight[:, 0] = 0
    decoder.output_upscaling[3].bias[0] = CONSTANT
    for head, bias in zip(decoder.output_hypernetworks_mlps[1:], MASK_BIAS, strict=True):
        head.layers[2].weight[0] = 0
        head.layers[2].bias[0] = bias
    decoder.iou_prediction_head.layers[2].bias[1:] = torch.tensor(IOU_BIAS)
    arrays = {name: x.numpy() for name, x in model.state_dict().items()}
    return Both(model, to_variables(arrays, variant="tiny", source="random"))


def ours(image: np.ndarray, **parameters: Any) -> list[dict]:
    parameters = {"points_per_side": SIDE} | parameters
    generator = SamAutomaticMaskGenerator(Sam(VARIANTS["tiny"]), weights().variables, **parameters)
    return generator.generate(image)


@functools.cache
def found() -> list[dict]:
    return ours(waves())


def theirs(image: np.ndarray, **parameters: Any) -> tuple[list[dict], dict[str, int]]:
    """The official masks, and how many each filter has removed."""
    generator = official_amg.SamAutomaticMaskGenerator(
        weights().torch, points_per_side=SIDE, **parameters
    )
    examined = 3 * sum(len(grid) * 4**layer for layer, grid in enumerate(generator.point_grids))
    removed = {"iou": examined, "stability": 0, "edge": 0, "box NMS": 0, "crop NMS": 0}

    def score(masks: torch.Tensor, *args: float) -> torch.Tensor:
        stability = original_score(masks, *args)
        removed["iou"] -= len(masks)
        removed["stability"] += int((~(stability >= generator.stability_score_thresh)).sum())
        return stability

    def near(*args: Any) -> torch.Tensor:
        flags = original_near(*args)
        removed["edge"] += int(flags.sum())
        return flags

    def nms(
        boxes: torch.Tensor, scores: torch.Tensor, _: torch.Tensor, iou_threshold: float
    ) -> torch.Tensor:
        keep = torch.tensor(suppress(boxes.numpy(), scores.numpy(), iou_threshold), dtype=int)
        stage = "box NMS" if iou_threshold == generator.box_nms_thresh else "crop NMS"
        removed[stage] += len(boxes) - len(keep)
        return keep

    original_score = official_amg.calculate_stability_score
    original_near = official_amg.is_box_near_crop_edge
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official_amg, "calculate_stability_score", score)
        patch.setattr(official_amg, "is_box_near_crop_edge", near)
        patch.setattr(official_amg, "batched_nms", nms)
        records = generator.generate(image)
    return records, removed


def waves() -> np.ndarray:
    """A picture that needs no file, wider than high."""
    y, x = np.mgrid[:200, :300]
    channels = [127 + 100 * np.sin(x / 30 + y / 50), 127 + 100 * np.cos(x / 17 - y / 23)]
    return np.stack([*channels, (x * y) % 255], axis=-1).clip(0, 255).astype(np.uint8)


def photos_and_films(folder: Path) -> dict[str, Image.Image]:
    """The official example photos and two chest X-rays."""
    photos = sorted((folder / "sam_images").glob("*.jpg"))
    films = sorted((folder / "rsna_like" / "stage_2_train_images").glob("*.dcm"))[:2]
    images = {path.name: Image.open(path).convert("RGB") for path in photos}
    images |= {path.name: Image.fromarray(read_dicom(path)).convert("RGB") for path in films}
    assert len(images) == 5
    return images


def flat(records: list[dict]) -> np.ndarray:
    return np.stack([record["segmentation"].ravel() for record in records]).astype(np.float32)


def assert_same_set(got: list[dict], want: list[dict]) -> None:
    """Each mask has a counterpart with IoU >= .99, and with it the same scores and click."""
    a, b = flat(got), flat(want)
    common = a @ b.T
    iou = common / (a.sum(1)[:, None] + b.sum(1) - common)
    assert iou.max(1).min() >= 0.99
    assert iou.max(0).min() >= 0.99
    moved = []  # Pixels that another stability score means.
    for i, mine in zip(iou.argmax(0), want, strict=True):
        difference = abs(got[i]["stability_score"] - mine["stability_score"])
        moved.append(difference * mine["area"])
        assert got[i].keys() == mine.keys()
        assert got[i]["predicted_iou"] == pytest.approx(mine["predicted_iou"], abs=1e-4)
        assert got[i]["area"] == pytest.approx(mine["area"], rel=0.01)
        np.testing.assert_allclose(got[i]["bbox"], mine["bbox"], atol=2)
        assert got[i]["point_coords"] == mine["point_coords"]
        assert got[i]["crop_box"] == mine["crop_box"]
    # The score counts pixels. The random masks are level within a cell of the embedding: where a
    # cell's level is a threshold to 1e-4 of the logits' deviation, a whole row of it may change.
    assert np.quantile(moved, 0.95) <= 2
    assert max(moved) <= max(want[0]["segmentation"].shape) / VARIANTS["tiny"].grid


def areas(records: list[dict]) -> list[float]:
    return [record["segmentation"].mean() for record in records]


def test_same_masks_as_the_official_generator_with_crops() -> None:
    want, removed = theirs(waves(), **CROPS)
    assert len(want) >= 40
    assert 0.001 <= np.median(areas(want)) <= 0.25
    assert min(removed.values()) >= LEAST, removed
    assert_same_set(ours(waves(), **CROPS), want)


@pytest.mark.parametrize(
    ("step", "longest"),
    [(2, 320), pytest.param(1, 10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
    ids=["two photos and a film, small", "all, whole"],
)
def test_same_masks_as_the_official_generator_on_real_images(
    real_data: Path, step: int, longest: int
) -> None:
    counts, sizes, total = [], [], {}
    for name, picture in list(photos_and_films(real_data).items())[::step]:
        picture.thumbnail((longest, longest))
        image = np.asarray(picture)
        parameters = CROPS if name == "dog.jpg" else {}
        want, removed = theirs(image, **parameters)
        assert_same_set(ours(image, **parameters), want)
        counts.append(len(want))
        sizes += areas(want)
        total = {stage: total.get(stage, 0) + count for stage, count in removed.items()}
    assert np.mean(counts) >= 40, counts
    assert 0.001 <= np.median(sizes) <= 0.25
    assert min(total.values()) >= LEAST, total


def test_small_regions_vanish_as_in_the_official_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = []

    def remove(*args: Any, mode: str) -> tuple[np.ndarray, bool]:
        mask, change = official.segment_anything.utils.amg.remove_small_regions(*args, mode)
        changed.append(change)
        return mask, change

    monkeypatch.setattr(official_amg, "remove_small_regions", remove)
    cleaned = {"min_mask_region_area": 300}
    want, _ = theirs(waves(), **cleaned)
    assert sum(changed) >= LEAST
    assert_same_set(ours(waves(), **cleaned), want)


def test_the_three_output_modes_hold_the_same_masks() -> None:
    masks = found()
    runs = ours(waves(), output_mode="uncompressed_rle")
    texts = ours(waves(), output_mode="coco_rle")
    for mask, run, text in zip(masks, runs, texts, strict=True):
        np.testing.assert_array_equal(decode_rle(run["segmentation"]), mask["segmentation"])
        assert mask["area"] == mask["segmentation"].sum()
        assert text["segmentation"] == to_coco(run["segmentation"])


def test_points_given_as_a_grid_are_those_per_side() -> None:
    line = (np.arange(SIDE) + 0.5) / SIDE
    grid = np.array([(x, y) for y in line for x in line])
    got, want = ours(waves(), points_per_side=None, point_grids=[grid]), found()
    for mine, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(mine["segmentation"], other["segmentation"])
        np.testing.assert_allclose(mine["point_coords"], other["point_coords"])


def test_filters_that_pass_nothing_find_nothing() -> None:
    assert ours(waves(), pred_iou_thresh=50.0) == []
    assert ours(waves(), pred_iou_thresh=50.0, min_mask_region_area=9) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"points_per_side": None}, "are both None: give exactly one"),
        ({"point_grids": (((0.5, 0.5),),)}, r"are both given \(32 .*: give exactly one"),
        ({"output_mode": "png"}, "output_mode='png': choose one of binary_mask, uncompressed_rle"),
        ({"points_per_batch": 0}, "points_per_batch=0 needs 1 or more"),
        ({"crop_n_layers": -1}, "crop_n_layers=-1 0 or more"),
        (
            {"crop_n_layers": 3, "crop_n_points_downscale_factor": 4},
            "points_per_side=32 leaves no point for crop layer 3",
        ),
        (
            {"points_per_side": None, "point_grids": (((0.5, 0.5),),), "crop_n_layers": 1},
            r"\[1\] points do not serve .*crop_n_layers=1",
        ),
    ],
)
def test_a_parameter_that_cannot_be_is_named(wrong: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AutomaticConfig(**wrong)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)]
)
def test_an_image_that_is_not_rgb_in_bytes_is_named(image: np.ndarray) -> None:
    with pytest.raises(
        ValueError, match=rf"\({image.shape[0]}, .* dtype {image.dtype}.*give uint8"
    ):
        ours(image)
