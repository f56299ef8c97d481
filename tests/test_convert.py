"""The converter: every tensor arrives, nothing else runs, and a fault names its cause."""

import functools
import hashlib
import json
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from convert import __main__ as front
from convert import download
from convert.official import ConversionError, detect_variant, read_state_dict, to_variables
from convert.rules import RULES, Entry, correspondence
from pp_jax import checkpoints, tree
from pp_jax.sam import VARIANTS, Sam
from pp_jax.sam.model import init
from tests import official

ROOT = Path(__file__).resolve().parents[1]

State = dict[str, torch.Tensor]


@functools.cache
def abstract() -> dict:
    return jax.eval_shape(lambda key: init(Sam(VARIANTS["tiny"]), key), jax.random.key(0))


@pytest.fixture(scope="module")
def state() -> State:
    return dict(official.randomise(official.build(VARIANTS["tiny"]), seed=3).state_dict())


@pytest.fixture(scope="module")
def source(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "sam_tiny.pth"
    torch.save(state, path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    """`python -m convert ARGS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, args), "--preprocess", "sam"])
    front.main()


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *args: object) -> str:
    """The one line on stderr of a refusal, which names the source or the target."""
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *args)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert any(str(arg) in err for arg in args)
    return err


def assert_holds(folder: Path, state: State) -> None:
    """The checkpoint holds each tensor bit for bit, in torch's layout."""
    flat = tree.flatten(checkpoints.load(folder, abstract()))
    for name, entry in correspondence(abstract()).items():
        leaf = np.asarray(flat[f"{entry.collection}/{entry.path}"])
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(entry.layout.to_torch(leaf), state[name].numpy(), name)


def test_a_converted_checkpoint_holds_every_tensor(
    source: Path,
    state: State,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "missing" / "parents" / "tiny"
    run(monkeypatch, source, out)
    assert_holds(out, state)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    manifest = json.loads((out / "MANIFEST.json").read_text())
    assert manifest.pop("files")
    assert manifest == {
        "kind": "converted",
        "variant": "tiny",
        "source": "sam_tiny.pth",
        "source_sha256": digest,
        "official": False,
        "licence": "that of the source",
        "preprocess": "sam",
    }
    printed = capsys.readouterr().out
    assert printed == f"{out}: tiny, sha256 {digest[:12]} (not a known official file)\n"


def test_a_file_is_official_by_its_sha256(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    file = download.OfficialFile("sam_tiny.pth", digest)
    monkeypatch.setattr(download, "FILES", {"tiny": file})
    facts = front.convert(source, tmp_path / "out")
    assert facts["official"]
    assert facts["licence"].startswith("Apache-2.0")


def test_the_official_files_are_known_by_whole_sha256_not_by_the_md5_in_their_names() -> None:
    assert [file.name for file in download.FILES.values()] == [
        "sam_vit_b_01ec64.pth",
        "sam_vit_l_0b3195.pth",
        "sam_vit_h_4b8939.pth",
    ]
    for file in download.FILES.values():
        assert len(bytes.fromhex(file.sha256)) == 32
        assert not file.sha256.startswith(file.name[-10:-4])


@pytest.mark.parametrize("name", [pattern for pattern, _ in RULES])
def test_every_layout_goes_to_flax_and_back_bit_for_bit(name: str) -> None:
    rng = np.random.default_rng(0)
    path = {f"{e.collection}/{e.path}": e for e in correspondence(abstract()).values()}
    rule_of = tree.match([(pattern, pattern) for pattern, _ in RULES], list(path))
    entries: list[Entry] = [path[p] for p, pattern in rule_of.items() if pattern == name]
    assert entries
    for entry in entries:
        x = rng.normal(size=entry.torch_shape).astype(np.float32)
        there = entry.layout.to_flax(x, entry.shape)
        assert there.shape == entry.shape
        np.testing.assert_array_equal(entry.layout.to_torch(there), x)
        y = rng.normal(size=entry.shape).astype(np.float32)
        np.testing.assert_array_equal(entry.layout.to_flax(entry.layout.to_torch(y), y.shape), y)


def test_heads_lie_where_torch_splits_them(state: State) -> None:
    arrays = {name: x.numpy() for name, x in state.items()}
    attn = to_variables(arrays, variant="tiny", source="x")["params"]["image_encoder"]["blocks_01"][
        "attn"
    ]
    (D, _, K, d), prefix = attn["qkv"]["kernel"].shape, "image_encoder.blocks.1.attn"
    weight, bias = arrays[f"{prefix}.qkv.weight"], arrays[f"{prefix}.qkv.bias"]
    proj = arrays[f"{prefix}.proj.weight"]
    for role, head, channel, feature in [(0, 0, 1, 2), (1, 4, 30, 100), (2, K - 1, d - 1, D - 1)]:
        # `qkv.reshape(B, L, 3, K, -1)` and `x.view(..., K, -1)` of the official Attention.
        row = (role * K + head) * d + channel
        assert attn["qkv"]["kernel"][feature, role, head, channel] == weight[row, feature]
        assert attn["qkv"]["bias"][role, head, channel] == bias[row]
        assert attn["proj"]["kernel"][head, channel, feature] == proj[feature, head * d + channel]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variant_is_known_from_shapes_alone(variant: str) -> None:
    with torch.device("meta"):
        shapes = {
            name: tuple(x.shape)
            for name, x in official.build(VARIANTS[variant]).state_dict().items()
        }
    assert detect_variant(shapes, source="x") == variant


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({"backbone.weight": (3, 3)}, "this is no SAM; its names begin with .*backbone.weight"),
        ({"image_encoder.pos_embed": (64, 64, 768)}, "this is no SAM"),
        (
            {
                "image_encoder.pos_embed": (1, 32, 32, 768),
                "image_encoder.blocks.0.norm1.bias": (1,),
            },
            "width 768, depth 1 and grid 32 .*tiny.*vit_h",
        ),
    ],
)
def test_other_models_are_no_variant(shapes: dict, told: str) -> None:
    with pytest.raises(ConversionError, match=f"a.pth: .*{told}"):
        detect_variant(shapes, source="a.pth")


def test_missing_unused_and_misshaped_tensors_are_all_named_in_one_error(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    changed = dict(state)
    gone = [name for name in state if name.startswith("mask_decoder.transformer")]
    for name in gone:
        del changed[name]
    added = [f"adapter.{i}.weight" for i in range(20)]
    changed |= {name: torch.zeros(2) for name in added}
    shaped = ["image_encoder.patch_embed.proj.weight", "prompt_encoder.no_mask_embed.weight"]
    changed[shaped[0]] = torch.zeros(192, 1, 16, 16)
    changed[shaped[1]] = state[shaped[1]].T
    torch.save(changed, tmp_path / "other.pth")
    told = refused(monkeypatch, capsys, tmp_path / "other.pth", tmp_path / "out")
    for name in gone + added + shaped:
        assert name in told
    assert f"{len(gone)} missing" in told
    assert "20 unused" in told
    assert "(192, 1, 16, 16) instead of (192, 3, 16, 16)" in told
    assert "(256, 1) instead of (1, 256)" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_the_tensors_name(
    state: State, value: float
) -> None:
    name = "mask_decoder.iou_token.weight"
    arrays = {n: x.numpy() for n, x in state.items()}
    arrays[name] = arrays[name].copy()
    arrays[name][0, 100] = value
    with pytest.raises(ConversionError, match=f"{name} holds values that are not finite"):
        to_variables(arrays, variant="tiny", source="x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_precisions_become_float32(state: State, tmp_path: Path, dtype: torch.dtype) -> None:
    # Parameters, as `dict(model.named_parameters())` holds them, instead of plain tensors.
    cast = {name: torch.nn.Parameter(x.to(dtype)) for name, x in state.items()}
    torch.save(cast, tmp_path / "cast.pth")
    front.convert(tmp_path / "cast.pth", tmp_path / "out", preprocess="sam")
    assert_holds(
        tmp_path / "out", {name: x.to(dtype).to(torch.float32) for name, x in state.items()}
    )


class Payload:
    """On unpickling, creates a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_the_pickle_is_refused_and_does_not_run(
    state: State,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    zipped: bool,
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    torch.save({**state, "extra": Payload(marker)}, path, _use_new_zipfile_serialization=zipped)
    told = refused(monkeypatch, capsys, path, tmp_path / "out")
    assert "asks for code to be run" in told
    assert "open" in told
    assert "weights_only" not in told  # Torch's own text advises to switch the protection off.
    assert not marker.exists()
    torch.load(path, weights_only=False)["extra"].close()
    assert marker.exists()  # The payload works where nothing holds it back.


def truncated(path: Path, source: Path) -> None:
    path.write_bytes(source.read_bytes()[: source.stat().st_size // 2])


def flipped_header(path: Path, source: Path) -> None:
    content = bytearray(source.read_bytes())
    content[100:200] = bytes(100)
    path.write_bytes(content)


NO_CHECKPOINTS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "truncated": (truncated, "not a torch checkpoint, or a damaged"),
    "damaged": (flipped_header, "not a torch checkpoint, or a damaged"),
    "empty": (lambda path, _: path.touch(), "not a torch checkpoint"),
    "web page": (lambda path, _: path.write_text("<html>404"), "not a torch checkpoint"),
    "plain pickle": (lambda path, _: path.write_bytes(pickle.dumps([1])), "not a torch checkpoint"),
    "folder": (lambda path, _: path.mkdir(), "no checkpoint here"),
    "missing": (lambda path, _: None, "no such file; the official weights"),
    "list": (lambda path, _: torch.save([torch.ones(2)], path), "found a list"),
    "empty dict": (lambda path, _: torch.save({}, path), "found nothing in it"),
    "nested": (
        lambda path, _: torch.save({"model": {"a": torch.ones(2)}, "epoch": 3}, path),
        "found 'model', 'epoch'; save the inner dict",
    ),
    "integers": (lambda path, _: torch.save({"a": torch.arange(3)}, path), "found 'a'"),
    "unnamed": (lambda path, _: torch.save({0: torch.ones(3)}, path), "found 0"),
    "other model": (lambda path, _: torch.save({"a": torch.ones(3)}, path), "this is no SAM"),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused_in_one_line(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    kind: str,
) -> None:
    make, told = NO_CHECKPOINTS[kind]
    make(tmp_path / "x.pth", source)
    assert told in refused(monkeypatch, capsys, tmp_path / "x.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_ordered_dict_is_a_dict_of_tensors(tmp_path: Path) -> None:
    torch.save(OrderedDict(b=torch.ones(2), a=torch.zeros(1)), tmp_path / "x.pth")
    assert list(read_state_dict(tmp_path / "x.pth")) == ["b", "a"]


def test_what_stands_at_the_target_is_replaced_only_by_force(
    source: Path,
    state: State,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "tiny"
    checkpoints.save(out, {"old": np.ones(2, np.float32)}, facts={})
    manifest = (out / "MANIFEST.json").read_text()
    assert "already there" in refused(monkeypatch, capsys, source, out)
    assert (out / "MANIFEST.json").read_text() == manifest
    run(monkeypatch, source, out, "--force")
    assert_holds(out, state)


def test_force_replaces_nothing_but_a_checkpoint(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("text")
    for out in (thesis, thesis / "chapter.tex"):
        assert "this is none" in refused(monkeypatch, capsys, source, out, "--force")
    assert (thesis / "chapter.tex").read_text() == "text"


@pytest.mark.parametrize("force", [False, True])
def test_an_interrupted_conversion_leaves_nothing_or_the_old_one(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    force: bool,
) -> None:
    out, like = tmp_path / "tiny", {"old": jax.ShapeDtypeStruct((2,), np.float32)}
    if force:
        checkpoints.save(out, {"old": np.ones(2, np.float32)}, facts={})

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_json", interrupted)
        with pytest.raises(SystemExit):
            run(patch, source, out, *(["--force"] if force else []))
    assert capsys.readouterr().err == "interrupted\n"
    if force:
        np.testing.assert_array_equal(checkpoints.load(out, like)["old"], [1, 1])
    else:
        assert not out.exists()


# A stand-in for an environment without torch, as `make train` leaves it.
NO_TORCH = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Absent())
runpy.run_module("convert", run_name="__main__", alter_sys=True)
"""


def without_torch(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", NO_TORCH, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_help_needs_no_torch() -> None:
    done = without_torch("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "sam_vit_b_01ec64.pth" in done.stdout


def test_without_torch_one_line_says_how_to_get_it(source: Path, tmp_path: Path) -> None:
    done = without_torch(source, tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == "error: the converter needs torch; install it with `make convert-tools`\n"
