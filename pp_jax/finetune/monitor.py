"""What is told of a training while it goes on: the log, TensorBoard, Weights & Biases, the bar."""

import contextlib
import dataclasses
import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from pp_jax import outlook
from pp_jax.config import TrainConfig
from pp_jax.evaluate import plots
from pp_jax.finetune import runs
from pp_jax.memory import peaks

_RECENT = 20  # Steps whose mean time is the rate that the bar shows.
_FLUSH_SECONDS = 10
_CURVE_SECONDS = 10


class Sink(NamedTuple):
    """A place for figures beside the log."""

    scalars: Callable[[Mapping[str, float], int], None]  # By tag, of a step.
    picture: Callable[[Path, int], None]  # A PNG, of a step.
    close: Callable[[bool], None]  # Told whether the training ended by an error.


class Log:
    """The run's `metrics.jsonl`; rows after the step that is resumed from are dropped."""

    def __init__(self, path: Path, *, resumed_at: int):
        self._path, self._active = path, jax.process_index() == 0
        self.rows = [row for row in runs.read_rows(path.parent) if row["step"] <= resumed_at]
        if self._active:
            unfinished = path.with_name(path.name + ".partial")
            unfinished.write_text("".join(map(runs.to_line, self.rows)))
            unfinished.rename(path)

    def add(self, row: dict[str, Any]) -> None:
        """The row stands at the end of the log."""
        self.rows.append(row)
        if self._active:
            with self._path.open("a") as file:
                file.write(runs.to_line(row))


class Monitor:
    """Tells of a run's steps wherever its settings say; of several processes, only the first does.

    Args:
      run: The run's folder.
      settings: Of the run.
      log: Its rows up to the step that is resumed from.
      start: That step.
      total: The last step.

    Raises:
      ValueError: A service does not let the run in.
    """

    def __init__(self, run: Path, settings: TrainConfig, log: Log, *, start: int, total: int):
        self._run, self._log, self._total = run, log, total
        self._batch, self._active = settings.batch, jax.process_index() == 0
        self._start = start
        self._bar: tqdm | None = None
        self._drawn, self._drawn_at = 0, -math.inf  # Rows in the curve, and when that was drawn.
        self._sinks: list[Sink] = []
        wanted = (settings.tensorboard, to_tensorboard), (settings.wandb, to_wandb)
        with contextlib.ExitStack() as closing:
            for make in [make for asked, make in wanted if asked and self._active]:
                sink = make(run, settings, start=start)
                closing.push(partial(_close, sink))
                self._sinks.append(sink)
            self._closing = closing.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._closing.__exit__(kind, error, at)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows of the log."""
        return self._log.rows

    def say(self, text: str) -> None:
        """The line stands above the bar."""
        if self._active:
            tqdm.write(text)

    @property
    def _steps(self) -> list[dict[str, Any]]:
        """The rows of the steps that were made here."""
        return [r for r in self.rows if r["split"] == "train" and r["step"] > self._start]

    def step(self, row: dict[str, Any]) -> None:
        """A training step's row is told, and the bar stands at it."""
        self._add(row)
        first = self._bar is None
        # The second step is the first whose time is that of the others.
        if row["step"] == min(self._start + 2, self._total):
            self.say(_ahead(self._steps[:2], start=self._start, total=self._total))
        if self._bar is None:
            # The bar is made now, since the compilation would spoil its estimate.
            self._bar = self._closing.enter_context(
                tqdm(total=self._total, initial=row["step"], unit="step", disable=not self._active)
            )
        self._bar.set_postfix(_shown(self.rows, batch=self._batch), refresh=first)
        if not first:
            self._bar.update()

    def validation(self, row: dict[str, Any]) -> None:
        """A validation's row is told."""
        self._add(row)
        self.say(
            f"step {row['step']}: validation loss {row['loss']:.3f}, Dice {row['dice_metric']:.3f}"
        )

    def curve(self, *, last: bool = False) -> None:
        """The run's learning curve shows all rows, unless it was drawn a few seconds ago.

        Args:
          last: There will be no other.
        """
        now = time.monotonic()
        due = last or now - self._drawn_at >= _CURVE_SECONDS
        if self._active and due and len(self.rows) > self._drawn:
            plots.learning_curve(self._run / runs.CURVE, self.rows)
            self._drawn, self._drawn_at = len(self.rows), now

    def picture(self, path: Path, *, step: int) -> None:
        """A picture that was drawn is shown wherever pictures are."""
        for sink in self._sinks:
            sink.picture(path, step)

    def _add(self, row: dict[str, Any]) -> None:
        self._log.add(row)
        for sink in self._sinks:
            sink.scalars(tagged(row), row["step"])


