from dataclasses import replace
from itertools import islice

import jax
import numpy as np
import pytest
from PIL import Image

from data import pipeline
from data.pipeline import eval_batches, train_batches
from data.records import Record, draw_as, load
from data.rsna import read_rsna
from data.synthetic import generate
from pp_jax.preprocess import roi
from tests.dicom_files import write_set

EACH = {"side": 64, "batch": 4, "max_objects": 3, "objects": "each"}
UNION = EACH | {"objects": "union"}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "set"
    return read_rsna(generate(folder, images=18, seed=1, side=128, workers=0))


@pytest.fixture
def odd(tmp_path):
    """Records of 60 x 40 pixels (width x height): three boxes, none, one."""
    boxes = "a,2,20,12,12,1\na,0,0,10,10,1\na,20,10,30,20,1\nb,,,,,0\nc,6,4,24,16,1\n"
    folder = write_set(tmp_path / "odd", boxes)
    (folder / "patients.csv").write_text("patientId,patient\na,a\nb,b\nc,c\n")
    return read_rsna(folder)


def take(stream, count):
    return list(islice(stream, count))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for field, again in zip(one, other, strict=True):
            np.testing.assert_array_equal(field, again)


def test_an_image_is_resized_by_pillow_and_lies_at_the_top_left_of_zeros(odd):
    (batch,) = eval_batches(odd, **EACH)
    for row, record in enumerate(odd):
        grey = Image.fromarray(load(record).image).resize((64, 43), Image.Resampling.BILINEAR)
        assert batch.size[row].tolist() == [43, 64]
        np.testing.assert_array_equal(batch.image[row, :43], np.array(grey))
        assert not batch.image[row, 43:].any()


def test_a_target_is_the_area_average_of_its_object(records):
    batch = next(train_batches(records, **EACH | {"side": 128}, seed=0))
    for row, index in enumerate(batch.index):
        sample = load(records[index])
        blocks = sample.objects.reshape(-1, 32, 4, 32, 4).mean((2, 4))
        np.testing.assert_allclose(batch.targets[row, : len(blocks)], blocks, atol=1e-6)
        np.testing.assert_array_equal(batch.boxes[row, : len(blocks)], sample.boxes)
        assert not batch.targets[row, len(blocks) :].any()
        assert not batch.boxes[row, len(blocks) :].any()
        assert batch.valid[row].tolist() == [n < len(blocks) for n in range(3)]


def test_boxes_are_scaled_to_the_model_frame_per_axis(odd):
    (batch,) = eval_batches(odd, **EACH)
    x, y = 64 / 60, 43 / 40
    np.testing.assert_allclose(batch.boxes[2, 0], [6 * x, 4 * y, 30 * x, 20 * y], rtol=1e-6)


def test_both_is_the_union_and_then_each_object(odd):
    (each,), (union,) = eval_batches(odd, **EACH), eval_batches(odd, **UNION)
    (both,) = eval_batches(odd, **EACH | {"objects": "both"})
    for field in ("targets", "boxes", "valid"):
        wanted = np.concatenate([getattr(union, field), getattr(each, field)], axis=1)
        np.testing.assert_array_equal(getattr(both, field), wanted)
    # `b` has no finding: it is asked for all of them, and there is none.
    assert both.valid[1].tolist() == [True, False, False, False]
    few = EACH | {"objects": "both", "max_objects": 1}
    with pytest.warns(UserWarning, match="a: 3 objects, the largest 1 are used"):
        (fewer,) = eval_batches(odd, **few)
    np.testing.assert_array_equal(fewer.targets[:, 0], union.targets[:, 0])
    assert pipeline.usable(odd, objects="both") == [0, 1, 2]


def test_union_has_one_slot_with_all_findings_and_their_box(odd):
    (batch,) = eval_batches(odd, **UNION)
    assert batch.valid.tolist() == [[True], [True], [True], [False]]
    x, y = 64 / 60, 43 / 40
    np.testing.assert_allclose(batch.boxes[0, 0], [0, 0, 50 * x, 32 * y], rtol=1e-6)
    (apart,) = eval_batches(odd, **EACH)
    # The boxes of `a` overlap nowhere, so that the union is the sum.
    np.testing.assert_allclose(batch.targets[0, 0], apart.targets[0].sum(0), atol=1e-6)
    assert not batch.targets[1].any()
    assert not batch.boxes[1].any()


