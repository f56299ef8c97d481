"""Two processes train as one does. Each compiles a training of its own: a minute, in `make parity`.

That nothing is told of other processes is a mistake in one line: quick.
"""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from data.synthetic import generate
from pp_jax import checkpoints, cli, sharding
from pp_jax.finetune import runs

ROOT = Path(__file__).resolve().parents[1]
FLAGS = "--trainable decoder --batch 4 --steps 3 --save-every 2 --pictures-every 0 --seed 3"


def start(data: Path, out: Path, flags: str, **environment: str) -> subprocess.Popen:
    """A training, begun."""
    given = f"--data-dir {data} --out {out} {FLAGS} {flags}"
    return subprocess.Popen(
        [sys.executable, "train.py", *given.split()],
        cwd=ROOT,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def losses(run: Path) -> list[tuple[int, str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["split"], row["loss"]) for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    data = generate(tmp_path / "set", images=12, seed=5, side=256)
    one, two = tmp_path / "one", tmp_path / "two"
    alone = start(data, one, "")
    cluster = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        # On a busy machine a device may wait for the others longer than the 40 s that XLA allows.
        "XLA_FLAGS": "--xla_cpu_collective_call_terminate_timeout_seconds=1200",
    }
    both = [
        start(data, two, "--distributed --mesh fsdp=2", **cluster, JAX_PROCESS_ID=str(i))
        for i in range(2)
    ]
    for process in (alone, *both):
        told, _ = process.communicate()
        assert process.returncode == 0, told[-3000:]
    want, got = losses(one), losses(two)
    assert [row[:2] for row in got] == [row[:2] for row in want]
    np.testing.assert_allclose([row[2] for row in got], [row[2] for row in want], rtol=1e-5)
    # What both wrote together is whole, and one process reads it.
    assert checkpoints.steps(two) == [2, 3]
    assert not list(two.rglob("*.partial"))
    mesh = sharding.make_mesh(jax.devices()[:1])
    held, wanted = (runs.load(run / "steps" / "00000003", mesh=mesh) for run in (two, one))
    ours, theirs = (
        np.concatenate(
            [np.ravel(x) for x in jax.tree.leaves(x.variables["params"]["mask_decoder"])]
        )
        for x in (held, wanted)
    )
    # Adam makes a step of a rounding error where the gradient is zero: single weights may be a step
    # of 1e-3 apart, all of them together are not a hundredth of one.
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < 1e-5


NAMES = "set JAX_COORDINATOR_ADDRESS .*JAX_NUM_PROCESSES .*JAX_PROCESS_ID"


@pytest.mark.parametrize(
    "told",
    [
        {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"},
        {
            "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1",
            "JAX_NUM_PROCESSES": "two",
            "JAX_PROCESS_ID": "0",
        },
    ],
)
def test_half_of_what_tells_of_other_processes_is_one_clear_error(monkeypatch, told):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"--distributed: .*127.0.0.1:1.*{NAMES}"):
        cli.join_processes()


def test_without_a_cluster_distributed_is_one_clear_error():
    """In a process that has not used a device yet, as jax asks."""
    script = "from pp_jax import cli\nwith cli.one_line_errors():\n    cli.join_processes()"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert re.fullmatch(f"error: --distributed: no other processes .*{NAMES}.*\n", done.stderr)
