"""When a training ends before its last step: by a signal, or since it no longer gets better."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

Asked = Callable[[int], bool]


def stopped_early(rows: Iterable[Mapping[str, Any]], *, patience: int | None) -> int | None:
    """The step of the validation after which a training ends, or None where it goes on.

    That is the first one with `patience` validations in a row, itself among them, of which none has
    a higher Dice than all before them. It depends on the log's rows alone, so that a resumed run
    decides as the uninterrupted one.
    """
    if patience is None:
        return None
    best, since = -1.0, 0
    for row in rows:
        if row["split"] == "validation":
            better = row["dice_metric"] > best
            best, since = max(best, row["dice_metric"]), 0 if better else since + 1
            if since >= patience:
                return row["step"]
    return None


@contextlib.contextmanager
def on_signal() -> Iterator[Asked]:
    """Gives a function that says, of each step, whether to stop after it, since a signal came.

    The first SIGTERM or SIGINT is only noted, and a second ends the process at once. Who was asked
    to stop saves and leaves the context, which then ends the program: by exit code 0 after SIGTERM,
    as the one who sent it expects, or by KeyboardInterrupt after SIGINT. Of several processes all
    stop after the same step, whichever of them was asked, and a second SIGTERM changes nothing.
    """
    seen: list[int] = []
    several = jax.process_count() > 1
    # jax's own handler of SIGTERM tells the other processes; Python's would displace it.
    numbers = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()  # Python sets handlers in no other.

    def note(number: int, frame: Any) -> None:
        del frame
        seen.append(number)
        for one in numbers:
            signal.signal(one, signal.SIG_DFL)
        os.write(2, b"\nstopping after this step; a second signal ends at once\n")
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    def asked(step: int) -> bool:
        if not several:
            return bool(seen)
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        seen.append(signal.SIGTERM)
        return True

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in seen:
        raise KeyboardInterrupt
    if seen:
        raise SystemExit(0)
