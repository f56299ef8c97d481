"""Choices of a run: what stands where the user says nothing, and what is refused."""

import dataclasses
import json
import re
import shlex
from typing import Any

import pytest

from pp_jax import cli, prompts, ranges
from pp_jax.config import (
    DEFAULTS,
    RECIPES,
    Look,
    TrainConfig,
    blind_twin,
    command,
    differences,
    fold_of,
    look_of,
    resolve,
    twin_command,
)
from pp_jax.finetune import optimize, trainable
from pp_jax.finetune.models import MODELS
from pp_jax.look import override
from pp_jax.preprocess.stage import make_stage
from pp_jax.presets import PRESETS
from pp_jax.sam import VARIANTS

TABLES = {
    "variant": MODELS,
    "trainable": trainable.POLICIES,
    "prompting": prompts.PROMPTINGS,
    "recipe": ("", *RECIPES),
    "optimizer": optimize.OPTIMIZERS,
    "schedule": optimize.SCHEDULES,
}


def test_every_variant_has_defaults_of_known_fields() -> None:
    assert DEFAULTS.keys() == MODELS.keys()
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    for chosen in DEFAULTS.values():
        assert chosen.keys() <= fields


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_flags_it_stands_for(name: str) -> None:
    recipe = RECIPES[name]
    by_name, by_flags = resolve(TrainConfig(recipe=name)), resolve(TrainConfig(**recipe))
    assert by_name == by_flags
    assert override(Look(), recipe=name) == look_of(by_flags)
    make_stage(look_of(by_name), side=16)


def test_a_recipe_beside_what_it_chooses_is_refused() -> None:
    with pytest.raises(ValueError, match="--recipe edges chooses the filter itself"):
        resolve(TrainConfig(recipe="edges", filter="sobel"))
    with pytest.raises(ValueError, match="--recipe edges chooses the fusion itself"):
        override(Look(), recipe="edges", fusion="replace")


def test_a_folder_of_any_look_is_one_folder_on_every_file_system() -> None:
    spec = "median:3>clahe:clip=3,sobel:5"
    run = resolve(TrainConfig(filter=spec, fusion="channels"))
    assert run.out == "runs/tiny-synthetic-box-median_3+clahe_clip3,sobel_5-channels"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_name_in_a_resolved_config_is_a_row_of_its_table(variant: str) -> None:
    config = resolve(TrainConfig(variant=variant))
    for field, table in TABLES.items():
        assert getattr(config, field) in table, field


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resolved_config_leaves_nothing_open(variant: str) -> None:
    config = resolve(TrainConfig(variant=variant))
    may_be_open = {"steps", "warmup", "limit", "save_every", "image_size", "folds", "fold"}
    may_be_open |= {"weight_decay", "patience", "pictures_every"}
    open_fields = {k for k, v in dataclasses.asdict(config).items() if v is None}
    assert open_fields <= may_be_open
    assert config.trainable
    assert config.data_dir
    assert config.out


@pytest.mark.parametrize("variant", VARIANTS)
def test_resolving_twice_changes_nothing(variant: str) -> None:
    once = resolve(TrainConfig(variant=variant))
    assert resolve(once) == once
    by_steps = resolve(TrainConfig(variant=variant, steps=5))
    assert resolve(by_steps) == by_steps


def test_defaults_by_variant_are_those_that_help_promises() -> None:
    tiny = resolve(TrainConfig())
    assert (tiny.trainable, tiny.checkpoint) == ("full", "")
    assert tiny.data_dir == "datasets/synthetic"
    assert tiny.out == "runs/tiny-synthetic-box-none"
    big = resolve(TrainConfig(variant="vit_h", data="rsna", prompting="point", filter="sobel"))
    assert (big.trainable, big.checkpoint) == ("decoder", "checkpoints/vit_h")
    assert big.out == "runs/vit_h-rsna-point-sobel"
    assert resolve(TrainConfig(variant="vit_h", init="random")).checkpoint == ""


def test_what_the_user_says_stands() -> None:
    said = {
        "trainable": "full",
        "checkpoint": "weights",
        "data_dir": "here",
        "out": "there",
        "batch": 3,
        "lr": 0.0,
        "epochs": 2,
    }
    config = resolve(TrainConfig(variant="vit_b", **said))
    assert {name: getattr(config, name) for name in said} == said


