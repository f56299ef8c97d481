"""`python -m pp_jax.predict` on a user's own images, from the command line to its files."""

import csv
import json
import shutil
import warnings
from pathlib import Path

import cv2
import jax
import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data.folder import read_folder
from data.pipeline import train_batches
from data.records import load
from pp_jax import checkpoints, tree
from pp_jax.predict import marks, strokes, writing
from pp_jax.predict.__main__ import Predict, main, read_marks
from pp_jax.predict.automatic import SamAutomaticMaskGenerator
from pp_jax.sam import Sam, sized
from pp_jax.sam.model import init
from pp_jax.segment_anything import SamPredictor, build_sam
from tests.dicom_files import write_dicom
from tests.test_official_api import photo

HEIGHT, WIDTH = 97, 150
BOXES = {"a.png": [(10, 20, 100, 90), (60, 5, 80.5, 50)], "film.dcm": [(5, 8, 70, 60)]}
TOLD = "image,x0,y0,x1,y1\n" + "".join(
    f"{image},{','.join(map(str, box))}\n" for image in BOXES for box in BOXES[image]
)


def drawn(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random values of one parameter; those of the mask head are large, so that logits pass 1."""
    noise = rng.normal(size=shape).astype(np.float32)
    if path.endswith("scale"):
        return 1 + 0.1 * noise
    if len(shape) < 2:
        return 0.1 * noise
    head = "output_hypernetworks" in path and "layers_2" in path
    return noise * np.float32(np.prod(shape[:-1]) ** -0.5 * (20 if head else 1))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Weights, two images and their boxes."""
    folder = tmp_path_factory.mktemp("predict")
    shapes = jax.eval_shape(lambda key: init(Sam(sized("tiny")), key), jax.random.key(0))
    rng = np.random.default_rng(0)
    leaves = tree.flatten(shapes).items()
    variables = tree.unflatten({path: drawn(path, x.shape, rng) for path, x in leaves})
    facts = {"kind": "converted", "variant": "tiny", "preprocess": "sam"}
    checkpoints.save(folder / "weights", variables, facts=facts)
    (folder / "images").mkdir()
    Image.fromarray(photo(HEIGHT, WIDTH)).save(folder / "images" / "a.png")
    write_dicom(folder / "images" / "film.dcm", photo(80, 120)[..., 0])
    (folder / "boxes.csv").write_text(TOLD)
    return folder


def run(world: Path, *args: object, images: str = "images", out: str = "out") -> None:
    paths = ["--checkpoint", world / "weights", "--out", world / out]
    with warnings.catch_warnings():
        warnings.filterwarnings("default", module="pp_jax.predict.__main__")
        main([str(x) for x in (world / images, *paths, *args)])


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


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def image_of(name: str) -> np.ndarray:
    """The pixels as they were drawn."""
    return photo(HEIGHT, WIDTH) if name == "a.png" else photo(80, 120)[..., :1].repeat(3, axis=2)


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
    assert "filter: none, fusion: replace, blend: 0.5 (as SAM was trained)" in told.out
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


# Marks.


def rows_of(text: str, *columns: str) -> list[marks.Row]:
    cells = (dict(zip(columns, line.split(","), strict=True)) for line in text.split())
    return [(f"f.csv, line {i}", row) for i, row in enumerate(cells, start=2)]


def test_boxes_come_in_both_layouts_and_rsna_has_rows_without() -> None:
    rsna = marks.boxes_of_rows(rows_of("1,2,3,4 ,,, 10,20,1,2", "x", "y", "width", "height"))(
        (30, 40), 256
    )
    assert [q.box.tolist() for q in rsna] == [[1, 2, 4, 6], [10, 20, 11, 22]]
    plain = marks.boxes_of_rows(rows_of("1,2,3,4", "x0", "y0", "x1", "y1"))((30, 40), 256)
    assert [q.box.tolist() for q in plain] == [[1, 2, 3, 4]]


def test_a_scribble_is_clicks_on_the_drawn_line_one_object_each() -> None:
    rows = rows_of("2,3,one 30,3,one 5,20,two 5,8,two", "x", "y", "object")
    across, down = marks.scribbles_of_rows(rows)((40, 50), 256)
    assert {tuple(p) for p in across.points} >= {(2, 3), (30, 3)}
    assert (across.points[:, 1] == 3).all()
    assert (down.points[:, 0] == 5).all()
    assert (across.labels == 1).all()
    assert across.mask is None


def test_a_lasso_is_clicks_and_a_mask_on_the_images_that_its_csv_names(tmp_path) -> None:
    corners = np.array([(20, 10), (120, 15), (90, 80), (25, 70)])
    lines = "".join(f"a,{x},{y},left\n" for x, y in corners)
    (tmp_path / "lasso.csv").write_text("image,x,y,object\n" + lines + "b,1,1,\n")
    settings = Predict((), Path("w"), Path("o"), lasso=tmp_path / "lasso.csv")
    with (
        pytest.warns(UserWarning, match=r"1 images without a row are left out, first: c\.png"),
        pytest.warns(UserWarning, match="1 names without an image are left out, first: b"),
    ):
        asks = read_marks(settings, {"a": Path("a.png"), "c": Path("c.png")})
    assert list(asks) == ["a"]
    (question,) = asks["a"]((HEIGHT, WIDTH), 256)
    want = strokes.lasso_prompt(corners.astype(float), shape=(HEIGHT, WIDTH), side=256)
    np.testing.assert_array_equal(question.points, want.points)
    np.testing.assert_array_equal(question.mask, want.mask)
    assert (question.labels == 1).all()
    assert (question.prompt, question.box) == ("lasso", None)


def test_a_mask_prompt_is_a_binary_mask_or_logits_as_they_are() -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[20:70, 30:90] = True
    got = marks.mask_logits(mask, size=(HEIGHT, WIDTH), side=256)
    np.testing.assert_array_equal(got, strokes.mask_to_prompt(mask, side=256))
    logits = np.random.default_rng(0).normal(size=(1, 64, 64))
    same = marks.mask_logits(logits, size=(HEIGHT, WIDTH), side=256)
    np.testing.assert_array_equal(same, logits[0].astype(np.float32))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((5, 4), bool), "mask prompt of 4 x 5 pixels for an image of 150 x 97"),
        (np.zeros((HEIGHT, WIDTH), bool), "without a marked pixel"),
        (np.zeros((63, 64)), r"logits are \(64, 64\)"),
        (np.full((64, 64), np.nan), "must be finite"),
        (np.full((64, 64), "x"), r"logits are \(64, 64\)"),
    ],
)
def test_a_mask_prompt_of_another_size_or_kind_is_an_error(mask, message) -> None:
    with pytest.raises(ValueError, match=message):
        marks.mask_logits(mask, size=(HEIGHT, WIDTH), side=256)


