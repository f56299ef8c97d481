"""The notebooks of docs/notebooks: what they hold, what they install, and that they run."""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import parse_qs, urlparse

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement

from data import synthetic
from data.describe import Describe
from pp_jax.config import TrainConfig
from pp_jax.doctor import Doctor
from pp_jax.eval_config import EvalConfig
from pp_jax.preprocess.__main__ import Gallery
from tests.fronts import CACHE_SIZE
from tests.test_architecture import ABSOLUTE

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "docs" / "notebooks"
NAMES = (
    "00_quickstart",
    "01_rsna_on_kaggle",
    "02_what_sam_sees",
    "03_finetune_and_compare",
    "04_parity",
)
PATHS = [HERE / f"{name}.ipynb" for name in NAMES]
every = pytest.mark.parametrize("path", PATHS, ids=NAMES)


def load(name: str) -> ModuleType:
    """A program that lies beside the notebooks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        return importlib.import_module(name)


install, top = load("install"), load("top")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def cells(path: Path, kind: str) -> list[str]:
    held = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in held if cell.cell_type == kind]


def parsed(source: str) -> ast.Module:
    """The cell as Python, whose commands are calls."""
    return ast.parse(TransformerManager().transform_cell(source))


def test_the_notebooks_are_these() -> None:
    assert top.notebooks() == PATHS


@every
def test_a_notebook_is_valid_and_holds_no_answers(path: Path) -> None:
    notebook = json.loads(path.read_text())
    nbformat.validate(notebook)
    for cell in notebook["cells"]:
        assert len("".join(cell["source"]).splitlines()) < 15, cell["id"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    assert not [line for line in path.read_text().splitlines() if ABSOLUTE.search(line)]


@every
def test_a_notebook_begins_with_badges_that_open_it(path: Path) -> None:
    first = nbformat.read(path, as_version=4).cells[0]
    links = [urlparse(link) for link in re.findall(r"\)\]\((\S+)\)", first.source)]
    repository = urlparse(PROJECT["urls"]["Repository"])
    place = f"{repository.path}/blob/main/{path.relative_to(ROOT).as_posix()}"
    colab, kaggle, deepnote = links
    assert (colab.netloc, colab.path) == ("colab.research.google.com", f"/github{place}")
    assert (kaggle.netloc, kaggle.path) == ("kaggle.com", "/kernels/welcome")
    assert parse_qs(kaggle.query) == {"src": [f"https://github.com{place}"]}
    assert (deepnote.netloc, deepnote.path) == ("deepnote.com", "/launch")
    assert parse_qs(deepnote.query) == {"url": [f"https://github.com{place}"]}


@every
def test_its_first_cell_of_code_installs(path: Path) -> None:
    assert cells(path, "code")[0] == top.install(PROJECT["urls"]["Repository"])


def test_a_new_address_reaches_every_notebook(tmp_path, monkeypatch) -> None:
    for path in PATHS:
        shutil.copy(path, tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    monkeypatch.setattr(top, "HERE", tmp_path)
    top.main()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    monkeypatch.setattr(top, "address", lambda: "https://github.com/ann/other")
    top.main()
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert "OWNER" not in text
        assert text.count("/ann/other/blob/main/docs/notebooks/" + path.name) == 3
        assert '"https://github.com/ann/other"' in cells(path, "code")[0]


@every
def test_only_public_names_are_used(path: Path) -> None:
    nodes = [node for cell in cells(path, "code") for node in ast.walk(parsed(cell))]
    names = [
        part
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        for part in alias.name.split(".")
    ]
    names += [
        part
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for part in (node.module or "").split(".")
    ]
    names += [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    assert names
    assert not [name for name in names if name.startswith("_")]


@every
def test_what_is_imported_is_there(path: Path) -> None:
    for cell in cells(path, "code")[1:]:
        for node in ast.walk(parsed(cell)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith(("data", "pp_jax")):
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


@every
def test_commands_are_the_fronts_with_flags_that_they_have(path: Path) -> None:
    code = "\n".join(cells(path, "code")[1:])
    fronts = re.findall(r"^ *!python (?:-m )?(\S+)", code, re.MULTILINE)
    assert len(fronts) == len(re.findall(r"^ *!(?!head )", code, re.MULTILINE)) > 0
    for name in fronts:
        if name.endswith(".py"):
            assert (ROOT / name).is_file()
        else:
            found = importlib.util.find_spec(name)
            assert found
            package = found.submodule_search_locations is not None
            assert not package or importlib.util.find_spec(f"{name}.__main__")
    flags = set(re.findall(r"(?<!\S)--([a-z][a-z-]*)", re.sub(r"[\"'=]", " ", code)))
    known = {
        field.name
        for config in (TrainConfig, EvalConfig, Gallery, Describe, Doctor)
        for field in dataclasses.fields(config)
    }
    known |= set(inspect.signature(synthetic.main).parameters)
    known |= {"torch", "download", "force"}  # Of install.py and convert.
    assert not {flag for flag in flags if flag.replace("-", "_") not in known}


# What is installed. Of pip only the arguments are looked at.


def pip_of(jax: str, *, ours: str = "", accelerator: str = "") -> list[list[str]]:
    return install.plan(jax, ours=ours, needs=PROJECT["dependencies"], accelerator=accelerator)


@pytest.mark.parametrize("jax", ["0.10.0", "0.10.2", "0.11.0.dev20260301+cuda12", "0.12.1", "1.0"])
def test_a_jax_that_is_new_enough_stays(jax: str) -> None:
    first, second = pip_of(jax, accelerator="[cuda12]")
    told = {need.name: need for need in map(Requirement, first)}
    assert [str(one) for one in told["jax"].specifier] == [f"=={jax}"]
    assert not told["jax"].extras
    assert set(told) == {Requirement(need).name for need in PROJECT["dependencies"]}
    # The project itself must not ask for another one.
    assert second == ["--no-deps", "-e", str(ROOT)]
    assert pip_of(jax, ours="0.1.0") == []


@pytest.mark.parametrize("ours", ["", "0.1.0"])
@pytest.mark.parametrize("jax", ["", "0.4.35", "0.9.2"])
def test_a_jax_that_is_older_or_missing_is_installed(jax: str, ours: str) -> None:
    first, _ = pip_of(jax, ours=ours, accelerator="[cuda12]")
    told = next(need for need in map(Requirement, first) if need.name == "jax")
    assert told.extras == {"cuda12"}
    assert told.specifier.contains("0.10.2")
    assert not told.specifier.contains(jax or "0.9")


def test_the_program_installs_by_what_the_machine_has(monkeypatch, capsys) -> None:
    there, calls = {"jax": "0.11.0", "torch": "2.9.1"}, []

    def version(name: str) -> str:
        if name not in there:
            raise install.PackageNotFoundError(name)
        return there[name]

    def run(command: list[str], *, check: bool) -> SimpleNamespace:
        assert command[:4] == [sys.executable, "-m", "pip", "install"]
        assert check
        calls.append(command[5:])
        there.setdefault("pp_jax", "0.1.0")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(install, "version", version)
    monkeypatch.setattr(install.subprocess, "run", run)
    install.main([])
    assert [call[0] for call in calls] == ["jax==0.11.0", "--no-deps"]
    assert capsys.readouterr().out == "pp_jax 0.1.0, jax 0.11.0 (as it was)\n"
    calls.clear()
    install.main([])
    assert not calls
    install.main(["--torch"])  # Kept as well.
    assert [call[0] for call in calls] == ["torch==2.9.1"]
    del there["torch"]
    calls.clear()
    monkeypatch.setenv("TORCH_OPTIONS", "--index-url https://a.org/cpu")
    install.main(["--torch"])
    pin = next(x for x in (ROOT / "constraints.txt").read_text().split() if x.startswith("torch="))
    assert calls[0] == ["--index-url", "https://a.org/cpu", pin]
    assert calls[1][0] == pin


# That they run.


def run(*args: object, **environment: str) -> subprocess.CompletedProcess:
    """`python docs/notebooks/run.py`, started where the notebooks lie, as Jupyter does."""
    return subprocess.run(
        [sys.executable, HERE / "run.py", *map(str, args)],
        cwd=HERE,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_a_command_that_fails_ends_a_notebook(tmp_path) -> None:
    made = nbformat.v4.new_notebook()
    sources = (
        "code = 7\n!echo {code} > " + str(tmp_path / "first"),
        "!exit {code}",
        f"!touch {tmp_path / 'never'}",
    )
    made.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(made, tmp_path / "failing.ipynb")
    ended = run(tmp_path / "failing.ipynb")
    assert ended.returncode == 1, ended
    assert "failing.ipynb failed" in ended.stderr
    assert "!exit {code}" in ended.stderr  # Its source,
    assert "exit code 7: exit {code}" in ended.stderr  # and its error.
    assert (tmp_path / "first").read_text() == "7\n"
    assert not (tmp_path / "never").exists()


def test_a_name_without_a_notebook_is_refused() -> None:
    ended = run("77")
    assert (ended.returncode, ended.stderr) == (2, "error: no notebook is called 77\n")


def quickstart(compiled: Path, home: Path, kaggle: Path) -> subprocess.CompletedProcess:
    """The first notebook on its tiny setting, with compilations that the tests share."""
    return run(
        "00",
        PP_QUICK="1",
        PP_HOME=str(home),
        PP_KAGGLE_INPUT=str(kaggle),
        JAX_COMPILATION_CACHE_DIR=str(compiled),
        JAX_COMPILATION_CACHE_MAX_SIZE=str(CACHE_SIZE),
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        JAX_DEFAULT_MATMUL_PRECISION="highest",
    )


def check_run(home: Path, *, data: str, folder: Path) -> None:
    settings = json.loads((home / "runs/quickstart/config.json").read_text())
    assert (settings["data"], Path(settings["data_dir"])) == (data, folder)
    for name in ("quickstart/curves.png", "quickstart-report/overlays.png"):
        assert (home / "runs" / name).stat().st_size > 10_000
    assert "another patient's image" in (home / "runs/quickstart-report/table.md").read_text()


def test_the_quickstart_runs_on_the_embedded_data(compiled_folder, tmp_path) -> None:
    ended = quickstart(compiled_folder, tmp_path, tmp_path / "kaggle")
    assert ended.returncode == 0, ended.stderr
    assert re.fullmatch(r"00_quickstart\.ipynb: \d+ s\n", ended.stdout)
    check_run(tmp_path, data="synthetic", folder=tmp_path / "datasets/quickstart")


@pytest.mark.slow
def test_the_quickstart_finds_rsna_on_kaggle(compiled_folder, tmp_path) -> None:
    """Kaggle's layout, on phantoms: no masks, and nobody says who is shown."""
    folder = tmp_path / "kaggle/rsna-pneumonia-detection-challenge"
    synthetic.generate(folder, images=20, seed=0, side=256, workers=0)
    shutil.rmtree(folder / "masks")
    (folder / "patients.csv").unlink()
    shutil.copytree(folder / "stage_2_train_images", folder / "stage_2_test_images")
    (folder / "stage_2_sample_submission.csv").write_text("patientId,PredictionString\n")
    ended = quickstart(compiled_folder, tmp_path, tmp_path / "kaggle")
    assert ended.returncode == 0, ended.stderr
    check_run(tmp_path, data="rsna", folder=folder)
    assert not (tmp_path / "datasets").exists()