def test_an_image_with_too_many_objects_keeps_the_largest_in_order(odd):
    with pytest.warns(UserWarning, match="a: 3 objects, the largest 2 are used"):
        (batch,) = eval_batches(odd[:1], **EACH | {"max_objects": 2, "batch": 1})
    x, y = 64 / 60, 43 / 40
    want = [(2 * x, 20 * y, 14 * x, 32 * y), (20 * x, 10 * y, 50 * x, 30 * y)]
    np.testing.assert_allclose(batch.boxes[0], want, rtol=1e-6)


ORDERS = {
    "plain": EACH,
    "mixed": EACH | {"mix": {"one": 2, "other": 1}},
    "balanced": UNION | {"balance": True},
    "both": UNION | {"mix": {"one": 1, "other": 3}, "balance": True},
}


@pytest.fixture(scope="module")
def sets(records):
    """The records as two data sets, each with images of both classes."""
    return [replace(r, dataset="one" if n % 3 else "other") for n, r in enumerate(records)]


@pytest.mark.parametrize("order", ORDERS)
def test_the_stream_is_a_pure_function_of_seed_and_step(sets, order):
    whole = take(train_batches(sets, **ORDERS[order], seed=3), 9)
    assert_same(take(train_batches(sets, **ORDERS[order], seed=3), 9), whole)
    for step in (1, 4, 8):
        rest = take(train_batches(sets, **ORDERS[order], seed=3, start_step=step), 9 - step)
        assert_same(rest, whole[step:])


def test_a_batch_of_one_is_a_row_of_a_larger_batch(records):
    singles = take(train_batches(records, **EACH | {"batch": 1}, seed=3), 4)
    (together,) = take(train_batches(records, **EACH, seed=3), 1)
    assert [int(one.index[0]) for one in singles] == together.index.tolist()


@pytest.mark.parametrize("order", ["plain", "both"])
def test_worker_processes_change_nothing(sets, order):
    ours = take(train_batches(sets, **ORDERS[order], seed=3, start_step=2), 5)
    theirs = train_batches(sets, **ORDERS[order], seed=3, start_step=2, workers=2)
    assert_same(take(theirs, 5), ours)


@pytest.mark.parametrize("stream", ["eval", *ORDERS])
def test_the_processes_batches_interleave_to_the_global_batches(sets, stream):
    def batches(**share):
        if stream == "eval":
            return list(eval_batches(sets, **EACH, **share))
        return take(train_batches(sets, **ORDERS[stream], seed=3, **share), 7)

    parts = [batches(process_index=p, process_count=2) for p in (0, 1)]
    for whole, *halves in zip(batches(), *parts, strict=True):
        for field, *shares in zip(*map(jax.tree.leaves, (whole, *halves)), strict=True):
            np.testing.assert_array_equal(field, np.stack(shares, 1).reshape(field.shape))


def test_the_batches_hold_the_shares_and_the_classes_of_the_order(sets):
    mixed = take(train_batches(sets, **ORDERS["mixed"] | {"batch": 3}, seed=0), 8)
    for batch in mixed:
        assert sorted(sets[i].dataset for i in batch.index) == ["one", "one", "other"]
    for order in ("balanced", "both"):
        for batch in take(train_batches(sets, **ORDERS[order], seed=0), 8):
            assert batch.targets.any((1, 2, 3)).tolist() == [True, False, True, False]
            assert [bool(sets[i].boxes) for i in batch.index] == [True, False, True, False]


def test_balance_among_prompted_images_is_an_error_that_says_how_many_are_left(sets):
    with pytest.raises(ValueError, match=r"--balance: \d+ images with a finding and 0 without"):
        train_batches(sets, **EACH, balance=True, seed=0)


def test_an_epoch_shows_each_image_at_most_once_and_drops_its_ragged_end(records):
    steps = len(records) // 4
    batches = take(train_batches(records, **UNION, seed=0), 3 * steps)
    shown = np.array([batch.index for batch in batches]).reshape(3, -1)
    for epoch in shown:
        assert len(set(epoch)) == 4 * steps
    assert len({tuple(epoch) for epoch in shown}) == 3
    assert set(shown.flat) == set(range(len(records)))


def test_seeds_differ_and_neighbours_do_not_share_their_epochs(records):
    steps = len(records) // 4
    orders = [
        np.array(
            [batch.index for batch in take(train_batches(records, **UNION, seed=s), 2 * steps)]
        )
        for s in (0, 1)
    ]
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0][steps:], orders[1][:steps])


