"""The pages and the project's own files say what is so."""

import ast
import dataclasses
import importlib.util
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from pp_jax import presets
from pp_jax.ablations import AblationConfig
from pp_jax.config import TrainConfig
from pp_jax.preprocess import filters

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def texts(path: Path) -> Iterator[str]:
    """Each string of a file as it is put together, `...` for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else "..." for v in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def shell(text: str) -> str:
    """What a Makefile prints, `...` for what is filled in."""
    return re.sub(r"\$\([^()]*\)", "...", text)


@pytest.fixture(scope="module")
def said() -> str:
    """All that the programs can say."""
    files = [ROOT / "train.py", ROOT / "eval.py"]
    files += [p for folder in ("pp_jax", "data", "convert") for p in (ROOT / folder).rglob("*.py")]
    code = "\n".join(text for path in files for text in texts(path))
    return code + "\n" + shell((ROOT / "Makefile").read_text())


MESSAGES = re.findall(r"^`(.*\.\.\..*)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)


def test_messages_are_found() -> None:
    assert len(MESSAGES) > 25


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_page_is_one_that_the_code_prints(message: str, said: str) -> None:
    for part in re.split(r"(?:\.\.\.)+", message):
        assert len(part) < 4 or part in said, part


COMMANDS = sorted(
    {
        (page.name, line.strip())
        for page in DOCS.glob("*.md")
        for line in re.findall(r"[^\n`]*train\.py[^\n`]*", page.read_text())
    }
)


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_flags_of_a_training_in_a_page_exist(page: str, line: str) -> None:
    known = {
        field.name.replace("_", "-")
        for config in (TrainConfig, AblationConfig)
        for field in dataclasses.fields(config)
    }
    told = line.split("train.py", 1)[1]
    assert set(re.findall(r"(?<!\S)--([a-z][a-z-]*)", told)) <= known | {"init", "model", "help"}
    assert set(re.findall(r"--preset ([a-z]\S*)", told)) <= set(presets.PRESETS)


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_filter_of_the_contributing_page_equals_its_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours: dict = {}
    theirs: dict = {}
    filter_, reference = blocks("contributing.md")
    exec(filter_, ours)
    exec(reference, theirs)
    row = {"solarize": ours["solarize"]}
    monkeypatch.setattr(filters, "FILTERS", {**filters.FILTERS, **row})
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for spec, level in (("solarize", 128.0), ("solarize:100", 100.0), ("solarize:level=0", 0.0)):
        got = filters.filter_image(grey, spec=spec)[0]
        np.testing.assert_array_equal(got, theirs["solarize"](grey, level=level))
    with pytest.raises(ValueError, match=r"filter 'solarize:300': level=300\.0: choose"):
        filters.parse("solarize:300")
    slope = jax.grad(lambda x: ours["solarize"]().function(x, jnp.array([2, 2])).sum())
    np.testing.assert_array_equal(slope(jnp.array([[10.0, 200.0]])), [[1, -1]])


def test_every_page_stands_in_the_navigation_of_the_site() -> None:
    tree = ast.parse((DOCS / "extension.py").read_text())
    value = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "NAVIGATION"
    )
    listed = {name for names in ast.literal_eval(value).values() for name in names}
    pages = {path.stem for path in DOCS.glob("*.md")}
    assert listed == pages | {"../benchmarks/RESULTS", "api/index"}


def load(path: str) -> dict:
    return yaml.safe_load((ROOT / path).read_text())


def test_the_citation_names_this_version_and_invents_nobody() -> None:
    held = load("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(held)  # What the schema requires.
    assert held["cff-version"] == "1.2.0"
    assert held["version"] == PROJECT["version"]
    assert held["license"] == PROJECT["license"]
    assert held["authors"] == [{"name": "Pixel Perfect contributors"}]
    assert "doi" not in held


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_workflow_runs_targets_of_the_makefile_on_every_python() -> None:
    jobs = load(".github/workflows/test.yml")["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    runs = {step["run"] for step in steps if "run" in step}
    assert {"make test", "make lint", "make docs"} == runs
    assert {run.removeprefix("make ") for run in runs} <= targets()
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert PROJECT["requires-python"] == ">=3.11,<3.13"
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", s["uses"]) for s in steps if "uses" in s)


def test_hooks_before_a_commit_are_the_programs_of_make_lint() -> None:
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    hooks = [hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {h["id"] for h in hooks} == {"ruff", "ruff-format", "lint-imports"}
    for hook in hooks:
        program = hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude")
        assert program in lint


def test_the_conda_environment_is_the_clone_with_its_pins() -> None:
    held = load("environment.yml")["dependencies"]
    assert any(re.fullmatch(r"python=3\.1[12]", str(line)) for line in held)
    (pip,) = (line["pip"] for line in held if isinstance(line, dict))
    assert pip == ["-c constraints.txt", "-e ."]


def make(*words: str) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", "-n", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", ["cuda12", "cuda13", "tpu"])
def test_make_train_installs_the_extra_of_jax_that_is_named(name: str, tmp_path: Path) -> None:
    assert name in metadata("jax").get_all("Provides-Extra")
    done = make("train", f"JAX={name}", f"VENV={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert f"-c constraints.txt 'jax[{name}]'" in done.stdout


def test_make_train_installs_the_cpu_alone_unless_told(tmp_path: Path) -> None:
    done = make("train", f"VENV={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "jax[" not in done.stdout


@pytest.mark.parametrize("name", ["gpu", "cuda", "cuda12 tpu", ""])
def test_an_unknown_build_of_jax_is_one_clear_line(name: str) -> None:
    done = make("train", f"JAX={name}")
    assert done.returncode
    assert done.stderr.count("\n") == 1
    assert f"JAX={name}: " in done.stderr
    assert "choose cpu, cuda12, cuda13 or tpu" in done.stderr


def check_site() -> object:
    spec = importlib.util.spec_from_file_location("check_site", DOCS / "check_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('<a href="b/other.html#there">x</a>', ""),
        ('<a href="#here">x</a> <h1 id="here">x</h1>', ""),
        ('<a href="https://example.org/">x</a>', ""),
        ('<img src="data:image/png;base64,AA">', ""),
        ('<link rel="canonical" href="https://example.org/">', ""),
        ('<a href="b/gone.html">x</a>', "index.html: b/gone.html: no such file"),
        ('<a href="b/other.html#gone">x</a>', "index.html: b/other.html#gone: no such anchor"),
        ('<a href="#gone">x</a>', "index.html: #gone: no such anchor"),
        ('<img src="gone.png">', "index.html: gone.png: no such file"),
        ('<script src="https://cdn.example.org/a.js"></script>', "loads https://cdn.example.org"),
        ('<link rel="stylesheet" href="//fonts.example.org/a.css">', "loads //fonts.example.org"),
    ],
)
def test_what_is_broken_in_a_site_is_named(tmp_path: Path, line: str, fault: str) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "index.html").write_text(line)
    (tmp_path / "b" / "other.html").write_text('<p id="there"><a href="../index.html">x</a></p>')
    found = list(check_site().faults(tmp_path))
    assert len(found) == bool(fault)
    assert all(fault in one for one in found)


def test_a_font_from_elsewhere_is_found_in_a_stylesheet(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text(
        "@import url('https://fonts.example.org/a'); b { c: url(d.png) }"
    )
    (found,) = check_site().faults(tmp_path)
    assert "a.css: loads https://fonts.example.org/a" in found
