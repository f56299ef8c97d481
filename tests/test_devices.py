"""What is said of the devices: once, and loudly where a faster one lies idle."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from pp_jax import cli

CPU = SimpleNamespace(platform="cpu", device_kind="cpu")
CARD = "GPU 0: NVIDIA H100 80GB HBM3"


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with no accelerator, no driver, and a jax that sees the CPU; its device files."""
    for name in ("CUDA_VISIBLE_DEVICES", *cli._TPU_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "dev").mkdir()
    monkeypatch.setattr(jax, "devices", lambda kind=None: [CPU, CPU])
    monkeypatch.setattr(jax, "config", SimpleNamespace(jax_platforms=None))
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: None)
    return tmp_path / "dev"


def put_driver(bin_: Path, script: str) -> None:
    bin_.mkdir()
    (bin_ / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (bin_ / "nvidia-smi").chmod(0o755)


def test_a_bare_machine_has_nothing_unused(bare_machine: Path) -> None:
    (bare_machine / "accel").mkdir()  # Other makers' devices, as Intel's.
    (bare_machine / "vfio").mkdir()  # Any device that is passed through, as to a virtual machine.
    assert cli.unused_accelerator(bare_machine) == ""


@pytest.mark.parametrize(
    ("file", "variable", "said"),
    [
        ("nvidia0", "", "NVIDIA"),
        ("accel0", "", "TPU"),
        ("vfio", "TPU_WORKER_ID", "TPU"),
        ("vfio", "TPU_NAME", "TPU"),
    ],
)
def test_an_accelerator_is_known_by_its_device_file(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, file: str, variable: str, said: str
) -> None:
    (bare_machine / file).touch()
    if variable:
        monkeypatch.setenv(variable, "0")
    found = cli.unused_accelerator(bare_machine)
    assert said in found
    assert str(bare_machine / file) in found


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (f"echo '{CARD} (UUID: GPU-1)'; echo 'GPU 1: other'", CARD),
        ("echo 'No devices found.'", ""),
        ("echo 'NVIDIA-SMI has failed' >&2; exit 9", ""),
        ("exit 0", ""),
    ],
)
def test_a_driver_without_a_device_file_is_asked(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: str
) -> None:
    put_driver(bare_machine.parent / "bin", script)
    said = cli.unused_accelerator(bare_machine)
    assert said == (f"an NVIDIA device is here ({found})" if found else "")


def test_a_driver_that_hangs_is_not_waited_for(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_driver(bare_machine.parent / "bin", "exit 0")

    def hang(*args: object, timeout: float, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    assert cli.unused_accelerator(bare_machine) == ""


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_nvidia_device_is_nobodys_mistake(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    (bare_machine / "nvidia0").touch()
    put_driver(bare_machine.parent / "bin", f"echo '{CARD}'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert cli.unused_accelerator(bare_machine) == ""


def test_an_idle_accelerator_is_one_loud_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cli, "unused_accelerator", lambda: "an NVIDIA device is here (dev)")
    cli.devices("auto")
    out, err = capsys.readouterr()
    assert out == "devices: 2 x cpu (cpu)\n"
    assert err.startswith("warning: an NVIDIA device is here (dev), but jax ")
    assert "make train JAX=cuda12" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("chosen", ["platforms", "gpu", "nothing"])
def test_nothing_is_said_where_the_cpu_was_chosen_or_all_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, chosen: str
) -> None:
    found = "" if chosen == "nothing" else "an NVIDIA device is here (dev)"
    monkeypatch.setattr(cli, "unused_accelerator", lambda: found)
    if chosen == "platforms":
        monkeypatch.setattr(jax.config, "jax_platforms", "cpu")
    if chosen == "gpu":
        card = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100")
        monkeypatch.setattr(jax, "devices", lambda kind=None: [card])
    cli.devices("auto")
    assert capsys.readouterr().err == ""


def test_the_flag_chooses_the_cpu_without_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cli, "unused_accelerator", lambda: "an NVIDIA device is here (dev)")
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [CPU])
    monkeypatch.setattr(jax.config, "update", lambda *told: None, raising=False)
    cli.devices("cpu")
    assert capsys.readouterr() == ("devices: 2 x cpu (cpu)\n", "")


@pytest.mark.parametrize(("process", "lines"), [(0, 1), (1, 0), (3, 0)])
def test_devices_are_printed_by_the_first_process_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, process: int, lines: int
) -> None:
    monkeypatch.setattr(cli, "unused_accelerator", lambda: "")
    monkeypatch.setattr(jax, "process_index", lambda: process)
    cli.devices("auto")
    assert capsys.readouterr().out.count("devices: 2 x cpu (cpu)\n") == lines
