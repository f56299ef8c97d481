"""The shape of the code: who imports whom, how long, how documented, what is never written."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pp_jax", "data", "convert")
FRONTS = ("train.py", "eval.py")
LONGEST_FILE, LONGEST_FUNCTION = 500, 80

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


LIBRARY = python_files(*PACKAGES)
EVERY = [ROOT / name for name in FRONTS] + LIBRARY + python_files("tests", "benchmarks")
FOLDERS = {path: path.relative_to(ROOT).as_posix() for path in EVERY}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all modules that are imported, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def library(path: Path) -> object:
    return pytest.param(path, id=FOLDERS[path])


def test_imports_only_go_down() -> None:
    # In a process of its own: import-linter takes over logging and the console.
    code = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_import_linter_knows_every_module_of_pp_jax() -> None:
    """A new folder or module that no layer holds would be free to import anything."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in settings["contracts"] if c["type"] == "layers")
    held = {name.strip(" ()") for layer in layers for name in layer.split("|")}
    there = {
        f"pp_jax.{path.stem}"
        for path in (ROOT / "pp_jax").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert there <= held | {"pp_jax.__init__"}
    assert set(settings["root_packages"]) == set(PACKAGES)


def test_nothing_imports_the_fronts_or_the_tests() -> None:
    above = {"train", "eval", "tests"}
    for path in LIBRARY:
        assert not above & {name.split(".")[0] for name in imports(parse(path))}, path


def test_every_package_is_in_the_wheel() -> None:
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "pp_jax").rglob("*.py")}
    names = {folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
    assert set(packaged["packages"]) == names
    for folder in folders:
        assert (folder / "__init__.py").is_file()


@pytest.mark.parametrize("path", [library(path) for path in EVERY])
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE
    for node in ast.walk(parse(path)):
        if isinstance(node, Function):
            length = node.end_lineno - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name}: {length} lines"


def public(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition) and not child.name.startswith("_"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{child.name}.")


@pytest.mark.parametrize("path", [library(path) for path in LIBRARY])
def test_everything_public_has_a_docstring(path: Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree)
    silent = [name for name, node in public(tree) if not ast.get_docstring(node)]
    assert not silent


def tables(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Names in capitals at module level, and the value they get."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            name, value = node.target.id, node.value
        else:
            continue
        if name.isupper():
            yield name, value


MUTABLE = (ast.Dict, ast.DictComp, ast.List, ast.ListComp, ast.Set, ast.SetComp)


@pytest.mark.parametrize("path", [library(path) for path in LIBRARY])
def test_tables_cannot_be_changed(path: Path) -> None:
    for name, value in tables(parse(path)):
        assert not isinstance(value, MUTABLE), f"{name}: use MappingProxyType, tuple or frozenset"


def test_tables_are_seen_by_this_test() -> None:
    found = {name for path in LIBRARY for name, _ in tables(parse(path))}
    assert {"VARIANTS", "FILTERS", "POLICIES", "RULES", "FILES", "PRESETS"} <= found
    assert [name for name, _ in tables(ast.parse("A: dict = {}\nb = {}\n_C = []"))] == ["A", "_C"]


@pytest.mark.parametrize("path", [library(path) for path in EVERY])
def test_annotations_are_evaluated(path: Path) -> None:
    """Postponed ones are strings, which jaxtyping and tyro would have to guess from."""
    assert "__future__" not in set(imports(parse(path)))


TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".cfg", ".json", ".html", ""}
# A home, or a folder of one machine. Made of parts: this file is searched as well.
HOMES = ("home", "root", "Users", "work", "mnt", "opt", "tmp", "private", "data1", "scratch")
ABSOLUTE = re.compile(rf"(?<![\w.~$}}/:-])/({'|'.join(HOMES)})/\w|\b[A-Z]:\\\\?\w")


def repository() -> Iterator[Path]:
    """Every text of the project: top-level files and the folders of code and pages."""
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXT)
    for folder in (*PACKAGES, "tests", "benchmarks", "docs", ".ci"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts:
                yield path


def test_no_text_mentions_a_folder_of_one_machine() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in repository()
        for line in path.read_text().splitlines()
        if ABSOLUTE.search(line)
    }
    assert not found


@pytest.mark.parametrize("parts", [("", "home", "ann", "x"), ("", "work", "a"), ("C:", "Users")])
def test_such_a_folder_would_be_found(parts: tuple[str, ...]) -> None:
    separator = "\\" if parts[0] else "/"
    assert ABSOLUTE.search(f"see {separator.join(parts)}.")
    assert not ABSOLUTE.search("https://a.org/home/x, ../home/a, datasets/root/x, tests/tmp/x")
