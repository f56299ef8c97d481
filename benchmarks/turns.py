"""Programs measured side by side: each in a process of its own, one at a time, in turn.

A benchmark's module has one function from its settings to its programs, and a `main`:

    settings = turns.read(Benchmark, make_programs)  # In a worker's process this does not return.
    turns.print_machine(settings, ("jax", "torch"))
    rows = turns.take_turns(
        "benchmarks.encoder", make_programs(settings), settings,
        repeats=settings.repeats, keep=settings.keep,
    )
    print(turns.table(rows, count=settings.batch, flops=...))

What else the machine does strikes all alike, and peak memory is each program's own.
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
from typing import Literal, NoReturn, TypeVar

import tyro
from tqdm import tqdm

from pp_jax.memory import keep_freed_memory

Run = Callable[[], object]  # Works once, to the end: it blocks until the result is there.
Prepare = Callable[[], Run]

MATMULS = ("matmul jax", "matmul torch")  # Rows that measure what the machine can do at most.
KEPT = ", kept"
_PAUSE = 0.3  # Seconds before a turn: the threads of the program before spin for .2 s.
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every benchmark of programs in turn can be told; benchmarks add their own."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where all programs run."""
    threads: int = 0
    """Of torch on a CPU; 0: one for each core."""
    repeats: int = 5
    """Of which medians are taken."""
    keep: tuple[str, ...] = ()
    """Programs to run once more with freed memory kept for the next call, as ours do."""


@dataclass(frozen=True)
class Measured:
    """Seconds of each turn, and the most memory of the process."""

    seconds: tuple[float, ...]
    peak_mib: float  # On a GPU the framework's own peak of the device, else resident.
    first_s: float  # Of the first run, which compiles; it is in no median.
    platform: str  # "cpu" or "gpu".

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
    serve(programs(settings)[name.removesuffix(KEPT)], device=settings.device)


def serve(prepare: Prepare, *, device: str) -> NoReturn:
    """The worker's end of `take_turns`: one line of JSON for each line that comes in."""
    # What libraries print goes to stderr.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        run = prepare()
        first = _seconds(run)
        print(
            json.dumps({"ready": True, "first_s": first, "platform": _PLATFORMS[device]}),
            file=answers,
        )
        for _ in sys.stdin:
            seconds = _seconds(run)
            print(json.dumps({"seconds": seconds, "peak_mib": peak_mib(device)}), file=answers)
    except (Exception, SystemExit) as error:
        print(json.dumps({"error": _one_line(error)}), file=answers)
    sys.exit(0)


def _seconds(run: Run) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:200]


def peak_mib(device: str) -> float:
    """The most memory that this process has held: resident, or on the GPU as its framework says."""
    if device == "cpu":
        # Not `ru_maxrss`, which a process inherits from the one that started it.
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / _MIB
    import jax  # Only where it is the one that computed: it would take a GPU for itself.

    return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / _MIB


class _Worker:
    """A program in a process of its own."""

    def __init__(self, module: str, name: str, settings: Settings):
        preallocate = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # All programs share the GPU.
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
    repeats: int,
    keep: Sequence[str] = (),
) -> dict[str, Measured | str]:
    """What each program took, or why there is nothing to say.

    A round is one run of each program, in an order of its own. Before the first round each has
    run once, unmeasured.

    Raises:
      ValueError: `keep` names no program.
    """
    for name in keep:
        if name not in programs:
            raise ValueError(f"keep: {name} is none of the programs {', '.join(programs)}")
    failed, ready, turns = {}, {}, {}
    names = [*programs, *(name + KEPT for name in keep)]
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
        for round in tqdm(range(repeats), desc="rounds"):
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
    return Measured(seconds, turns[-1]["peak_mib"], ready["first_s"], ready["platform"])


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
    """Markdown: seconds, times ours, units per second, TFLOP/s and their share, peak MiB.

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
    lines = [
        f"| program | s | times ours | {unit}/s | TFLOP/s | of the product rate | peak MiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        if isinstance(row, str):
            lines.append(f"| {name} | {row.replace('|', '/')} | | | | | |")
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
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


_PLATFORMS = {"cpu": "cpu", "cuda": "gpu"}
