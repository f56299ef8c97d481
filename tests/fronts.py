"""`train.py` and `eval.py` for tests: started, ended, and one small run that they share."""

import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import filelock
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from jax.experimental.compilation_cache import compilation_cache

import convert.__main__
import eval as eval_front
import train as train_front
from data.synthetic import generate
from pp_jax.sam import VARIANTS
from tests import official

ROOT = Path(__file__).resolve().parents[1]
STEPS = 4
FRONTS = {"train.py": train_front, "eval.py": eval_front}
CACHE_SIZE = 2**33  # With a limit, jax locks its cache: processes of the tests write at once.


class Ended(NamedTuple):
    """What is left of a program."""

    code: int
    out: str
    err: str


def front(name: str, *args: object) -> Ended:
    """A front's `main` in this process, whose compilations the compiled keeps."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, args)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                FRONTS[name].main()
            except SystemExit as end:
                code = end.code
    return Ended(code, out.getvalue(), err.getvalue())


def start(
    compiled: Path, *args: object, name: str = "train.py", **environment: str
) -> subprocess.Popen:
    """`python train.py` as a user starts it, or the other front."""
    return subprocess.Popen(
        [sys.executable, name, *map(str, args)],
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_COMPILATION_CACHE_MAX_SIZE": str(CACHE_SIZE),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        }
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> Ended:
    out, err = process.communicate()
    return Ended(process.returncode, out, err)


def flags(data: Path, run: Path, **more: object) -> list[str]:
    choices = {"data_dir": data, "out": run, "steps": STEPS, "batch": 4, "save_every": 2}
    choices |= {"trainable": "decoder", "keep": 3, "pictures_every": 0} | more
    return [part for k, v in choices.items() for part in (f"--{k.replace('_', '-')}", str(v))]


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def held(run: Path, step: int) -> list[np.ndarray]:
    """All arrays of a step's checkpoint: parameters, moments, counters."""
    folder = run / "steps" / f"{step:08d}" / "tree"
    with ocp.PyTreeCheckpointer() as reader:
        shapes = reader.metadata(folder.absolute()).item_metadata.tree
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        return jax.tree.leaves(reader.restore(folder.absolute(), restore_args=plain))


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = held(one, STEPS), held(other, STEPS)
    assert len(ours) == len(theirs) > 300
    for leaf, again in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(leaf, again)


def assert_refused(ended: Ended, *named: str) -> None:
    """Exit code 2 and one line that names what is wrong, without a traceback."""
    assert ended.code == 2, ended
    errors = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, ended.err
    for word in named:
        assert word in errors[0]
    assert "Traceback" not in ended.out + ended.err


@pytest.fixture(scope="session")
def made_once(request, tmp_path_factory):
    """`made_once(name, make)` is a folder that `make` filled, for all processes of the tests."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if hasattr(request.config, "workerinput") else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.made"
        with filelock.FileLock(base / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def compiled_folder(made_once):
    """Compilations, shared by the processes of the tests and those that they start."""
    return made_once("compiled", lambda folder: None)


@pytest.fixture(scope="module")
def compiled(compiled_folder):
    """The same folder, and compilations in a hurry: a few steps need no fast program."""
    jax.config.update("jax_compilation_cache_dir", str(compiled_folder))
    jax.config.update("jax_compilation_cache_max_size", CACHE_SIZE)
    jax.config.update("jax_disable_most_optimizations", True)
    compilation_cache.reset_cache()
    yield compiled_folder
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_compilation_cache_max_size", -1)
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # Programs in a hurry round otherwise: other tests compile their own.
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def data(made_once):
    def make(folder: Path) -> None:
        generate(folder / "phantoms", images=20, seed=0, side=256, workers=0)

    return made_once("data", make) / "phantoms"


@pytest.fixture(scope="session")
def trained(compiled_folder, data, made_once):
    """A run that nothing interrupted, and what it said."""

    def make(folder: Path) -> None:
        options = flags(data, folder / "whole")
        ended = finish(start(compiled_folder, *options, JAX_LOG_COMPILES="1"))
        assert ended.code == 0, ended.err
        (folder / "ended.json").write_text(json.dumps(ended))

    folder = made_once("trained", make)
    return folder / "whole", Ended(*json.loads((folder / "ended.json").read_text()))


@pytest.fixture(scope="session")
def run(trained):
    return trained[0]


@pytest.fixture
def copied(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture(scope="session")
def converted(made_once):
    """Converted weights of an official model with random tensors."""

    def make(folder: Path) -> None:
        sam = official.randomise(official.build(VARIANTS["tiny"]), seed=0)
        torch.save(sam.state_dict(), folder / "tiny.pth")
        convert.__main__.convert(folder / "tiny.pth", folder / "tiny", preprocess="sam")

    return made_once("converted", make) / "tiny"
