"""`python -m pp_jax.predict` on a user's own images, from the command line to its files."""

import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data.folder import read_folder
from data.pipeline import train_batches
from data.records import load
from pp_jax import checkpoints
from pp_jax.config import Look
from pp_jax.predict import marks, strokes, writing
from pp_jax.predict.answering import embedding_path, make_prompted
from pp_jax.predict.automatic import SamAutomaticMaskGenerator
from pp_jax.sam import Sam, sized
from pp_jax.segment_anything import SamPredictor, build_sam
from tests.predict_world import BOXES, HEIGHT, WIDTH, failed, image_of, run, table, write_world
from tests.test_official_api import photo


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("predict"))


@pytest.fixture(scope="module")
def first(world) -> Path:
    """The output of the boxes, with everything that can be written."""
    flags = ("--save-embeddings", world / "kept", "--as-dataset", world / "dataset", "--nifti")
    run(world, "--boxes", world / "boxes.csv", *flags, out="first")
    return world / "first"


@pytest.fixture(scope="module")
def predictor(world) -> SamPredictor:
    return SamPredictor(build_sam("tiny", world / "weights"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        assert file.mode == "L"
        values = np.asarray(file)
    assert set(np.unique(values)) <= {0, 255}
    return values == 255


def best_logits(predictor: SamPredictor, **asked) -> tuple[np.ndarray, float]:
    logits, iou, _ = predictor.predict(return_logits=True, **asked)
    return logits[iou.argmax()], iou.max()


def test_masks_and_scores_are_those_of_the_official_predictor(first, predictor) -> None:
    rows = table(first / "objects.csv")
    numbered = [(image, k) for image in BOXES for k in range(1, len(BOXES[image]) + 1)]
    assert [(row["image"], int(row["object"])) for row in rows] == numbered
    for row, (name, number) in zip(rows, numbered, strict=True):
        predictor.set_image(image_of(name))
        logits, iou = best_logits(predictor, box=np.array(BOXES[name][number - 1]))
        mask = pixels(first / "masks" / f"{Path(name).stem}_{number}.png")
        np.testing.assert_array_equal(mask, logits > 0)
        np.testing.assert_allclose(float(row["predicted_iou"]), iou, atol=1e-6)
        stability = (logits > 1).sum() / (logits > -1).sum()
        assert 0 < stability < 1
        np.testing.assert_allclose(float(row["stability"]), stability, atol=1e-6)
        assert row["prompt"] == "box"


def test_measurements_are_those_of_the_masks_pixels(first) -> None:
    for row in table(first / "objects.csv"):
        mask = pixels(first / "masks" / f"{Path(row['image']).stem}_{row['object']}.png")
        grey = cv2.cvtColor(image_of(row["image"]), cv2.COLOR_RGB2GRAY)[mask].astype(float)
        got = [float(row[f"intensity_{name}"]) for name in ("mean", "sd")]
        np.testing.assert_allclose(got, [grey.mean(), grey.std()])
        assert float(row["area"]) == mask.sum()
        assert 0 <= float(row["eccentricity"]) <= 1
        assert float(row["perimeter"]) > 0


def decoded(counts: str, height: int, width: int) -> np.ndarray:
    """As `rleFrString` and `rleDecode` of cocoapi's maskApi.c."""
    runs, place = [], 0
    while place < len(counts):
        value, shift, more = 0, 0, True
        while more:
            c = ord(counts[place]) - 48
            value |= (c & 0x1F) << shift
            more, place, shift = bool(c & 0x20), place + 1, shift + 5
            if not more and c & 0x10:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    flat = np.concatenate([np.full(run, i % 2 == 1) for i, run in enumerate(runs)])
    return flat.reshape(width, height).T


def test_coco_decodes_to_the_masks_with_their_boxes_and_scores(first) -> None:
    coco = json.loads((first / "coco.json").read_text())
    images = {image["id"]: image for image in coco["images"]}
    sizes = {i["file_name"]: (i["width"], i["height"]) for i in images.values()}
    assert sizes == {"a.png": (WIDTH, HEIGHT), "film.dcm": (120, 80)}
    assert [a["id"] for a in coco["annotations"]] == [1, 2, 3]
    rows = table(first / "objects.csv")
    for one, row in zip(coco["annotations"], rows, strict=True):
        name = images[one["image_id"]]["file_name"]
        assert name == row["image"]
        mask = pixels(first / "masks" / f"{Path(name).stem}_{row['object']}.png")
        np.testing.assert_array_equal(decoded(one["segmentation"]["counts"], *mask.shape), mask)
        assert one["segmentation"]["size"] == list(mask.shape)
        assert one["bbox"] == list(cv2.boundingRect(mask.astype(np.uint8)))
        assert (one["area"], one["score"]) == (mask.sum(), float(row["predicted_iou"]))
        assert (one["category_id"], one["iscrowd"]) == (1, 0)


def test_boxes_are_of_each_mask_and_of_its_components(first) -> None:
    rows = table(first / "boxes.csv")
    for path in sorted((first / "masks").glob("*.png")):
        stem, number = path.stem.split("_")
        mask = pixels(path).astype(np.uint8)
        x, y, w, h, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)[2][1:].T
        own = [r for r in rows if Path(r["image"]).stem == stem and r["object"] == number]
        got = [tuple(int(row[c]) for c in ("x0", "y0", "x1", "y1")) for row in own]
        x0, y0, width, height = cv2.boundingRect(mask)
        assert got[0] == (x0, y0, x0 + width, y0 + height)
        assert sorted(got[1:]) == sorted(zip(x, y, x + w, y + h, strict=True))
        assert [int(row["component"]) for row in own] == list(range(len(own)))


def test_nifti_holds_the_union_of_an_images_masks(first) -> None:
    union = pixels(first / "masks" / "a_1.png") | pixels(first / "masks" / "a_2.png")
    volume = np.asarray(nibabel.load(first / "masks" / "a.nii.gz").dataobj)
    np.testing.assert_array_equal(volume[..., 0].T, union)


def test_an_overlay_shows_masks_and_prompts_on_the_untouched_image() -> None:
    image, mask = photo(60, 80), np.zeros((60, 80), bool)
    mask[10:30, 20:50] = True
    clicked = marks.Question(
        "point+box",
        points=np.array([[70.0, 50.0]]),
        labels=np.array([0]),
        box=np.array([5, 5, 60, 40]),
    )
    drawn = writing.draw(image, [writing.Found(clicked, mask, 1, 1)])
    changed = (drawn != image).any(-1)
    assert changed[mask].mean() > 0.99
    frame = np.zeros_like(mask)
    frame[5:40, 5:60] = True
    frame[6:39, 6:59] = False
    assert (drawn[frame & ~mask] == (240, 228, 66)).all()
    assert (drawn[50, 70] == 0).all()
    around_click = np.hypot(*np.mgrid[-50:10, -70:10]) < 5
    np.testing.assert_array_equal(changed & ~mask & ~frame & ~around_click, False)


def test_saved_embeddings_give_the_same_bytes_and_an_older_output_is_replaced(
    world, first, capsys
) -> None:
    kept = sorted((world / "kept").glob("*.npz"))
    assert len(kept) == 2
    good = kept[0].read_bytes()
    kept[0].write_bytes(good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
    shutil.copytree(first, world / "older")
    (world / "older" / "masks" / "a_3.png").write_bytes(b"")
    flags = ("--boxes", world / "boxes.csv", "--save-embeddings", world / "kept")
    run(world, *flags, out="older")
    assert "embeddings: 1 reused, 1 computed" in capsys.readouterr().out
    assert kept[0].read_bytes() == good
    for name in ("masks/a_1.png", "masks/a_2.png", "masks/film_1.png", "objects.csv", "coco.json"):
        assert (world / "older" / name).read_bytes() == (first / name).read_bytes()
    assert not (world / "older" / "masks" / "a_3.png").exists()


def test_an_embedding_is_taken_only_from_a_file_that_was_written_for_it(tmp_path) -> None:
    features = np.random.default_rng(0).normal(size=(1, 2, 2, 3)).astype(np.float32)
    paths = [tmp_path / "kept" / f"{name}.npz" for name in "abcd"]
    writing.write_embedding(paths[0], features)
    shutil.copy(paths[0], paths[1])
    np.savez(paths[2], features=features)
    paths[3].write_text("no array")
    for path in (*paths[1:], tmp_path / "none.npz"):
        assert writing.read_embedding(path, shape=(1, 2, 2, 3)) is None
    assert writing.read_embedding(paths[0], shape=(1, 2, 3, 2)) is None
    np.testing.assert_array_equal(writing.read_embedding(paths[0], shape=(1, 2, 2, 3)), features)


def test_an_embedding_is_kept_under_all_that_made_it(tmp_path) -> None:
    image, facts = photo(8, 6), {"filter": "none", "weights": "abc"}
    others = (
        (image, facts | {"filter": "canny"}),
        (image, facts | {"weights": "abd"}),
        (image ^ 1, facts),
        (image.reshape(6, 8, 3), facts),
    )
    names = {writing.embedding_file(tmp_path, x, facts=y) for x, y in ((image, facts), *others)}
    assert len(names) == 5


def test_points_box_and_mask_mark_one_object_and_refinements_follow(
    world, first, predictor
) -> None:
    drawn_mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    drawn_mask[20:70, 30:90] = 255
    Image.fromarray(drawn_mask).save(world / "mask.png")
    points = ("--point", 40, 60, "--point", 100, 20, "--label", 1, 0, "--box", 10, 20, 120, 90)
    flags = ("--no-multimask", "--refine", "close=2", "fill_holes", "--save-embeddings")
    more = (*flags, world / "kept", "--mask-prompt", world / "mask.png")
    run(world, *points, *more, images="images/a.png")
    predictor.set_image(image_of("a.png"))
    logits, _ = best_logits(
        predictor,
        point_coords=np.array([[40, 60], [100, 20]]),
        point_labels=np.array([1, 0]),
        box=np.array([10, 20, 120, 90]),
        mask_input=strokes.mask_to_prompt(drawn_mask > 0, side=256)[None],
        multimask_output=False,
    )
    disc = np.hypot(*np.mgrid[-2:3, -2:3]) <= 2
    raw = (logits > 0).astype(np.uint8)
    want = ndimage.binary_fill_holes(cv2.morphologyEx(raw, cv2.MORPH_CLOSE, disc.astype(np.uint8)))
    assert (want != raw).any()
    np.testing.assert_array_equal(pixels(world / "out" / "masks" / "a_1.png"), want)
    assert table(world / "out" / "objects.csv")[0]["prompt"] == "box+point+mask"


def test_no_prompt_asks_for_the_one_object_that_the_model_finds(
    world, first, predictor, capsys
) -> None:
    flags = ("--prompt-free", "--save-embeddings", world / "kept")
    run(world, *flags, images="images/a.png")
    told = capsys.readouterr()
    assert "not trained with --prompt none" in told.err
    assert (
        "SAM sees: filter none (sizes in pixels of the 256 px model frame), fusion replace"
        in told.out
    )
    predictor.set_image(image_of("a.png"))
    want = best_logits(predictor)[0] > 0
    np.testing.assert_array_equal(pixels(world / "out" / "masks" / "a_1.png"), want)


def test_automatic_masks_at_another_image_size_are_those_of_the_generator(world, predictor) -> None:
    grid = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.1}
    flags = [x for name, v in grid.items() for x in (f"--{name.replace('_', '-')}", v)]
    run(world, "--auto", *flags, "--image-size", 320, images="images/a.png")
    model = Sam(sized("tiny", 320))
    generator = SamAutomaticMaskGenerator(model, predictor.sam.variables, **grid)
    records = generator.generate(image_of("a.png"))
    rows = table(world / "out" / "objects.csv")
    assert len(rows) == len(records) >= 1
    for row, one in zip(rows, records, strict=True):
        mask = pixels(world / "out" / "masks" / f"a_{row['object']}.png")
        np.testing.assert_array_equal(mask, one["segmentation"])
        assert float(row["stability"]) == one["stability_score"]
        assert row["prompt"] == "auto"
    assert json.loads((world / "out" / "predict.json").read_text())["image_size"] == 320


def test_a_checkpoint_given_twice_answers_as_that_checkpoint(world, first, capsys) -> None:
    weights = (world / "weights",) * 2
    flags = ("--boxes", world / "boxes.csv", "--save-embeddings", world / "kept")
    run(world, *flags, out="twice", weights=weights)
    with pytest.raises(SystemExit, match="2"):
        run(world, "--auto", out="bad", weights=weights)
    told = capsys.readouterr()
    assert f"ensemble of 2: {weights[0]}, {weights[0]}" in told.out
    assert "embeddings: 4 reused, 0 computed" in told.out
    assert "error: --auto with 2 checkpoints: automatic masks are those of one" in told.err
    for name in ("masks/a_1.png", "masks/a_2.png", "masks/film_1.png", "objects.csv", "coco.json"):
        assert (world / "twice" / name).read_bytes() == (first / name).read_bytes()
    members = json.loads((world / "twice" / "predict.json").read_text())["members"]
    digest = checkpoints.sha256(world / "weights" / "MANIFEST.json")
    assert [(one["checkpoint"], one["step"], one["weights"]) for one in members] == [
        (str(weights[0]), None, digest)
    ] * 2


def test_saved_embeddings_of_stretched_images_give_the_same_masks(tmp_path, predictor) -> None:
    stretched = predictor.sam._replace(look=Look(preprocess="medsam"))
    asks = {"a": marks.same_everywhere(marks.boxes([10, 20, 100, 90]), None, None)}
    counts, kept = Counter(), embedding_path(tmp_path, stretched, weights="w")
    options = {"multimask": True, "steps": (), "kept": [kept], "counts": counts}
    segment = make_prompted([stretched], asks, **options)
    (computed,), (reused,) = segment("a", image_of("a.png")), segment("a", image_of("a.png"))
    assert counts == {"computed": 1, "reused": 1}
    np.testing.assert_array_equal(reused.mask, computed.mask)
    assert reused.mask[:, 75:].any()
    assert kept(image_of("a.png")) != embedding_path(tmp_path, predictor.sam, weights="w")(
        image_of("a.png")
    )


# The data set.


@pytest.mark.filterwarnings("ignore:.*images of one person")
def test_a_data_set_is_read_by_training_as_machine_made(world, first) -> None:
    folder = world / "dataset"
    with pytest.warns(UserWarning, match="masks of 2 of 2 images are machine-made"):
        records = read_folder(folder)
    assert [(r.id, r.target) for r in records] == [("a", "machine-made"), ("film", "machine-made")]
    for record, name in zip(records, BOXES, strict=True):
        sample = load(record)
        np.testing.assert_array_equal(sample.image, image_of(name))
        masks = [
            pixels(first / "masks" / f"{record.id}_{k + 1}.png") for k in range(len(BOXES[name]))
        ]
        np.testing.assert_array_equal(sample.findings, np.any(masks, axis=0))
    batch = next(train_batches(records, side=256, batch=2, seed=0, max_objects=1, objects="union"))
    assert batch.targets.sum() > 0
    rows = table(folder / "provenance.csv")
    weights = checkpoints.sha256(world / "weights" / "MANIFEST.json")
    scores = [row["predicted_iou"] for row in table(first / "objects.csv")]
    assert [row["image"] for row in rows] == ["a.png", "a.png", "film.png"]
    assert [row["predicted_iou"] for row in rows] == scores
    for row in rows:
        assert (row["weights"], row["accepted"], row["machine_made"]) == (weights, "yes", "yes")
        assert row["prompt"] == "box"


def test_an_image_without_objects_is_a_claim_as_well(tmp_path) -> None:
    rows = [writing.write_image(tmp_path, "a", photo(9, 8), [], file="a.jpg")]
    writing.write_example(tmp_path, "a", photo(9, 8), [])
    writing.write_provenance(tmp_path, rows, weights="w")
    (row,) = table(tmp_path / "provenance.csv")
    assert (row["image"], row["object"], row["machine_made"]) == ("a.png", "0", "yes")
    assert not pixels(tmp_path / "masks" / "a.png").any()


def test_an_empty_mask_has_an_area_of_0_and_no_box(tmp_path) -> None:
    empty = writing.Found(marks.Question("none"), np.zeros((9, 8), bool), 0.5, 0.0)
    rows = writing.write_image(tmp_path, "a", photo(9, 8), [empty], file="a.png")
    assert (rows.objects[0]["area"], rows.objects[0]["perimeter"], rows.boxes) == (0.0, "", [])
    assert rows.annotations[0]["bbox"] == [0, 0, 0, 0]


# Damage.

BOX = ("--box", 10, 20, 100, 90)


def test_a_damaged_image_among_others_is_skipped_and_reported(world, first, capsys) -> None:
    shutil.copytree(world / "images", world / "some")
    broken = world / "some" / "b.png"
    broken.write_bytes((world / "images" / "a.png").read_bytes()[:2000])
    flags = ("--box", 5, 8, 70, 60, "--save-embeddings", world / "kept")
    with pytest.raises(SystemExit, match="2"):
        run(world, *flags, images="some", out="most")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"skipped: {broken}: not a readable picture")
    assert lines[-1].startswith(f"error: 1 of 3 images were skipped, first: {broken}: ")
    assert [row["image"] for row in table(world / "most" / "objects.csv")] == ["a.png", "film.dcm"]
    assert len(json.loads((world / "most" / "predict.json").read_text())["skipped"]) == 1
    with pytest.raises(SystemExit, match="2"):
        run(world, *BOX, images="some/b.png", out="bad")
    assert "b.png: not a readable picture" in failed(capsys)