# Mistakes.

BOX = ("--box", 10, 20, 100, 90)
MISTAKES = {
    "say what to segment by one of --box, --point": (),
    "--auto and --box do not go together": ("--auto", *BOX),
    "--box 1 2 3: give X0 Y0 X1 Y1": ("--box", 1, 2, 3),
    "box [100.0, 20.0, 10.0, 90.0]: corners swapped": ("--box", 100, 20, 10, 90),
    "box [nan, 20.0, 10.0, 90.0]: must be finite": ("--box", "nan", 20, 10, 90),
    "a.png: box [10.0, 20.0, 151.0, 90.0] leaves the image of 150 x 97": (
        *("--box", 10, 20, 151, 90),
    ),
    "a.png: box [-1.0, 20.0, 100.0, 90.0] leaves the image": ("--box", -1, 20, 100, 90),
    "a.png: point (150, 5) lies outside the image": ("--point", 150, 5),
    "--label 1 0: 2 labels for 1 points": ("--point", 1, 2, "--label", 1, 0),
    "--label without --point": (*BOX, "--label", 1),
    "point label 2: must be 1": ("--point", 1, 2, "--label", 2),
    "point_coords [[nan, 2.0]]: must be finite": ("--point", "nan", 2),
    "--point 1 2 3: give pairs": ("--point", 1, 2, 3),
    "2 boxes with points": (*BOX, *BOX, "--point", 1, 2),
    "unknown refinement 'sharpen': choose from": (*BOX, "--refine", "sharpen"),
    "image size 250: needs a multiple of 16 from 256 to 2048": (*BOX, "--image-size", 250),
    "blend=2.0 is no weight": (*BOX, "--blend", 2),
    "--pred-iou-thresh 0.5: only --auto looks at it": (*BOX, "--pred-iou-thresh", 0.5),
    "--stability-score-thresh nan: must lie in [0, 1]": (
        *("--auto", "--stability-score-thresh", "nan"),
    ),
    "--points-per-side 0: must be at least 1": ("--auto", "--points-per-side", 0),
    "No such file or directory: 'nowhere.csv'": ("--boxes", "nowhere.csv"),
}


