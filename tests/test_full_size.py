"""Whole trainings of `vit_b` at 1024 pixels: minutes each, in `make parity`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.synthetic import generate

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def losses(folder: Path, data: Path, *, devices: int, mesh: str) -> list[float]:
    """Training and validation losses of two steps on four images, decoder trainable."""
    out = folder / f"on-{devices}"
    flags = f"--variant vit_b --init random --data rsna --data-dir {data} --out {out}"
    flags += f" --batch 4 --steps 2 --seed 3 --mesh {mesh}"
    environment = os.environ | {
        # On a busy machine a device may wait for the others longer than the 40 s that XLA allows.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=1200",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    done = subprocess.run(
        [sys.executable, "train.py", *flags.split()],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"devices: {devices} x" in done.stdout
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


def test_vit_b_has_the_same_losses_on_one_device_and_on_a_mesh_of_four(tmp_path: Path) -> None:
    data = generate(tmp_path / "set", images=16, seed=5, side=256)
    one = losses(tmp_path, data, devices=1, mesh="data=1")
    four = losses(tmp_path, data, devices=4, mesh="data=2,fsdp=2")
    print(f"\nlosses on 1 device {one}, on 4 devices {four}")
    np.testing.assert_allclose(four, one, rtol=1e-5)
