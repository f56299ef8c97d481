"""Programs run one after another or side by side, and gone on with after a stop.

A job is a command line of Python and a question whether its output is there. What is done is not
run again, so the same call goes on where an earlier one was stopped or killed.

FOLDER/logs/NAME.log   what the job printed
FOLDER/seconds.json    how long each took
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from pp_jax import cli
from pp_jax.checkpoints import write_json

SECONDS = "seconds.json"
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_LOCK = "lock"


class Job(NamedTuple):
    """A command, when it needs not be run, and what it needs."""

    name: str  # May have slashes: the log lies in folders.
    words: tuple[str, ...]  # Behind the interpreter.
    done: Callable[[], bool]
    after: tuple[str, ...] = ()  # Names of other jobs, which are done before.


def run(jobs: Sequence[Job], *, folder: Path, at_once: int = 1) -> None:
    """All jobs are done.

    Jobs that run side by side share out the cores, and each ends when this process does. Programs
    that jax compiled are kept in the folder for the jobs to come.

    Args:
      jobs: Each stands behind those that it needs.
      folder: For logs and times.
      at_once: How many run side by side.

    Raises:
      ValueError: A job failed; names its log. Those that ran beside it are stopped. Or another
        process runs jobs in this folder.
    """
    check(jobs)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: another process works there; wait for it, stop it, or choose another "
                "folder"
            ) from None
        _run(
            [job for job in jobs if not job.done()], count=len(jobs), folder=folder, at_once=at_once
        )


def _run(left: list[Job], *, count: int, folder: Path, at_once: int) -> None:
    if not left:
        return
    took = read_seconds(folder)
    stop = threading.Event()
    free = share_cores(at_once)
    running: dict[Future[float], tuple[Job, set[int]]] = {}
    with (
        _bar(count, done=count - len(left)) as bar,
        ThreadPoolExecutor(at_once) as pool,
    ):
        try:
            while left or running:
                waiting = {job.name for job in left} | {job.name for job, _ in running.values()}
                ready = [job for job in left if not waiting & set(job.after)]
                while ready and len(running) < at_once:
                    job = ready.pop(0)
                    left.remove(job)
                    cores = free.pop()
                    running[pool.submit(_run_one, job, folder, cores, stop)] = job, cores
                bar.set_postfix_str(", ".join(job.name for job, _ in running.values()))
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, cores = running.pop(future)
                    free.append(cores)
                    took[job.name] = round(took.get(job.name, 0.0) + future.result(), 1)
                    write_json(folder / SECONDS, took)
                    bar.update()
        except BaseException:
            stop.set()  # Ends those that run; a training saves its step first.
            raise


def check(jobs: Sequence[Job]) -> None:
    """Nothing, when names are not used twice and each job stands behind those that it needs.

    Raises:
      ValueError: Names the job.
    """
    known: set[str] = set()
    for job in jobs:
        if job.name in known:
            raise ValueError(f"two jobs are called {job.name}")
        if missing := set(job.after) - known:
            raise ValueError(f"{job.name} stands before {', '.join(sorted(missing))}")
        known.add(job.name)


def read_seconds(folder: Path) -> dict[str, float]:
    """How long each job took that was run to its end."""
    path = folder / SECONDS
    return json.loads(path.read_text()) if path.is_file() else {}


def backend_there() -> str:
    """What jax computes on in a process of its own, `cpu` or another."""
    words = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    if told.returncode:
        raise ValueError(f"jax does not start: {told.stderr.strip().splitlines()[-1:]}")
    return told.stdout.split()[-1]


def count_cores() -> int:
    """Of this process: fewer than the machine's where a scheduler shares them out."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_cores(parts: int) -> list[set[int]]:
    """This process's cores in as many parts, as equal as can be; all to each, if there are fewer.

    A program of one thread per core that has a core of its own wastes no time on sharing.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [set()] * parts
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < parts:
        return [set(cores) for _ in range(parts)]
    return [set(cores[part::parts]) for part in range(parts)]


def _run_one(job: Job, folder: Path, cores: set[int], stop: threading.Event) -> float:
    """The seconds that the job took.

    Raises:
      ValueError: It failed, or its output is not there.
    """
    log = folder / "logs" / f"{job.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    with log.open("a") as file:
        start = file.tell()
        process = subprocess.Popen(
            [sys.executable, *job.words],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(folder),
            # A terminal's Ctrl-C is for this process alone, which then asks each job once to stop:
            # a training takes a second signal as an order to end at once.
            start_new_session=True,
        )
        if cores and hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, cores)
        try:
            code = _wait(process, stop)
        finally:
            process.stdin.close()
    if code or not job.done():
        raise ValueError(
            f"{job.name} failed: {_last_line(log, start)} (all that it printed: {log}); the same "
            "command goes on here"
        )
    return time.perf_counter() - begun


def _wait(process: subprocess.Popen, stop: threading.Event) -> int:
    """The exit code; a process that is to stop is asked to."""
    while True:
        try:
            return process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            if stop.is_set():
                process.terminate()
                return process.wait()


def _environment(folder: Path) -> Mapping[str, str]:
    own = {_CACHE: str((folder / "compiled").resolve())} if _CACHE not in os.environ else {}
    # The first of several programs must not take all of an accelerator's memory.
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return shared | os.environ | own | {cli.TIED: "1"}


def _last_line(log: Path, start: int) -> str:
    """The last line, or the last error's, of what was printed from a place in the log on."""
    printed = log.read_bytes()[start:].decode(errors="replace")
    lines = printed.replace("\r", "\n").split("\n")
    told = [line.strip() for line in lines if line.strip()]
    errors = [line for line in told if line.startswith("error:")]
    return (errors or told or ["it printed nothing"])[-1]


@contextlib.contextmanager
def _bar(total: int, *, done: int) -> Iterator[tqdm]:
    with tqdm(total=total, initial=done, unit="job", mininterval=0) as bar:
        yield bar
