"""`python -m pp_jax`: README's table, and every command in it one that its front takes."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import tyro

from pp_jax import cli, wishes
from pp_jax.__main__ import main
from pp_jax.presets import PRESETS
from tests.fronts import FRONTS

ROOT = Path(__file__).resolve().parents[1]
# What words may be added to.
FRONT_LINES = (
    "train.py",
    "eval.py",
    "-m pp_jax.predict IMAGES --checkpoint RUN --out DIR",
    "-m convert SOURCE OUT",
)
PLACEHOLDERS = {"X0": 1, "Y0": 2, "X1": 3, "Y1": 4, "X": 5, "Y": 6, "A,B": "rsna,synthetic"}


class ParsedError(Exception):
    """The front has taken all words."""


@pytest.fixture
def takes(monkeypatch, capsys):
    """Whether a front takes a command line; nothing of it is run."""
    real, depth = {"parse": cli.parse, "cli": tyro.cli}, []

    def parse(*args, **options):
        depth.append(1)
        try:
            real["parse"](*args, **options)
        finally:
            depth.pop()
        raise ParsedError

    def plain(*args, **options):
        found = real["cli"](*args, **options)
        if depth:
            return found
        raise ParsedError

    def takes(words):
        name, *rest = words
        front = FRONTS.get(name)
        if name == "-m":
            module, *rest = rest
            spec = importlib.util.find_spec(f"{module}.__main__") if is_folder(module) else None
            front = importlib.import_module(spec.name if spec else module)
        monkeypatch.setattr(sys, "argv", [name, *map(str, rest)])
        try:
            front.main()
        except ParsedError:
            return True
        except SystemExit as end:
            return not end.code  # As after --help.
        raise AssertionError(f"{words}: ran")

    def is_folder(module):
        return (ROOT / module.replace(".", "/")).is_dir()

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cli, "parse", parse)
    monkeypatch.setattr(tyro, "cli", plain)
    monkeypatch.setattr(FRONTS["train.py"].start, "to_resume", lambda folder: None)
    return takes


def code(command):
    """The pieces of a cell that are marked as code and are no name of a link."""
    return re.findall(r"(?<!\[)`([^`]+)`", command)


def words_of(piece):
    """The words of a command, with examples in place of what a user fills in."""
    words = shlex.split(piece.removeprefix(".venv/bin/python "))
    before = ["", *words]
    named = {"--data": "rsna", "--preset": next(iter(PRESETS))}
    return [
        named.get(last, word) if word == "NAME" else str(PLACEHOLDERS.get(word, word))
        for last, word in zip(before, words, strict=False)
    ]


PIECES = tuple(dict.fromkeys(p for command in wishes.WISHES.values() for p in code(command)))
PROGRAMS = [p for p in PIECES if re.match(r"\.venv/bin/python |train\.py -|eval\.py -", p)]
PARSED = [p for p in PROGRAMS if "benchmarks." not in p and "docs/" not in p]


def test_the_table_is_readmes_row_by_row():
    lines = (ROOT / "README.md").read_text().splitlines()
    start = lines.index("| I want to ... | command |") + 2
    table = lines[start : lines.index("", start)]
    assert table == [f"| {wish} | {command} |" for wish, command in wishes.WISHES.items()]


def test_the_front_tells_every_wish_and_its_command_in_a_terminals_words(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == [wish.replace("`", "") for wish in wishes.WISHES]
    told = dict(zip(lines[::2], lines[1::2], strict=True))
    assert told["see it work"] == "    make train"
    assert told["compare with torch SAM at full size"] == "    make parity (tables in runs/parity/)"
    assert not [line for line in lines if "`" in line or "](" in line]
    assert "(docs/data.md: RSNA, " in told["train on another data set, or a folder of mine"]


def test_words_choose_the_rows_that_name_all_of_them(capsys):
    main(["ViT", "H"])
    wanted = [w for w, c in wishes.WISHES.items() if "vit" in (w + c).lower()]
    chosen = capsys.readouterr().out.splitlines()[::2]
    assert "try ViT-H without weights" in chosen
    assert set(chosen) <= set(wanted) < set(wishes.WISHES)
    with pytest.raises(SystemExit, match="error: no wish names zebra"):
        main(["zebra"])


@pytest.mark.parametrize("piece", PARSED)
def test_a_command_is_taken_by_the_parser_of_its_front(piece, takes):
    assert takes(words_of(piece))


def test_a_command_that_its_front_does_not_take_would_be_found(takes):
    assert not takes(["train.py", "--varant", "tiny"])
    assert not takes(["train.py", "--filter", "sobble"])
    assert not takes(["-m", "pp_jax.predict", "IMAGES"])


@pytest.mark.parametrize("piece", [p for p in PIECES if p.startswith("--")])
def test_what_is_to_be_added_to_a_command_is_taken_by_a_front(piece, takes):
    added = words_of(piece) if " " in piece else [piece, "box"][: 1 + (piece == "--prompt")]
    assert any(takes([*shlex.split(front), *added]) for front in FRONT_LINES)


def test_targets_and_programs_that_are_named_are_there():
    rules = (ROOT / "Makefile").read_text()
    targets = [piece.removeprefix("make ") for piece in PIECES if piece.startswith("make ")]
    programs = [piece.split()[2] for piece in PROGRAMS if "benchmarks." in piece]
    scripts = [piece.split()[1] for piece in PROGRAMS if "docs/" in piece]
    assert len(targets) >= 4
    assert len(programs) >= 3
    assert all(re.search(rf"^{target.split()[0]}:", rules, re.M) for target in targets)
    assert scripts
    assert all((ROOT / name).is_file() for name in scripts)
    assert all((ROOT / f"{name.replace('.', '/')}.py").is_file() for name in programs)
