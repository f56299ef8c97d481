"""Programs measured side by side: each in a process of its own, one at a time, in turn.

On a GPU they do not take turns: each process ends before the next one starts, since together they
would not fit into the GPU's memory.

A benchmark's module has one function from its settings to its programs, and a `main`:

    settings = turns.read(Benchmark, make_programs)  # In a worker's process this does not return.
    turns.print_machine(settings, ("jax", "torch"))
    rows = turns.take_turns("benchmarks.encoder", make_programs(settings), settings)
    print(turns.table(rows, count=settings.batch, flops=...))

In turn, what else the machine does strikes all alike; peak memory is each program's own.

On a CPU our programs keep freed memory for the next call (`pp_jax.memory`), because all our fronts
do. Users of the peers do not, and so neither do the peers, but in rows that `keep` adds to show
what that setting alone does for them.
"""

import importlib.metadata
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal, NoReturn, TypeVar

import tyro
from tqdm import tqdm

from pp_jax.memory import keep_freed_memory

Run = Callable[[], object]  # Works once, to the end: it blocks until the result is there.
Prepare = Callable[[], Run]

MATMULS = ("matmul jax", "matmul torch")  # Rows that measure what the machine can do at most.
KEPT = ", kept"
_GPU_TURN = 1.0  # Seconds that a turn on a GPU lasts at least: a call may take a millisecond.
_PAUSE = 0.3  # Seconds before a turn: the threads of the program before spin for .2 s.
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every benchmark of programs in turn can be told; benchmarks add their own."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where all programs run."""
    repeats: int = 5
    """Of which medians are taken."""
    keep: tuple[str, ...] = ()
    """Peers to run once more, as `NAME, kept`, with freed memory kept for the next call: our fronts
    keep it, users of the peers do not, and such a row shows a peer with the same setting."""

    turn_s: ClassVar[float] = 0.0  # Seconds that a turn on a CPU lasts at least; 0: of one call.


@dataclass(frozen=True)
class Measured:
    """Seconds of a call in each turn, and the most memory of the process."""

    seconds: tuple[float, ...]
    peak_mib: float  # On a GPU the framework's own peak of the device, else resident.
    first_s: float  # Of the first run, which compiles; it is in no median.
    before_mib: float | None = None  # Resident before the program was prepared; None on a GPU.

    @property
    def median(self) -> float:
        """Seconds of the middle turn."""
        return statistics.median(self.seconds)


S = TypeVar("S", bound=Settings)


def read(kind: type[S], programs: Callable[[S], Mapping[str, Prepare]]) -> S:
    """The settings of the command line. In a worker's process: serve, and exit."""
    arguments = sys.argv[1:]
    if arguments[:1] != ["--worker"]:
        return tyro.cli(kind, args=arguments)
    name = arguments[1]
    settings = tyro.cli(kind, args=arguments[2:])
    if name.endswith(KEPT):
        keep_freed_memory()
    serve(programs(settings)[name.removesuffix(KEPT)], settings)


def serve(prepare: Prepare, settings: Settings) -> NoReturn:
    """The worker's end of `take_turns`: one line of JSON for each line that comes in."""
    device, least = settings.device, settings.turn_s
    if device == "cuda":
        least = _GPU_TURN
    before = _resident("VmRSS") if device == "cpu" else None
    # What libraries print goes to stderr.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        run = prepare()
        ready = {"ready": True, "first_s": seconds_of(run), "before_mib": before}
        print(json.dumps(ready), file=answers)
        for _ in sys.stdin:
            seconds = seconds_of(run, least=least)
            print(json.dumps({"seconds": seconds, "peak_mib": peak_mib(device)}), file=answers)
    except (Exception, SystemExit) as error:
        print(json.dumps({"error": _one_line(error)}), file=answers)
    sys.exit(0)


def seconds_of(run: Run, *, least: float = 0.0) -> float:
    """Seconds of one call, on average over at least `least` seconds of calls after one untimed.

    At 0 there is one call, and none before it.
    """
    if least:
        run()
    begun, calls, passed = time.perf_counter(), 0, 0.0
    while not calls or passed < least:
        run()
        calls += 1
        passed = time.perf_counter() - begun
    return passed / calls


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:200]


def peak_mib(device: str) -> float:
    """The most memory that this process has held: resident, or on the GPU as its framework says."""
    if device == "cpu":
        # Not `ru_maxrss`, which a process inherits from the one that started it.
        return _resident("VmHWM")
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / _MIB
    import jax  # Only where it is the one that computed: it would take a GPU for itself.

    return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / _MIB