def test_steps_stand_instead_of_the_presets_epochs() -> None:
    config = resolve(TrainConfig(steps=7))
    assert (config.steps, config.epochs) == (7, None)
    with pytest.raises(ValueError, match="--steps 7 and --epochs 2"):
        resolve(TrainConfig(steps=7, epochs=2))


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("steps", -1),
        ("batch", 0),
        ("max_objects", 0),
        ("limit", 0),
        ("save_every", 0),
        ("keep", 0),
        ("lr", -1e-4),
        ("lr", NAN),
        ("weight_decay", INFINITY),
        ("clip", -1.0),
        ("focal", NAN),
        ("dice", -0.5),
        ("iou", -INFINITY),
        ("warmup", -1),
        ("workers", -2),
        ("blend", 1.5),
        ("blend", -0.1),
        ("blend", NAN),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_a_value_out_of_range_is_named_with_its_flag(field: str, value: Any) -> None:
    told = re.escape(f"--{field.replace('_', '-')} {value}: ")
    with pytest.raises(ValueError, match=told):
        resolve(dataclasses.replace(TrainConfig(), **{field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip", 0.0),
        ("lr", 0.0),
        ("warmup", 0),
        ("blend", 0.0),
        ("blend", 1.0),
        ("seed", 2**32 - 1),
    ],
)
def test_the_ends_of_a_range_are_in_it(field: str, value: Any) -> None:
    config = resolve(dataclasses.replace(TrainConfig(), **{field: value}))
    assert getattr(config, field) == value


KINDS = (
    {},
    {"trainable": "decoder"},
    {"fusion": "learned"},
    {"fusion": "learned", "trainable": "decoder"},
    {"trainable": "decoder", "embeddings": "float32"},
    {"trainable": "decoder", "embeddings": "bfloat16"},
    {"folds": 5},
    {"folds": 3},
    {"train_on": "finding=COVID-19,SARS"},
    {"train_on": "finding=COVID-19"},
    {"seed": 1},
    {"seed": 1, "folds": 5},
    {"blind": True},
)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_its_command_trains_and_a_flag_beside_it_counts_more(name: str) -> None:
    flags = {key: preset.flags for key, preset in PRESETS.items()}

    def typed(command: str) -> TrainConfig:
        return cli.parse(TrainConfig, prog="t", args=shlex.split(command)[2:], presets=flags)

    *before, command = PRESETS[name].command.splitlines()
    config = typed(command)
    made = [typed(line).out for line in before if "train.py" in line]
    assert config.init in ("checkpoint", *made[-1:])
    assert config.preset == name
    assert all(getattr(config, field) == value for field, value in flags[name].items())
    resolve(config)
    assert typed(f"{command} --prompting box").prompting == "box"
    assert typed(f"python train.py --preset={name}").variant == flags[name].get("variant", "tiny")


@pytest.mark.parametrize(
    ("choices", "start"),
    [
        ({"init": "runs/a/"}, ("checkpoint", "runs/a")),
        ({"checkpoint": "runs/a"}, ("checkpoint", "runs/a")),
        ({"init": "random", "variant": "vit_b"}, ("random", "")),
        ({"variant": "vit_b"}, ("checkpoint", "checkpoints/vit_b")),
    ],
)
def test_a_training_starts_from_one_thing(choices: dict[str, Any], start: tuple[str, str]) -> None:
    config = resolve(TrainConfig(**choices))
    assert (config.init, config.checkpoint) == start
    assert resolve(config) == config


@pytest.mark.parametrize("init", ["random", "runs/b"])
def test_two_things_to_start_from_are_refused(init: str) -> None:
    with pytest.raises(ValueError, match=f"--init {init} and --checkpoint runs/a"):
        resolve(TrainConfig(init=init, checkpoint="runs/a"))


def test_runs_of_two_kinds_do_not_share_a_folder_and_a_preset_is_not_named() -> None:
    names = [resolve(TrainConfig(**kind)).out for kind in KINDS]
    assert len(set(names)) == len(KINDS)
    assert all(re.fullmatch(r"runs/[\w.,+-]+", name) for name in names)
    assert resolve(TrainConfig(trainable="full", seed=0)).out == names[0]
    odd = resolve(TrainConfig(train_on="finding=No Lung Opacity / Not Normal,A|B"))
    assert re.fullmatch(r"runs/[\w.,+-]+", odd.out)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"folds": 1}, "--folds 1: must be at least 2"),
        ({"fold": 0}, "--fold 0: give --folds"),
        ({"folds": 3, "fold": 3}, "--fold 3: give --folds, and a number from 0 below that"),
        ({"folds": 3, "train_on": "sex=F"}, "--folds 3 and --train-on sex=F: each says who is"),
        ({"folds": 3, "test": 0.3}, "--folds 3 and --test 0.3: each says who is tested"),
        ({"train_on": "sex=F", "test": 0.3}, "--train-on sex=F and --test 0.3: each says who"),
    ],
)
def test_who_is_tested_is_said_once(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(TrainConfig(**choices))


def typed(command: str) -> TrainConfig:
    """What a shell and the front make of a command."""
    program, front, *args = shlex.split(command)
    assert (program, front) == ("python", "train.py")
    return resolve(cli.parse(TrainConfig, prog=front, args=args))


SEEING = (
    {},
    {"recipe": "edges"},
    {"filter": "sobel", "fusion": "blend", "blend": 0.25, "roi": "content"},
    {"fusion": "learned"},
    {"variant": "vit_b", "trainable": "full", "lr": 0.25, "batch": 3, "epochs": None, "steps": 7},
    {
        "variant": "vit_h",
        "init": "random",
        "data": "cxr_seg",
        "data_dir": "my data",
        "balance": True,
    }
    | {"prompting": "none"},
    {"train_on": "finding=COVID-19,No Finding", "seed": 4, "image_size": 512},
    {"out": "runs/my run", "remat": True},
    {"folds": 5, "fold": 2},
    {"folds": 5, "fold": 2, "out": "cross"},
    # As a preset and flags beside it, one of them back at the default, leave them.
    *({"preset": name, **preset.flags} for name, preset in PRESETS.items()),
    {"preset": "cxr-tiny", **PRESETS["cxr-tiny"].flags, "dice": 1.0, "augment": "none"},
)


@pytest.mark.parametrize("choices", SEEING)
def test_a_blind_twin_differs_in_what_it_is_shown_and_its_command_trains_it(
    choices: dict[str, Any],
) -> None:
    run = resolve(TrainConfig(**choices))
    if run.fold is not None:
        run = fold_of(run, run.fold)
    twin = blind_twin(run)
    assert (twin.filter, twin.fusion) == ("blank", "replace")
    assert twin.out != run.out
    shown = {"filter", "fusion", "blend", "affinity"} | (
        {"trainable"} if run.fusion == "learned" else set()
    )
    assert differences(dataclasses.asdict(run), twin).keys() <= shown
    again = typed(twin_command(run))
    again = again if again.fold is None else fold_of(again, again.fold)
    assert again == dataclasses.replace(twin, preset="")
    itself = typed(command(run))
    itself = itself if itself.fold is None else fold_of(itself, itself.fold)
    assert itself == dataclasses.replace(run, preset="")


@pytest.mark.parametrize("choices", [choices for choices in SEEING if "out" not in choices])
def test_blind_is_the_same_as_the_twin_of_what_the_other_flags_say(choices: dict[str, Any]) -> None:
    whole = {name: value for name, value in choices.items() if name != "fold"}
    twin = blind_twin(resolve(TrainConfig(**whole)))
    blind = resolve(TrainConfig(**choices, blind=True))
    assert blind == dataclasses.replace(twin, fold=choices.get("fold"))


def test_the_twin_of_a_default_run_is_named_as_any_run_and_another_stands_beside_it() -> None:
    assert blind_twin(resolve(TrainConfig(filter="sobel"))).out == "runs/tiny-synthetic-box-blank"
    assert blind_twin(resolve(TrainConfig(out="runs/mine"))).out == "runs/mine-blind"
    fold = fold_of(resolve(TrainConfig(folds=5, fold=2, out="cross")), 2)
    assert (fold.out, blind_twin(fold).out) == ("cross/fold2", "cross-blind/fold2")
    assert twin_command(resolve(TrainConfig())) == "python train.py --filter blank"


def test_a_training_by_pixels_alone_has_no_twin_and_says_so() -> None:
    losses = {"focal": 0.0, "dice": 0.0, "affinity": 1.0}
    assert twin_command(resolve(TrainConfig(**losses))) == ""
    with pytest.raises(ValueError, match="a blind twin has no affinity"):
        resolve(TrainConfig(**losses, blind=True))
    assert "--bce 1.0" in twin_command(resolve(TrainConfig(**losses, bce=1.0)))


def asked(*args: str) -> TrainConfig:
    """What the front makes of flags, presets among them."""
    flags = {name: preset.flags for name, preset in PRESETS.items()}
    more = {"presets": flags, "alternatives": ranges.ALTERNATIVES}
    return cli.parse(TrainConfig, prog="t", args=list(args), **more)


@pytest.mark.parametrize(
    ("preset", "flags", "left"),
    [
        ("rsna-vit_b-decoder", ("--steps", "100"), {"steps": 100, "epochs": None}),
        ("cxr-tiny", ("--epochs=3",), {"steps": None, "epochs": 3}),
        ("cxr-tiny", ("--steps", "7", "--dice", "1"), {"steps": 7, "epochs": None, "dice": 1.0}),
        ("cxr-tiny", ("--checkpoint", "w"), {"init": "checkpoint", "checkpoint": "w"}),
        ("cxr-phantoms", ("--folds", "5"), {"test": TrainConfig.test, "folds": 5}),
        ("cxr-phantoms", ("--train_on", "sex=F"), {"test": TrainConfig.test}),
    ],
)
def test_a_flag_drops_what_a_preset_says_instead_of_it(
    preset: str, flags: tuple[str, ...], left: dict[str, Any]
) -> None:
    config = asked("--preset", preset, *flags)
    held = dict(PRESETS[preset].flags) | left
    assert {name: getattr(config, name) for name in held} == held
    resolve(config)


IDLE = (
    ({"rounds": 4}, {"prompting": "iterative"}, "--prompting iterative"),
    ({"lora_rank": 4}, {"trainable": "lora"}, "--trainable lora"),
    ({"lora_alpha": 4.0}, {"trainable": "lora"}, "--trainable lora"),
    ({"lora_on": "q"}, {"trainable": "lora"}, "--trainable lora"),
    ({"last_blocks": 2}, {"trainable": "last-k"}, "--trainable last-k"),
    ({"remat": True, "embeddings": "float32"}, {"embeddings": ""}, "--embeddings"),
    ({"scan_blocks": True, "embeddings": "float32"}, {"embeddings": ""}, "--embeddings"),
    ({"iou": 2.0, "variant": "unet"}, {"variant": "tiny"}, "another --variant"),
    ({"best_mask": "highest-iou", "variant": "unet"}, {"variant": "tiny"}, "another --variant"),
    ({"attention": "rows", "variant": "unet"}, {"variant": "tiny"}, "another --variant"),
    ({"warmup": 5, "steps": 5}, {"steps": 6}, "more --steps"),
    ({"patience": 2, "validation": 0.0}, {"validation": 0.1}, "--validation"),
)


@pytest.mark.parametrize(("choices", "remedy", "named"), IDLE)
def test_a_setting_that_would_do_nothing_is_refused_with_what_to_add(
    choices: dict[str, Any], remedy: dict[str, Any], named: str
) -> None:
    idle, plain = TrainConfig(**choices), TrainConfig()
    flag = "--" + next(iter(choices)).replace("_", "-")
    with pytest.raises(ValueError, match=f"{flag}.*: .*{named}.*, or leave {flag} out"):
        ranges.check_idle(idle, plain)
    ranges.check_idle(dataclasses.replace(idle, **remedy), plain)


def test_every_setting_that_may_do_nothing_is_tried() -> None:
    assert [next(iter(choices)) for choices, _, _ in IDLE] == list(ranges.IDLE)


def test_what_a_preset_or_a_run_holds_to_no_effect_is_not_the_users_mistake() -> None:
    preset = TrainConfig(trainable="lora", lora_rank=2, remat=True, rounds=4)
    beside = dataclasses.replace(preset, trainable="decoder", embeddings="float32")
    ranges.check_idle(beside, preset)
    left = ranges.drop_idle(beside)
    assert left == TrainConfig(trainable="decoder", embeddings="float32")
    ranges.check_idle(dataclasses.replace(beside, remat=False), preset)
    with pytest.raises(ValueError, match="--lora-rank 3: "):
        ranges.check_idle(dataclasses.replace(beside, lora_rank=3), preset)


RUN = resolve(
    TrainConfig(
        data="rsna", data_dir="r", prompting="point", filter="sobel", fusion="blend", blend=0.3
    )
)


def test_a_run_and_itself_read_back_from_json_do_not_differ() -> None:
    assert differences(json.loads(json.dumps(dataclasses.asdict(RUN))), RUN) == {}


def test_differences_name_old_and_new_value() -> None:
    old = dataclasses.asdict(RUN)
    new = dataclasses.replace(RUN, lr=0.5, seed=3)
    assert differences(old, new) == {"lr": (RUN.lr, 0.5), "seed": (0, 3)}


def test_where_a_run_is_computed_makes_no_other_run() -> None:
    elsewhere = dataclasses.replace(RUN, out="x", device="cpu", workers=2, keep=9, force=True)
    assert differences(dataclasses.asdict(RUN), elsewhere) == {}


def test_a_run_from_before_a_choice_has_its_default() -> None:
    old = dataclasses.asdict(RUN)
    del old["clip"]
    assert differences(old, RUN) == {}
    other = dataclasses.replace(RUN, clip=3.0)
    assert differences({**old, "momentum": 0.9}, other) == {
        "clip": (1.0, 3.0),
        "momentum": (0.9, None),
    }