def failed(capsys) -> str:
    """The one line that a user sees."""
    (line,) = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("warning")]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_clear_line_and_leaves_nothing(world, capsys, message) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(world, *MISTAKES[message], images="images/a.png", out="bad")
    assert message.lower() in failed(capsys).lower()
    assert not list(world.glob("bad*"))


def csv_of_others(world: Path) -> tuple:
    (world / "other.csv").write_text(TOLD.replace("a.png", "c.png").replace("film", "d"))
    return ("--boxes", world / "other.csv")


def csv_with_a_swapped_row(world: Path) -> tuple:
    (world / "swapped.csv").write_text(TOLD + "a.png,9,9,3,10\n")
    return ("--boxes", world / "swapped.csv")


def csv_without_columns(world: Path) -> tuple:
    (world / "columns.csv").write_text("image,x\na.png,1\n")
    return ("--boxes", world / "columns.csv")


def csv_with_words(world: Path) -> tuple:
    (world / "words.csv").write_text("image,x,y\na.png,left,3\n")
    return ("--scribble", world / "words.csv")


def logits_in_a_text(world: Path) -> tuple:
    (world / "text.npy").write_text("logits")
    return ("--mask-prompt", world / "text.npy")


def small_mask(world: Path) -> tuple:
    Image.new("L", (20, 10), 255).save(world / "small.png")
    return ("--mask-prompt", world / "small.png")


FILES = {
    "other.csv: names none of the 2 images": csv_of_others,
    "swapped.csv, line 5: box [9.0, 9.0, 3.0, 10.0]: corners swapped": csv_with_a_swapped_row,
    "columns.csv: needs the columns image,x0,y0,x1,y1 or patientId,x,y": csv_without_columns,
    "words.csv, line 2: x 'left', y '3': must be finite": csv_with_words,
    "text.npy: not an array saved by numpy.save": logits_in_a_text,
}


@pytest.mark.parametrize("message", FILES)
def test_a_bad_file_of_marks_is_one_clear_line(world, capsys, message) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(world, *FILES[message](world), out="bad")
    assert message in failed(capsys)


def test_a_mask_prompt_of_another_size_is_one_clear_line(world, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(world, *small_mask(world), images="images/a.png", out="bad")
    assert "a.png: mask prompt of 20 x 10 pixels for an image of 150 x 97" in failed(capsys)


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


def test_what_is_not_an_older_output_is_never_replaced(world, first, capsys) -> None:
    foreign = world / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    for folder, flags in (("foreign", ()), ("fresh", ("--as-dataset", world / "dataset"))):
        with pytest.raises(SystemExit, match="2"):
            run(world, *BOX, *flags, out=folder)
        assert "not empty" in failed(capsys)
    assert (foreign / "thesis.txt").read_text() == "years of work"
    assert not (world / "fresh").exists()


def test_no_image_two_of_one_name_and_no_weights_are_one_clear_line(world, capsys) -> None:
    (world / "empty").mkdir()
    shutil.copytree(world / "images", world / "twins")
    shutil.copy(world / "images" / "a.png", world / "twins" / "a.jpg")
    for images, message in (
        ("empty", "empty: no image in this folder"),
        ("nowhere", "nowhere: no such file or folder"),
        ("twins", "two images named a would share one mask"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(world, *BOX, images=images, out="bad")
        assert message in failed(capsys)
    with pytest.raises(SystemExit, match="2"):
        main(
            [str(x) for x in (world / "images", "--checkpoint", world, "--out", world / "b", *BOX)]
        )
    assert "no checkpoint here" in failed(capsys)
    assert not (world / "b").exists()