def _resident(field: str) -> float:
    """MiB of this process: `VmRSS` now, `VmHWM` at most."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s*(\d+) kB", status)[1]) / 1024


class _Worker:
    """A program in a process of its own."""

    def __init__(self, module: str, name: str, settings: Settings):
        # Else XLA takes three quarters of the GPU at once, and can never have more.
        preallocate = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "--worker", name, *options(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | preallocate | {"JAX_PLATFORMS": settings.device},
        )

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def hear(self) -> dict:
        """Its next answer; `error` also where the process is gone."""
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        killed = "killed, which is what happens when memory is out" if code == -9 else "ended"
        return {"error": f"{killed}, exit status {code}"}

    def turn(self) -> dict:
        """What it answers after one run."""
        with suppress(BrokenPipeError):  # Then it has ended, and `hear` says how.
            print("run", file=self.process.stdin, flush=True)
        return self.hear()


def take_turns(
    module: str,
    programs: Mapping[str, Prepare],
    settings: Settings,
    *,
    keep: Sequence[str] | None = None,
) -> dict[str, Measured | str]:
    """What each program took, or why there is nothing to say.

    A round is one turn of each program, in an order of its own. Before the first round each has
    run once, unmeasured. On a GPU a program has all its turns before the next one starts.

    Args:
      keep: In place of `settings.keep`.

    Raises:
      ValueError: `keep` names no program.
    """
    keep = settings.keep if keep is None else keep
    for name in keep:
        if name not in programs:
            raise ValueError(f"keep: {name} is none of the programs {', '.join(programs)}")
    names = [*programs, *(name + KEPT for name in keep)]
    together = [[name] for name in names] if settings.device == "cuda" else [names]
    rows = {}
    for some in together:
        rows |= _rounds(module, some, settings)
    return rows


def _rounds(module: str, names: Sequence[str], settings: Settings) -> dict[str, Measured | str]:
    """Of processes that are all there from the first round to the last."""
    failed, ready, turns = {}, {}, {}
    with ExitStack() as stack:
        workers: dict[str, _Worker] = {}
        for name in (bar := tqdm(names, desc="prepare")):
            bar.set_postfix_str(name)
            worker = stack.enter_context(_Worker(module, name, settings))
            answer = worker.hear()
            if "error" in answer:
                failed[name] = answer["error"]
            else:
                workers[name], ready[name], turns[name] = worker, answer, []
        for round in tqdm(range(settings.repeats), desc="rounds"):
            for name in random.Random(round).sample(list(workers), len(workers)):
                time.sleep(_PAUSE)
                answer = workers[name].turn()
                if "error" in answer:
                    failed[name] = answer["error"]
                    del workers[name]
                else:
                    turns[name].append(answer)
    return {
        name: failed[name] if name in failed else _measured(ready[name], turns[name])
        for name in names
    }


def _measured(ready: Mapping, turns: Sequence[Mapping]) -> Measured:
    seconds = tuple(turn["seconds"] for turn in turns)
    return Measured(seconds, turns[-1]["peak_mib"], ready["first_s"], ready["before_mib"])


def options(settings: Settings) -> list[str]:
    """The command line that `tyro` reads as these settings."""
    found = []
    for field in fields(settings):
        value, flag = getattr(settings, field.name), field.name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{'' if value else 'no-'}{flag}")
        elif isinstance(value, tuple):
            found += [f"--{flag}", *map(str, value)]
        else:
            found += [f"--{flag}", str(value)]
    return found


def print_machine(settings: object, packages: Sequence[str]) -> None:
    """Settings, versions, processor and GPU, as a list."""
    print(f"- {settings}")
    print(f"- Python {platform.python_version()}, {', '.join(map(_version, packages))}")
    print(f"- {processor()}, {os.cpu_count()} cores")
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        print(
            f"- {subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()}"
        )

    if isinstance(settings, Settings):
        print(_GPU_NOTES if settings.device == "cuda" else _CPU_NOTES)


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"


def processor() -> str:
    """The CPU's name."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", path.read_text()) if path.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def table(
    rows: Mapping[str, Measured | str],
    *,
    count: int,
    unit: str = "images",
    flops: int | None = None,
    product_flops: int | None = None,
    ours: str = "ours",
) -> str:
    """Markdown: seconds, times ours, units per second, TFLOP/s and their share, MiB.

    A column in which there would be nothing is left out.

    Args:
      rows: Of `take_turns`. The rows of `MATMULS` give the rate that others have a share of: the
        higher of the two.
      count: Units that one run makes.
      unit: Its name, in the plural.
      flops: Of one run of each program but `MATMULS`.
      product_flops: Of one run of a row of `MATMULS`.
      ours: The row that others are compared with.
    """
    measured = {name: row for name, row in rows.items() if isinstance(row, Measured)}
    rates = [product_flops / row.median for name, row in measured.items() if name in MATMULS]
    head = ["program", "s", "times ours", f"{unit}/s", "TFLOP/s", "of the product rate"]
    lines = [[*head, "peak MiB", "MiB before"]]
    for name, row in rows.items():
        if isinstance(row, str):
            lines.append([name, row.replace("|", "/"), *[""] * 6])
            continue
        done = product_flops if name in MATMULS else flops
        times = row.median / measured[ours].median if ours in measured else None
        cells = [
            f"{row.median:.4g}",
            "" if times is None or name in MATMULS else f"{times:.2f}",
            "" if name in MATMULS else f"{count / row.median:.4g}",
            "" if done is None else f"{done / row.median / 1e12:.3g}",
            "" if done is None or not rates else f"{100 * done / row.median / max(rates):.0f} %",
            f"{row.peak_mib:.0f}",
            "" if row.before_mib is None else f"{row.before_mib:.0f}",
        ]
        lines.append([name, *cells])
    columns = [cells for cells in zip(*lines, strict=True) if any(cells[1:])]
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(columns) - 1), *lines[1:]])


_CPU_NOTES = """\
- Programs take turns. Peak MiB: the most that the process held, its libraries included; MiB before:
  what it held before the program was prepared. That is mostly jax, which comes with the sizes of
  the model: to leave out what a program in torch has no need of, subtract it there."""
_GPU_NOTES = f"""\
- On the GPU programs run one after another, not in turn: the process of one ends before the next
  one starts. A turn repeats the call for {_GPU_TURN:g} s after one untimed; s is of one call.
- Peak MiB: of the device, as the framework counts it."""
