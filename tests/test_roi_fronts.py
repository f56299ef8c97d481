"""Regions of interest at `predict`, at `eval.py` and under the official names."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data.records import load
from data.rsna import read_rsna
from pp_jax.config import Look
from pp_jax.evaluate.methods import METHODS
from pp_jax.predict import asking
from pp_jax.predict.answering import embedding_path
from pp_jax.predict.asking import Decoded, Marks, answer_marks, embed_once, make_asker, zoomed
from pp_jax.predict.automatic import AutomaticConfig, generate
from pp_jax.predict.official import LoadedSam
from pp_jax.preprocess import roi as regions
from pp_jax.preprocess.stage import make_stage
from pp_jax.segment_anything import SamAutomaticMaskGenerator, SamPredictor, build_sam
from tests.fronts import front
from tests.predict_world import HEIGHT, WIDTH, run, table, write_world
from tests.test_official_api import photo

TOP, LEFT = 20, 30
FILM = (slice(TOP, TOP + HEIGHT), slice(LEFT, LEFT + WIDTH))
BOXES = np.float32([[10, 20, 100, 90], [60, 5, 80.5, 50]])
CORNER = np.float32([LEFT, TOP, LEFT, TOP])


def framed() -> np.ndarray:
    """The photo on a black frame with a bright letter."""
    image = np.zeros((TOP + HEIGHT + 3, LEFT + WIDTH + 20, 3), np.uint8)
    image[4:14, 5:9] = 255
    image[FILM] = photo(HEIGHT, WIDTH)
    return image


def pasted(masks: np.ndarray, where: tuple[slice, slice] = FILM) -> np.ndarray:
    whole = np.zeros((*masks.shape[:-2], *framed().shape[:2]), bool)
    whole[..., *where] = masks
    return whole


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("roi"))
    Image.fromarray(framed()).save(folder / "framed.png")
    return folder


@pytest.fixture(scope="module")
def sam(world) -> LoadedSam:
    return build_sam("tiny", world / "weights")


@pytest.fixture(scope="module")
def predictor(sam) -> SamPredictor:
    return SamPredictor(sam)


def found(world: Path) -> list[np.ndarray]:
    count = len(table(world / "out" / "objects.csv"))
    files = [world / "out" / "masks" / f"framed_{k}.png" for k in range(1, count + 1)]
    return [np.asarray(Image.open(file)) > 0 for file in files]


def best(predictor: SamPredictor, **asked) -> np.ndarray:
    masks, iou, _ = predictor.predict(**asked)
    return masks[iou.argmax()]


def test_the_model_sees_the_content_as_if_there_were_no_frame_bit_for_bit(sam) -> None:
    stage = make_stage(Look(), side=sam.model.config.image_size)
    plain = make_asker(sam.model, sam.variables, stage=stage)
    content = zoomed(plain, roi=regions.make("content"))
    film = photo(HEIGHT, WIDTH)
    want = answer_marks(plain, film, Marks(BOXES), single=False)
    assert 0.01 < (want.logits > 0).mean() < 0.99
    got = answer_marks(content, framed(), Marks(BOXES + CORNER), single=False)
    np.testing.assert_array_equal(got.logits[:, *FILM], want.logits)
    np.testing.assert_array_equal(got.logits > 0, pasted(want.logits > 0))
    np.testing.assert_array_equal(got.candidates, pasted(want.candidates))
    np.testing.assert_array_equal(got.iou, want.iou)
    embedded = embed_once(content, film)
    without_black = answer_marks(content, film, Marks(BOXES), single=False, embedded=embedded)
    np.testing.assert_array_equal(without_black.logits, want.logits)
    # The box is 20.5 x 45 pixels, so that 5.125 and 11.25 are added on each side.
    where = (slice(0, 62), slice(54, 86))
    inner = Marks(BOXES[1:] - np.float32([54, 0, 54, 0]))
    alone = answer_marks(plain, film[where], inner, single=False)
    context = zoomed(plain, roi=regions.make("box-context:1.5"))
    assert embed_once(context, film) is None
    got = answer_marks(context, film, Marks(BOXES), single=False)
    np.testing.assert_array_equal(got.logits[1][where], alone.logits[0])
    assert (got.logits[1] > 0).sum() == (alone.logits > 0).sum() > 0
    assert got.iou[1] == alone.iou[0]


def test_predicted_content_is_refined_in_its_window_and_its_embedding_kept(
    world, predictor, capsys
) -> None:
    def closed(mask: np.ndarray) -> np.ndarray:
        disc = (np.hypot(*np.mgrid[-9:10, -9:10]) <= 9).astype(np.uint8)
        return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, disc) > 0

    predictor.set_image(photo(HEIGHT, WIDTH))
    raw = best(predictor, box=BOXES[0])
    want = pasted(closed(raw))
    assert (closed(pasted(raw)) != want).any()  # A frame around it would make a difference.
    flags = ("--box", *(BOXES[0] + CORNER), "--refine", "close=9", "--save-embeddings")
    for spec, told in (("content", "0 reused, 1 computed"), ("content:5", "1 reused, 0 computed")):
        run(world, *flags, world / "kept", "--roi", spec, images="framed.png")
        assert f"embeddings: {told}" in capsys.readouterr().out
        np.testing.assert_array_equal(found(world), want[None])
        assert json.loads((world / "out" / "predict.json").read_text())["roi"] == spec


def test_an_embedding_of_the_content_is_kept_apart_from_that_of_the_whole(tmp_path, sam) -> None:
    specs = ("none", "content", "content:threshold=5", "content:6")
    shown = [sam._replace(look=Look(roi=spec)) for spec in specs]
    names = [embedding_path(tmp_path, one, weights="abc")(framed()).name for one in shown]
    assert names[1] == names[2]
    assert len(set(names)) == 3


def test_predicted_box_context_is_the_predictors_answer_on_each_slice(world, predictor) -> None:
    boxes = (BOXES + CORNER).tolist()
    run(
        world,
        *("--box", *boxes[0], "--box", *boxes[1], "--roi", "box-context:2"),
        images="framed.png",
    )
    image = framed()
    # Of 90 x 70 and of 20.5 x 45 pixels: 45 and 35, then 10.25 and 22.5 are added on each side.
    slices = [(slice(5, 120), slice(0, 175)), (slice(2, 93), slice(79, 121))]
    want = []
    for where, box in zip(slices, boxes, strict=True):
        predictor.set_image(image[where])
        corner = np.array([where[1].start, where[0].start] * 2)
        want.append(pasted(best(predictor, box=np.array(box) - corner), where))
        assert want[-1].any()
    np.testing.assert_array_equal(found(world), want)


def test_automatic_masks_of_the_content_are_pasted_back(world, sam) -> None:
    grid = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.1}
    flags = [x for name, v in grid.items() for x in (f"--{name.replace('_', '-')}", v)]
    run(world, "--auto", *flags, "--roi", "content", images="framed.png")
    stage = make_stage(Look(), side=sam.model.config.image_size)
    config = AutomaticConfig(**grid)
    records = generate(sam.model, sam.variables, photo(HEIGHT, WIDTH), config, stage=stage)
    assert records
    np.testing.assert_array_equal(found(world), [pasted(r["segmentation"]) for r in records])


@pytest.mark.parametrize("kind", [SamPredictor, SamAutomaticMaskGenerator])
def test_the_official_interface_refuses_what_it_would_not_cut(sam, kind) -> None:
    with pytest.raises(ValueError, match=r"roi content.*pp_jax\.preprocess\.roi.*pp_jax\.predict"):
        kind(sam._replace(look=dataclasses.replace(sam.look, roi="content")))
    kind(sam._replace(look=dataclasses.replace(sam.look, roi="none")))


def test_an_evaluation_shows_a_region_and_scores_the_whole_image(
    converted, data, tmp_path, monkeypatch
) -> None:
    def everything(model: object, weights: object, embedded: object, marks: Marks) -> Decoded:
        count = len(marks.boxes)
        return Decoded(np.ones((count, 4, 64, 64), np.float32), np.ones((count, 4), np.float32))

    monkeypatch.setattr(asking, "_decode_marks", everything)
    where = ("--checkpoint", converted, "--data-dir", data, "--out", tmp_path / "report")
    asked = ("--prompt", "box", "--roi", "box-context:2", "--limit", 4, "--pictures", 2)
    ended = front("eval.py", *where, *asked, "--confidence", "stability")
    assert ended.code == 0, ended.err
    assert list((tmp_path / "report" / "overlays").iterdir())
    records = {record.id: record for record in read_rsna(data)}
    images = [x for x in table(tmp_path / "report" / "images.csv") if x["choice"] == "model"]
    growth = {METHODS["box"].label: 0, converted.name: 0.5}
    scored = [row for row in images if row["method"] in growth]
    assert {row["method"] for row in scored} == set(growth)
    for row in scored:
        sample, grow = load(records[row["id"]]), growth[row["method"]]
        shown = np.zeros(sample.findings.shape, bool)
        for x0, y0, x1, y1 in sample.boxes:
            wide, high = grow * (x1 - x0), grow * (y1 - y0)
            low = np.maximum(np.floor([y0 - high, x0 - wide]), 0).astype(int)
            top = np.ceil([y1 + high, x1 + wide]).astype(int)
            shown[low[0] : top[0], low[1] : top[1]] = True
        both = 2 * (shown & sample.findings).sum() / (shown.sum() + sample.findings.sum())
        assert float(row["dice"]) == pytest.approx(both)
