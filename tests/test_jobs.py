"""Jobs: what is done is not run again, what fails says why, and none outlives its parent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pp_jax import jobs
from pp_jax.jobs import Job

ROOT = Path(__file__).resolve().parents[1]


def appending(folder: Path, name: str, *, after: tuple[str, ...] = (), code: str = "") -> Job:
    """A job that notes its name in a file of all, and whose output is a file of its own."""
    script = (
        f"import pathlib, time; open({str(folder / 'order')!r}, 'a').write('{name} ')\n{code}\n"
        f"pathlib.Path({str(folder / name)!r}).touch()"
    )
    return Job(name, ("-c", script), (folder / name).is_file, after)


def order(folder: Path) -> list[str]:
    path = folder / "order"
    return path.read_text().split() if path.is_file() else []


def test_a_job_runs_behind_those_that_it_needs_and_never_twice(tmp_path):
    slow = "time.sleep(0.3)"
    planned = [
        appending(tmp_path, "a", code=slow),
        appending(tmp_path, "b", after=("a",)),
        appending(tmp_path, "c"),
    ]
    jobs.run(planned, folder=tmp_path, at_once=2)
    assert sorted(order(tmp_path)) == ["a", "b", "c"]
    assert order(tmp_path)[-1] == "b"  # c, beside a, does not wait for it.
    assert jobs.read_seconds(tmp_path).keys() == {"a", "b", "c"}
    assert jobs.read_seconds(tmp_path)["a"] >= 0.3
    jobs.run(planned, folder=tmp_path)
    assert len(order(tmp_path)) == 3


def test_a_job_that_fails_is_told_by_its_last_line_and_leaves_what_is_done(tmp_path):
    wrong = "raise SystemExit('error: the disk is full')"
    planned = [
        appending(tmp_path, "a"),
        appending(tmp_path, "x/b", after=("a",), code=wrong),
        appending(tmp_path, "c", after=("x/b",)),
    ]
    with pytest.raises(ValueError, match=r"x/b failed: error: the disk is full .*x/b\.log"):
        jobs.run(planned, folder=tmp_path)
    assert order(tmp_path) == ["a", "x/b"]
    planned[1] = planned[1]._replace(words=("-c", "print('nothing was made')"))
    with pytest.raises(ValueError, match="x/b failed: nothing was made"):
        jobs.run(planned, folder=tmp_path)


def test_jobs_in_a_wrong_order_are_refused():
    one, other = (Job(name, (), bool, after) for name, after in (("a", ("b",)), ("b", ())))
    with pytest.raises(ValueError, match="a stands before b"):
        jobs.check([one, other])
    with pytest.raises(ValueError, match="two jobs are called b"):
        jobs.check([other, other])


def test_cores_are_shared_out_without_one_twice():
    held = os.sched_getaffinity(0)
    assert jobs.share_cores(1) == [held]
    parts = jobs.share_cores(len(held))
    assert set().union(*parts) == held
    assert all(len(part) == 1 for part in parts)
    assert jobs.share_cores(len(held) + 1) == [held] * (len(held) + 1)


def test_a_folder_takes_one_run_at_a_time(tmp_path):
    inner = "import sys; from pp_jax import jobs; from pathlib import Path\n"
    inner += f"jobs.run([], folder=Path({str(tmp_path)!r}))"
    with pytest.raises(ValueError, match="another process works there"):
        jobs.run([Job("a", ("-c", inner), bool)], folder=tmp_path)
    jobs.run([appending(tmp_path, "a")], folder=tmp_path)  # The lock went with its owner.


def test_ctrl_c_asks_each_job_once_to_stop_and_lets_it_save(tmp_path):
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    child = (
        "import pathlib, signal, time\n"
        "def save(*_):\n"
        f"    time.sleep(0.6); open({str(saved)!r}, 'a').write('x'); raise SystemExit\n"
        "signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save)\n"
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)\n"
    )
    driver = (
        "from pathlib import Path; from pp_jax import jobs\n"
        f"jobs.run([jobs.Job('b', ('-c', {child!r}), bool)], folder=Path({str(tmp_path)!r}))"
    )
    words = [sys.executable, "-c", driver]
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_until(ready.is_file)
        os.killpg(process.pid, signal.SIGINT)  # As a terminal does.
        process.wait(60)
    finally:
        process.kill()
    assert saved.read_text() == "x"


def test_a_killed_run_leaves_no_job_behind_and_goes_on_where_it_was(tmp_path):
    beat = tmp_path / "beat"
    child = (
        "import pathlib, sys, time\n"
        "from pp_jax.cli import one_line_errors\n"
        f"with one_line_errors():\n    for _ in range(600):\n        pathlib.Path({str(beat)!r})"
        ".touch(); time.sleep(0.05)\n"
    )
    driver = f"""
from pathlib import Path
from pp_jax import jobs
from tests.test_jobs import appending
from pp_jax.jobs import Job
folder = Path({str(tmp_path)!r})
jobs.run(
    [appending(folder, "a"), Job("b", ("-c", {child!r}), (folder / "b").is_file, ("a",))],
    folder=folder,
)
"""
    process = subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT)
    try:
        wait_until(beat.is_file)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.5)
        last = beat.stat().st_mtime_ns
        time.sleep(0.5)
        assert beat.stat().st_mtime_ns == last
    finally:
        process.kill()
    assert json.loads((tmp_path / jobs.SECONDS).read_text()).keys() == {"a"}
    jobs.run([appending(tmp_path, "a"), appending(tmp_path, "b", after=("a",))], folder=tmp_path)
    assert order(tmp_path) == ["a", "b"]


def wait_until(holds, *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
