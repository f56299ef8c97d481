"""The command line: choices, and one clear line for a user's mistake."""

import dataclasses
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

import train
from pp_jax import cli, presets
from pp_jax.config import TrainConfig
from pp_jax.eval_config import EvalConfig
from pp_jax.predict.__main__ import Predict

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Settings:
    """Settings of a test."""

    variant: str = "small"
    """Which one."""
    steps: int | None = None
    """How many."""
    fast: bool = False
    """Hurry."""

    @property
    def double(self) -> str:
        """Twice the variant."""
        return 2 * self.variant


CHOICES = {"variant": ("small", "large")}


def parse(*args: str, choices: dict | None = None) -> Settings:
    return cli.parse(Settings, prog="prog", choices=choices or CHOICES, args=list(args))


def test_flags_become_the_plain_config() -> None:
    got = parse("--variant", "large", "--steps", "3", "--fast")
    assert type(got) is Settings
    assert got == Settings("large", 3, True)
    assert parse() == Settings()
    assert parse("--fast", "--no-fast") == Settings()


def test_choices_of_one_call_do_not_reach_the_config_or_the_next_call() -> None:
    parse("--variant", "large")
    assert [field.type for field in dataclasses.fields(Settings)] == [str, int | None, bool]
    assert parse("--variant", "huge", choices={"variant": ("small", "huge")}).variant == "huge"
    assert cli.parse(Settings, prog="prog", args=["--variant", "any"]).variant == "any"


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--variant", "huge"], ["huge", "small", "large"]),
        (["--varant", "large"], ["--varant"]),
        (["--steps", "many"], ["many"]),
        (["stray"], ["stray"]),
    ],
)
def test_a_wrong_flag_or_value_is_named_with_exit_code_2(
    capsys: pytest.CaptureFixture, args: list[str], named: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*args)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert all(name in err for name in named)
    assert "Traceback" not in out + err


def test_help_shows_choices_defaults_and_texts(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for part in (
        "Settings of a test.",
        "--variant {small,large} Which one. (default: small)",
        "How many. (default: None)",
        "--fast, --no-fast Hurry. (default: False)",
    ):
        assert part in text


def test_help_tells_time_and_result_of_every_preset(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        train.main()
    text = re.sub(r"[│\s]", "", capsys.readouterr().out)
    for name, preset in presets.PRESETS.items():
        assert re.sub(r"\s", "", f"{name}: {preset.time}, {preset.result}") in text


def test_an_unknown_preset_is_refused_with_those_there_are(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--preset", "rsna"])
    with pytest.raises(SystemExit):
        train.main()
    told = capsys.readouterr().err
    assert told.startswith("error: --preset rsna: choose one of cxr-phantoms, ")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--rounds", "4"), "--prompting iterative"),
        (("--preset", "cxr-tiny", "--lora-rank", "4"), "--trainable lora"),
        (("--patience", "3", "--validation", "0"), "--validation"),
        (("--wandb", "lungs"), "Weights & Biases is not installed"),
    ],
)
def test_what_needs_no_data_to_be_refused_is_refused_before_any_is_read(
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    named: str,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["train.py", *flags, "--data-dir", "nowhere"])
    with pytest.raises(SystemExit):
        train.main()
    told = capsys.readouterr().err
    assert named in told
    assert "nowhere" not in told


@pytest.mark.parametrize(("process", "lines"), [(0, "once\n"), (1, "")])
def test_of_several_processes_the_first_speaks(
    process: int, lines: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: process)
    train.say("once")
    assert capsys.readouterr().out == lines


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("--lr -1:\n  must be   positive"), "error: --lr -1: must be positive\n"),
        (
            FileNotFoundError(2, "No such file", "a.csv"),
            "error: a.csv: no such file or folder; check the path\n",
        ),
        (FileNotFoundError("DIR: no such folder; get it"), "error: DIR: no such folder; get it\n"),
        (FloatingPointError("the loss is nan at step 3"), "error: the loss is nan at step 3\n"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture, error: Exception, line: str
) -> None:
    with pytest.raises(SystemExit) as caught, cli.one_line_errors():
        raise error
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", line)


def too_much_for_jax() -> None:
    jax.numpy.zeros(2**52, dtype="uint8").block_until_ready()


def too_much_for_numpy() -> None:
    np.empty(2**60, np.uint8)


def nothing_said() -> None:
    raise MemoryError


