"""Batches for the device, in an order that is a pure function of (seed, step)."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Float, Float32, UInt8

from data.records import Record, Sample, load, tight_boxes
from data.sampling import order_rows
from pp_jax.preprocess import geometry, roi
from pp_jax.types import Batch, Objects, slots

Cut = Callable[[UInt8[np.ndarray, "H W 3"]], roi.Window]  # What is shown of an image.
Features = Callable[[Record], Float[np.ndarray, "h w D"]]  # An embedding, computed before.
NO_MIX: Mapping[str, int] = MappingProxyType({})
PADDING = -1  # A row that is no record.
CACHE_BYTES = 2 << 30
# Pillow lets go of the interpreter's lock, which more threads would wait for.
THREADS = min(8, (os.cpu_count() or 1) + 1)
AHEAD = 8  # Batches: grain's own 500 would be 30 GB at 1024 pixels.


def usable(records: Sequence[Record], *, objects: Objects) -> list[int]:
    """Indices of the records that can be trained on: for "each", those with a box."""
    return [i for i, record in enumerate(records) if objects != "each" or record.boxes]


def train_batches(
    records: Sequence[Record],
    *,
    side: int,
    batch: int,
    seed: int,
    max_objects: int,
    objects: Objects,
    mix: Mapping[str, int] = NO_MIX,
    balance: bool = False,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    fit: geometry.Fit = "longest",
    cut: Cut = roi.whole_window,
    cache_bytes: int = CACHE_BYTES,
    features: Features | None = None,
) -> Iterator[Batch]:
    """This process's part of the global batches from `start_step` on, without end.

    The order is that of `order_rows`. Row `j` of process `p` is row `j * process_count + p` of the
    global batch.

    Args:
      records: `Batch.index` counts in this list.
      side: Of the model frame; a multiple of 4.
      batch: Number of images in the global batch.
      seed: Of the order.
      max_objects: Slots per image, for "each": an image with more keeps its largest objects.
      objects: "each" gives every object its slot and leaves out records without boxes, as there is
        nothing to prompt for. "union" has one slot, valid and empty where nothing is marked.
        "both" has that one first and then those of "each".
      mix: Weights of the data sets that `Record.dataset` names; empty: every image is shown as
        often as any other.
      balance: Whether images with and without a finding take turns.
      start_step: Number of batches that were taken before.
      process_index: Of this process, below `process_count`.
      process_count: Divides `batch`.
      workers: Processes that read ahead; 0 reads in threads of this one.
      fit: How an image is brought to `side`.
      cut: What is cut out of an image before. Objects are cut with it; one that has no pixel there
        is dropped, with a warning that names its image.
      cache_bytes: Of prepared images kept in memory, all workers together.
      features: Gives the embedding that the batch holds instead of the image.

    Raises:
      ValueError: No record to train on, or fewer than `batch`, or `batch` cannot be shared; a data
        set or a class without one, where it has a share.
    """
    rows = usable(records, objects=objects)
    if not rows:
        raise ValueError(
            f"none of the {len(records)} images has an object to train on; give images with boxes, "
            "or train without prompts"
        )
    if not 1 <= batch <= len(rows):
        raise ValueError(
            f"a batch of {batch} cannot be filled from {len(rows)} images without showing one "
            f"twice; choose a batch of 1 to {len(rows)}"
        )
    prepare = _Prepare(
        records,
        side=side,
        max_objects=max_objects,
        objects=objects,
        fit=fit,
        cut=cut,
        cache_bytes=cache_bytes // max(workers, 1),
        features=features,
    )
    order = order_rows(records, rows, batch=batch, seed=seed, mix=mix, balance=balance)
    return _iterate(order.map(prepare), batch, start_step, process_index, process_count, workers)


def eval_batches(
    records: Sequence[Record],
    *,
    side: int,
    batch: int,
    max_objects: int,
    objects: Objects,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    fit: geometry.Fit = "longest",
    cut: Cut = roi.whole_window,
    features: Features | None = None,
) -> Iterator[Batch]:
    """This process's part of the global batches of all records, once and in order.

    The last batch is filled up with rows of `valid` False, `index` -1, a black image and a `size`
    of the whole canvas. Arguments and shares are those of `train_batches`; nothing is kept.

    Raises:
      ValueError: No record, or `batch` cannot be shared.
    """
    if not records or batch < 1:
        raise ValueError(f"{len(records)} images in batches of {batch}: need at least 1 of both")
    rows = [*range(len(records)), *[PADDING] * (-len(records) % batch)]
    prepare = _Prepare(
        records,
        side=side,
        max_objects=max_objects,
        objects=objects,
        fit=fit,
        cut=cut,
        cache_bytes=0,
        features=features,
    )
    order = grain.MapDataset.source(rows).map(prepare)
    return _iterate(order, batch, 0, process_index, process_count, workers)


def _iterate(
    dataset: grain.MapDataset,
    batch: int,
    start_step: int,
    process_index: int,
    process_count: int,
    workers: int,
) -> Iterator[Batch]:
    if batch % process_count:
        raise ValueError(f"a batch of {batch} cannot be shared by {process_count} processes")
    share = dataset[process_index::process_count].batch(batch // process_count)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
    stream = share[start_step:].to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain hands absl's flags to its workers.
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(stream)


class _Prepared(NamedTuple):
    """What is kept of an image: nothing that padding or repetition can restore."""

    size: tuple[int, int]
    image: UInt8[np.ndarray, "h w C"]  # C is 1 where the three channels agree.
    targets: Float32[np.ndarray, "n h w"]
    boxes: Float32[np.ndarray, "n 4"]


def _cut(sample: Sample, window: roi.Window, *, record: Record) -> Sample:
    """What the window shows of a sample, with the objects that have a pixel there.

    A box stays tight around its object; one that is an annotation is clipped.
    """
    size = window.size
    if size == sample.findings.shape:
        return sample
    objects = sample.objects[:, *window.slices]
    held = objects.any((1, 2))
    if not held.all():
        warnings.warn(
            f"{record.id}: {len(held) - held.sum()} of {len(held)} objects lie outside of what is "
            f"shown of the image ({window}) and are dropped",
            stacklevel=2,
        )
    if record.from_box:
        boxes = roi.clip_boxes(roi.to_window(sample.boxes[held], window), size=size)
    else:
        boxes = tight_boxes(objects[held])
    return sample._replace(
        image=roi.crop(sample.image, window),
        objects=objects[held],
        boxes=boxes.astype(np.float32),
        findings=roi.crop(sample.findings, window),
    )


def _prepare(
    sample: Sample, *, side: int, max_objects: int, fit: geometry.Fit, name: str, shown: bool
) -> _Prepared:
    sample = _largest(sample, most=max_objects, name=name)
    size = geometry.resized_shape(*sample.image.shape[:2], longest=side, fit=fit)
    image = np.zeros((0, 0, 1), np.uint8)
    if shown:
        image = geometry.resize_image(sample.image, longest=side, fit=fit)
    targets = [geometry.low_res_target(mask, side=side, fit=fit) for mask in sample.objects]
    return _Prepared(
        size,
        image,
        np.array(targets, np.float32).reshape(-1, side // 4, side // 4),
        geometry.boxes_to_model(sample.boxes, original=sample.findings.shape, resized=size),
    )


def _largest(sample: Sample, *, most: int, name: str) -> Sample:
    """The sample with its largest objects alone, in their order, where it has more than `most`."""
    masks = sample.objects
    if len(masks) <= most:
        return sample
    warnings.warn(f"{name}: {len(masks)} objects, the largest {most} are used", stacklevel=2)
    kept = np.sort(np.argsort(-masks.sum((1, 2)), kind="stable")[:most])
    return sample._replace(objects=masks[kept], boxes=sample.boxes[kept])


def _on_canvas(image: UInt8[np.ndarray, "h w C"], *, side: int) -> UInt8[np.ndarray, "S S 3"]:
    """The image in colour, at the top left of zeros; itself, where it fills them."""
    if image.shape == (side, side, 3):
        return image
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


class _Prepare:
    """From a row to its image, prepared, as a `Batch` without its `B`.

    Decoding and resizing 1024-pixel DICOM anew in every epoch would starve the device, so prepared
    images stay in memory until `cache_bytes` are full. Nothing is evicted: with a random order,
    eviction would only change which images are missing.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        side: int,
        max_objects: int,
        objects: Objects,
        fit: geometry.Fit,
        cut: Cut,
        cache_bytes: int,
        features: Features | None,
    ):
        self._features = features
        self._fit: geometry.Fit = fit
        self._cut = cut
        self._records, self._side = records, side
        self._slots, self._most = slots(objects, most=max_objects), max_objects
        self._objects: Objects = objects
        self._free = cache_bytes
        self._kept: dict[int, _Prepared] = {}

    def __call__(self, row: int) -> Batch:
        quarter = self._side // 4
        targets = np.zeros((self._slots, quarter, quarter), np.float32)
        boxes = np.zeros((self._slots, 4), np.float32)
        image, size, count = np.zeros((0, 0, 3), np.uint8), (self._side, self._side), 0
        if row != PADDING:
            prepared = self._prepared(row)
            image, size, count = prepared.image, prepared.size, len(prepared.targets)
            targets[:count], boxes[:count] = prepared.targets, prepared.boxes
        image = _on_canvas(image, side=0 if self._features else self._side)
        valid = np.arange(self._slots) < count
        whole = Batch(image, np.array(size, np.int32), targets, boxes, valid, np.int32(row))
        if not self._features:
            return whole
        # A row of padding has no object, so it may have any embedding.
        return whole._replace(features=self._features(self._records[max(row, 0)]))

    def _prepared(self, row: int) -> _Prepared:
        if row in self._kept:
            return self._kept[row]
        record = self._records[row]
        sample = load(record)
        sample = _cut(sample, self._cut(sample.image), record=record)
        union = sample.findings[None]
        if self._objects == "union":
            sample = sample._replace(objects=union, boxes=tight_boxes(union))
        elif self._objects == "both":
            sample = _largest(sample, most=self._most, name=record.id)
            sample = sample._replace(
                objects=np.concatenate([union, sample.objects]),
                boxes=np.concatenate([tight_boxes(union), sample.boxes]).astype(np.float32),
            )
        prepared = _prepare(
            sample,
            side=self._side,
            max_objects=self._slots,
            fit=self._fit,
            name=record.id,
            shown=not self._features,
        )
        if self._free > 0 and (prepared.image == prepared.image[:, :, :1]).all():
            prepared = prepared._replace(image=prepared.image[:, :, :1].copy())
        size = sum(array.nbytes for array in prepared[1:])
        if size <= self._free:
            # Threads may race here and exceed the budget by an image each: not worth a lock, which
            # could not be sent to a worker process.
            self._free -= size
            self._kept[row] = prepared
        return prepared