def test_each_leaves_out_images_without_objects_and_keeps_their_numbers(records):
    positive = {row for row, record in enumerate(records) if record.boxes}
    batches = take(train_batches(records, **EACH, seed=0), 3 * len(positive) // 4)
    assert {int(row) for batch in batches for row in batch.index} == positive
    assert all(batch.valid.any(1).all() for batch in batches)


def test_memory_changes_nothing_and_saves_reading(records, monkeypatch):
    read = []
    monkeypatch.setattr(pipeline, "load", lambda record: read.append(record.id) or load(record))
    steps = len(records) // 4
    kept = take(train_batches(records, **UNION, seed=0), 12 * steps)
    # A race of threads may read an image twice; without memory it would be read 12 times.
    assert len(read) < 2.5 * len(records)
    assert_same(take(train_batches(records, **UNION, seed=0, cache_bytes=0), 12 * steps), kept)
    assert len(read) > 12 * steps * 4


def test_evaluation_goes_in_order_and_fills_its_last_batch(records):
    batches = list(eval_batches(records, **UNION))
    assert len(batches) == 5
    index = np.concatenate([batch.index for batch in batches])
    assert index.tolist() == [*range(18), -1, -1]
    last = batches[-1]
    assert last.valid.tolist() == [[True], [True], [False], [False]]
    assert last.size.tolist()[2:] == [[64, 64], [64, 64]]
    assert not last.image[2:].any()


def test_a_batch_larger_than_the_images_is_an_error_that_names_both(odd):
    with pytest.raises(ValueError, match="a batch of 4 cannot be filled from 3 images"):
        train_batches(odd, **UNION, seed=0)
    with pytest.raises(ValueError, match="a batch of 4 cannot be filled from 2 images"):
        train_batches(odd, **EACH, seed=0)


def test_only_images_without_objects_are_an_error(odd):
    with pytest.raises(ValueError, match="none of the 1 images has an object"):
        train_batches(odd[1:2], **EACH, seed=0)


def test_a_batch_that_processes_cannot_share_is_an_error(records):
    with pytest.raises(ValueError, match="a batch of 4 cannot be shared by 3 processes"):
        train_batches(records, **EACH, seed=0, process_count=3)


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="0 images in batches of 4"):
        eval_batches([], **EACH)


def write_film(folder, *, masked: bool, framed: bool) -> Record:
    """A film with two findings, or the same on a black frame that holds the rest of the first one
    and all of a third.
    """
    film = np.random.default_rng(0).integers(10, 256, (40, 50, 3), np.uint8)
    mask = np.zeros((40, 50), np.uint8)
    mask[3:20, 0:12] = 255
    mask[10:12, 0:17] = 255
    mask[25:39, 30:41] = 255
    boxes = [(0, 3, 17, 20), (30, 25, 41.5, 39)]
    if framed:
        film, mask = (
            np.pad(x, ((8, 2), (5, 9), (0, 0))[: x.ndim], mode="constant") for x in (film, mask)
        )
        mask[12:16, 1:5] = mask[1:6, 58:63] = 255
        boxes = [(1, 11, 22, 28), (58, 1, 63, 6), (35, 33, 46.5, 47)]
    name = f"{masked}{framed}"
    Image.fromarray(film).save(folder / f"{name}.png")
    Image.fromarray(mask).save(folder / f"{name}-mask.png")
    target = folder / f"{name}-mask.png" if masked else None
    kind = "mask" if masked else "box"
    return Record(name, "p", folder / f"{name}.png", tuple(boxes), target, kind, "")


@pytest.mark.parametrize("options", [EACH, UNION], ids=["each", "union"])
@pytest.mark.parametrize(
    ("masked", "target"),
    [(True, "mask"), (False, "mask"), (True, "box")],
    ids=["masks", "boxes", "boxes of masks"],
)
def test_a_sample_cut_by_the_pipeline_is_that_of_a_record_cut_by_hand(
    tmp_path, masked, target, options
):
    films = [write_film(tmp_path, masked=masked, framed=framed) for framed in (True, False)]
    framed, film = draw_as(films, target)
    for stream, more in ((eval_batches, {}), (train_batches, {"seed": 0})):
        asked = options | {"batch": 1} | more
        want = next(stream([film], **asked))
        assert want.size.tolist() == [[51, 64]]
        assert want.valid.sum() == (2 if options is EACH else 1)
        with pytest.warns(UserWarning, match=f"{masked}True: 1 of 3 objects lie outside.* dropped"):
            got = next(stream([framed], **asked, cut=roi.make_for_images("content")))
        assert_same([got], [want])
        (plain,) = eval_batches([framed], **options | {"batch": 1})
        assert plain.size.tolist() != want.size.tolist()


def test_cutting_changes_nothing_where_there_is_no_black(records):
    cut = roi.make_for_images("content:0")
    records = [r for r in records if load(r).image.min() > 0] or pytest.fail("all have black")
    assert_same(list(eval_batches(records, **EACH, cut=cut)), list(eval_batches(records, **EACH)))