@pytest.mark.parametrize("ask", [too_much_for_jax, too_much_for_numpy, nothing_said])
def test_memory_that_runs_out_is_one_line_that_says_what_to_do(
    capsys: pytest.CaptureFixture, ask: Callable[[], None]
) -> None:
    with pytest.raises(SystemExit) as caught, cli.one_line_errors(less_memory="give --batch 1"):
        ask()
    assert caught.value.code == 2
    assert re.fullmatch(
        r"error: out of memory \(.{8,150}\): give --batch 1\n", capsys.readouterr().err
    )


def test_what_to_do_without_memory_names_flags_that_the_fronts_have() -> None:
    for words, config in ((train.LESS_MEMORY, TrainConfig), (cli.SMALLER, EvalConfig)):
        flags = set(re.findall(r"--([a-z-]+)", words))
        assert len(flags) >= 2
        assert flags <= {field.name.replace("_", "-") for field in dataclasses.fields(config)}
    assert set(re.findall(r"--([a-z-]+)", cli.SMALLER)) <= {
        field.name.replace("_", "-") for field in dataclasses.fields(Predict)
    }


def test_another_error_of_xla_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError), cli.one_line_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(KeyError), cli.one_line_errors():
        raise KeyError("a")


def test_an_interrupt_is_one_line_with_the_shells_exit_code(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught, cli.one_line_errors():
        raise KeyboardInterrupt
    assert caught.value.code == 128 + 2  # SIGINT is signal 2.
    assert capsys.readouterr().err == "interrupted\n"


def test_the_traceback_is_there_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PP_TRACEBACK", "1")
    with pytest.raises(ValueError, match="a mistake"), cli.one_line_errors():
        raise ValueError("a mistake")


def test_a_warning_is_one_line_and_python_shows_it_its_own_way_afterwards(
    capsys: pytest.CaptureFixture,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = warnings.showwarning
        with cli.one_line_errors():
            warnings.warn("look\n  here", stacklevel=1)
        assert capsys.readouterr() == ("", "warning: look here\n")
        with pytest.raises(SystemExit), cli.one_line_errors():
            raise ValueError
        assert warnings.showwarning is before


def test_a_device_that_is_not_there_is_one_clear_error() -> None:
    absent = next(name for name in ("tpu", "gpu") if name != jax.default_backend())
    with pytest.raises(ValueError, match=f"--device {absent}: .*only {jax.default_backend()}"):
        cli.devices(absent)


def test_the_chosen_device_is_the_one_computed_on(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = jax.config.jax_default_device
    try:
        found = cli.devices("cpu")
        assert jax.numpy.ones(3).devices() == {found[0]} == {jax.devices("cpu")[0]}
    finally:
        jax.config.update("jax_default_device", old)
    assert capsys.readouterr().out == f"devices: {len(found)} x cpu (cpu)\n"


def test_starting_elsewhere_than_in_the_clone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    cli.require_clone()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"cd {ROOT}"):
        cli.require_clone()


def test_a_fresh_folder_is_empty_and_beside_an_older_output(tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()
    assert list(cli.fresh_folder(out, ours="summary.json").iterdir()) == []  # `out` was empty.
    (out / "summary.json").write_text("{}")
    (tmp_path / "report.partial" / "left").write_text("by a killed run")
    fresh = cli.fresh_folder(out, ours="summary.json")
    assert list(fresh.iterdir()) == []
    assert (out / "summary.json").read_text() == "{}"
    fresh.rmdir()
    out.rename(tmp_path / "gone")
    assert cli.fresh_folder(out, ours="summary.json") == fresh


def test_a_begun_folder_is_gone_on_with_and_takes_the_place_of_an_older_output(
    tmp_path: Path,
) -> None:
    out = tmp_path / "report"
    out.mkdir()
    for name in ("report.html", "old.png"):
        (out / name).write_text("old")
    partial = cli.partial_folder(out, ours="report.html")
    partial.mkdir()
    (partial / "report.html").write_text("new")
    assert cli.partial_folder(out, ours="report.html") == partial
    cli.put_folder(partial, out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {"report.html": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "thesis"
    if kind == "folder":
        out.mkdir()
        (out / "chapter.tex").write_text("")
    else:
        out.write_text("")
    with pytest.raises(ValueError, match=f"--out {out}: not empty"):
        cli.fresh_folder(out, ours="summary.json")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]