def _close(sink: Sink, kind: type[BaseException] | None, *rest: object) -> None:
    """A signal to stop is no error."""
    del rest
    sink.close(kind is not None and issubclass(kind, Exception))


def _ahead(rows: Sequence[Mapping[str, Any]], *, start: int, total: int) -> str:
    """What the first steps took, and what the steps from `start` on will take, if that is long."""
    took = [row["seconds"] for row in rows]
    told = f"compiled, and step {rows[0]['step']} done, in {took[0]:.1f} s"
    whole = took[0] + took[-1] * (total - start - 1)
    more = outlook.line(total - start, "steps", seconds=whole, memory=peaks())
    return f"{told}; {more}" if more else told


def _shown(rows: list[dict[str, Any]], *, batch: int) -> dict[str, str]:
    """What stands beside the bar: loss and Dice of the last step, and images per second.

    The first step in this process is left out of the rate where there are others: it was compiled.
    """
    row = rows[-1]
    seconds = [r["seconds"] for r in rows[-_RECENT - 1 :] if "seconds" in r]
    mean = float(np.mean(seconds[1:] or seconds)) if seconds else 0.0
    rate = {"images/s": f"{batch / mean:.3g}"} if mean > 0 else {}
    return {"loss": f"{row['loss']:.3f}", "dice": f"{row['dice_metric']:.3f}"} | rate


def tagged(row: Mapping[str, Any]) -> dict[str, float]:
    """`{tag: value}` of a row's figures.

    A tag is `train/NAME` or `validation/NAME`, but for `gradient_norm/PART` and `lr`.
    """

    def tag(name: str) -> str:
        own = name == "lr" or name.startswith("gradient_norm/")
        return name if own else f"{row['split']}/{name}"

    return {
        tag(name): float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def check(settings: TrainConfig) -> None:
    """Nothing, where all that the settings want to log to is installed.

    Raises:
      ValueError: `--wandb` without the package; says how to get it.
    """
    if settings.wandb and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"--wandb {settings.wandb}: Weights & Biases is not installed; run "
            "`.venv/bin/pip install -c constraints.txt -e '.[wandb]'`, or leave --wandb out"
        )


def to_tensorboard(run: Path, settings: TrainConfig, *, start: int) -> Sink:
    """Event files in the run's folder; what stands there of later steps is no longer shown."""
    del settings
    from tensorboardX import SummaryWriter  # Imports torch where that is installed: a second.

    # Named by step as well as by second, or a start in the same second would overwrite a file.
    writer = SummaryWriter(
        str(run / runs.TENSORBOARD),
        purge_step=start + 1,
        flush_secs=_FLUSH_SECONDS,
        filename_suffix=f".after{start}",
    )

    def scalars(figures: Mapping[str, float], step: int) -> None:
        for tag, value in figures.items():
            if math.isfinite(value):  # Others are in the log, and end the run.
                writer.add_scalar(tag, value, step)

    def picture(path: Path, step: int) -> None:
        with Image.open(path) as file:
            writer.add_image(
                "predictions", np.asarray(file.convert("RGB")), step, dataformats="HWC"
            )

    return Sink(scalars, picture, lambda failed: writer.close())


def to_wandb(run: Path, settings: TrainConfig, *, start: int) -> Sink:
    """A run of a project of Weights & Biases; each start is one, those of a folder are a group.

    Raises:
      ValueError: Nobody is logged in, or the service cannot be reached.
    """
    import wandb

    name = run.name if not start else f"{run.name} from step {start}"
    try:
        logged = wandb.init(
            project=settings.wandb,
            group=run.name,
            name=name,
            dir=str(run),
            config=dataclasses.asdict(settings),
        )
    except wandb.Error as error:
        raise ValueError(
            f"--wandb {settings.wandb}: Weights & Biases does not start ({error}); run `wandb "
            "login`, or set WANDB_MODE=offline, or leave --wandb out"
        ) from error

    def scalars(figures: Mapping[str, float], step: int) -> None:
        logged.log(dict(figures), step=step)

    def picture(path: Path, step: int) -> None:
        logged.log({"predictions": wandb.Image(str(path))}, step=step)

    return Sink(scalars, picture, lambda failed: logged.finish(exit_code=int(failed)))
