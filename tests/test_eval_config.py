"""Choices of an evaluation: what follows from the model, what the user says, what is refused."""

from typing import Any

import pytest

from pp_jax.config import TrainConfig, look_of, resolve
from pp_jax.eval_config import EvalConfig, resolve_eval
from pp_jax.look import Look, override
from pp_jax.preprocess import filters

RUN = resolve(
    TrainConfig(
        data="rsna", data_dir="r", prompting="point", filter="sobel", fusion="blend", blend=0.3
    )
)


def resolved(
    run: TrainConfig | None = RUN, *, folder: str = "runs/a", several: str = "", **said: Any
) -> EvalConfig:
    """For a model that is shown what the flags say."""
    trained = look_of(run) if run else Look()
    chosen = {name: said[name] for name in ("filter", "fusion", "blend") if name in said}
    shown = override(trained, **chosen)
    settings = EvalConfig(**said)
    return resolve_eval(
        settings, folder=folder, run=run, trained=trained, shown=shown, several=several
    )


def test_an_evaluation_follows_its_run() -> None:
    got = resolved()
    assert (got.checkpoint, got.data, got.data_dir) == (("runs/a",), "rsna", "r")
    assert got.prompt == "point"
    assert got.out == "runs/a/eval-rsna-point-test"
    assert got.image_size is None


def test_what_the_user_says_of_an_evaluation_stands() -> None:
    said = {
        "data": "rsna",
        "data_dir": "d",
        "out": "o",
        "prompt": "none",
        "filter": "none",
        "fusion": "replace",
        "blend": 0.0,
        "part": "all",
        "image_size": 512,
    }
    got = resolved(**said)
    assert {name: getattr(got, name) for name in said} == said


def test_other_data_does_not_come_from_the_runs_folder() -> None:
    assert resolved(data="synthetic").data_dir == "datasets/synthetic"


def test_an_evaluation_finds_the_folders_of_its_run() -> None:
    run = resolve(TrainConfig(data="rsna,brain_seg", data_dir="r,b"))
    found = [resolved(run, data=data).data_dir for data in ("", "brain_seg", "synthetic")]
    assert found == ["r,b", "b", "datasets/synthetic"]
    assert resolved(run, data="synthetic,rsna").data_dir == "datasets/synthetic,r"


def test_reports_of_two_filters_do_not_share_a_folder() -> None:
    names = {resolved(filter=name).out for name in filters.FILTERS}
    assert len(names) == len(filters.FILTERS)


def test_the_report_of_converted_weights_stands_beside_them() -> None:
    """A file more inside, and the checkpoint would no longer verify."""
    got = resolved(None, folder="checkpoints/vit_b")
    assert got.out == "checkpoints/vit_b-eval-synthetic-box-test"


def test_a_comparison_of_several_models_lies_in_none_of_them() -> None:
    names = {resolved(several=name, methods=("x", "y")).out for name in ("a,b", "a,c x=1")}
    assert names == {"runs/a,b-eval-rsna-point-test", "runs/a,cx1-eval-rsna-point-test"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("limit", 0),
        ("auto_points", 0),
        ("image_size", -16),
        ("samples", 99),
        ("margin", 1.0),
        ("pictures", -1),
        ("seed", -3),
        ("seed", 2**32),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"--{field.replace('_', '-')} {value}: "):
        resolved(**{field: value})
