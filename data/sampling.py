"""In which order images are shown: endless streams of row numbers, read at any position.

What stands at a position is a pure function of the seed and the position, so that a training goes
on from any step, with any number of processes and workers, and there is no state to store.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import grain
import numpy as np

from data.records import Record

# Without end; grain's own endless length overflows where batches are cut from it.
_EPOCHS = 1 << 30
_ENDLESS = 1 << 46


def order_rows(
    records: Sequence[Record],
    rows: Sequence[int],
    *,
    batch: int,
    seed: int,
    mix: Mapping[str, int],
    balance: bool,
) -> grain.MapDataset[int]:
    """The rows to show, in order and without end.

    Plainly, each epoch has its own order and drops what is left after its last whole batch. Mixed
    or balanced, every data set, or each of the two classes of every set, is a stream of its own,
    which shows all its images before any again, and it is fixed whose turn it is:

    - balanced, even positions are for images with a finding and odd ones for those without;
    - mixed, `mix[name]` of any `sum(mix.values())` turns are the set's, evenly spread, counted from
      a multiple of that sum; balanced as well, this holds for the turns of either class.

    Args:
      records: All images.
      rows: Which of them are shown.
      batch: Images per step, at most as many as there are rows.
      seed: Of all orders.
      mix: Weights of the data sets that `Record.dataset` names; empty: no set has a share of its
        own.
      balance: Whether images with and without a finding take turns.

    Raises:
      ValueError: A set without an image to show, or balanced, without one of either class.
    """
    if not mix and not balance:
        whole = _shuffled(rows, seed=seed)[: len(rows) // batch * batch]
        return whole.repeat(_EPOCHS)
    sets = {name: [row for row in rows if records[row].dataset == name] for name in mix}
    sets = sets or {"": list(rows)}
    weights = tuple(mix.values()) or (1,)
    for name, own in sets.items():
        found = sum(bool(records[row].boxes) for row in own)
        _require_images(name, found, len(own) - found, balance=balance)
    if not balance:
        return _take_turns(
            [_shuffled(own, seed=(seed, n)) for n, own in enumerate(sets.values())], weights
        )
    classes = []
    for positive in (True, False):
        streams = [
            _shuffled(
                [row for row in own if bool(records[row].boxes) == positive],
                seed=(seed, number, int(positive)),
            )
            for number, own in enumerate(sets.values())
        ]
        classes.append(_take_turns(streams, weights))
    return _take_turns(classes, (1, 1))


def _require_images(name: str, positive: int, negative: int, *, balance: bool) -> None:
    where = f"data set {name}: " if name else ""
    if balance and not (positive and negative):
        raise ValueError(
            f"--balance: {where}{positive} images with a finding and {negative} without to train "
            "on; both are needed, so leave the flag out"
        )
    if not positive + negative:
        raise ValueError(f"--mix: {where}no image to train on; leave it out of --data")


def _shuffled(rows: Sequence[int], *, seed: int | tuple[int, ...]) -> grain.MapDataset[int]:
    # grain shuffles epoch e with seed + e: neighbouring seeds would share their epochs.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return grain.MapDataset.source(rows).shuffle(spread)


def _take_turns(
    streams: Sequence[grain.MapDataset[int]], weights: Sequence[int]
) -> grain.MapDataset[int]:
    return grain.MapDataset.select_from_datasets(streams, _Turns(weights))


class _Turns:
    """grain's selection map: whose turn a position is, and which of that stream's.

    grain's own mixing rounds the weights: 3 and 7 become 100 and 233.
    """

    def __init__(self, weights: Sequence[int]):
        ticks = [
            (Fraction(2 * turn + 1, 2 * weight), stream)
            for stream, weight in enumerate(weights)
            for turn in range(weight)
        ]
        self._weights = tuple(weights)
        self._cycle = tuple(stream for _, stream in sorted(ticks))
        self._before = tuple(
            self._cycle[:place].count(stream) for place, stream in enumerate(self._cycle)
        )

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, position: int) -> tuple[int, int]:
        cycle, place = divmod(position, len(self._cycle))
        stream = self._cycle[place]
        return stream, cycle * self._weights[stream] + self._before[place]
