"""How much a long command has before it: one line, once its first items show how long they take."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from pp_jax.memory import peaks

T = TypeVar("T")

_LONG = 60.0  # Seconds: of a shorter command nothing is told.
_LOOK = 5.0  # Seconds after the first item, over which the pace of the others is taken.
_UNITS = (("days", 86400), ("hours", 3600), ("min", 60))


def in_words(seconds: float) -> str:
    """`50 s`, `7 min`, `2.5 hours`, `3 days`: two digits at most, of a unit that is there twice."""
    for unit, length in _UNITS:
        count = seconds / length
        if count >= 2:
            return (
                f"{count:.1f} {unit}" if unit == "hours" and count < 10 else f"{count:.0f} {unit}"
            )
    return f"{round(seconds, -1):.0f} s" if seconds >= 10 else f"{seconds:.1g} s"


def line(count: int, unit: str, *, seconds: float, memory: Sequence[str] = ()) -> str:
    """`432 steps, about 7 min, 1.2 GiB resident`; empty where all takes less than a minute.

    Args:
      count: How many there are.
      unit: What they are, more than one.
      seconds: Of all together.
      memory: From `memory.peaks`.
    """
    if seconds < _LONG:
        return ""
    return ", ".join([f"{count:,} {unit}", f"about {in_words(seconds)}", *memory])


def watch(
    total: int, unit: str, *, devices: bool = False, say: Callable[[str], object] = tqdm.write
) -> Callable[[int], None]:
    """A function that is told how many items are done by now, and says the line once.

    It says nothing of the first item but how long that took: it may have been compiled, or have
    waited for other processes to start.

    Args:
      total: How many are to be done.
      unit: What they are.
      devices: Whether jax computes, whose memory is then told as well.
      say: Prints a line.
    """
    begun = time.monotonic()
    first: list[tuple[int, float]] = []
    told: list[str] = []

    def tell(done: int) -> None:
        now = time.monotonic()
        if done > 0 and not first:
            first.append((done, now))
        if told or not first or done <= first[0][0] or now - first[0][1] < _LOOK:
            return
        before, at = first[0]
        seconds = at - begun + (now - at) / (done - before) * (total - before)
        told.append(line(total, unit, seconds=seconds, memory=peaks(devices=devices)))
        if told[0]:
            say(told[0])

    return tell


def watched(
    items: Iterable[T], total: int, unit: str, *, devices: bool = True, each: int = 1
) -> Iterator[T]:
    """The items, of which `watch` is told.

    Args:
      items: Each stands for `each` of those that are counted.
      total: How many are counted.
      unit: What they are.
      devices: As in `watch`.
      each: How many an item stands for.
    """
    tell = watch(total, unit, devices=devices)
    for number, item in enumerate(items, 1):
        yield item
        tell(number * each)
