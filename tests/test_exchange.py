"""Weights go out to every tool that reads SAM, and come in from the others' formats."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert import __main__ as front
from convert import download, hugging_face
from convert.ladder import climb
from convert.official import read_state_dict, to_state_dict, to_variables
from convert.reference import with_state
from pp_jax import checkpoints, tree
from pp_jax.sam import VARIANTS, Sam
from pp_jax.sam.model import init
from tests import official
from tests.predict_world import drawn


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return dict(official.randomise(official.build(VARIANTS["tiny"]), seed=4).state_dict())


@pytest.fixture(scope="module")
def converted(state: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    torch.save(state, folder / "mine.pth")
    front.convert(folder / "mine.pth", folder / "tiny", preprocess="sam")
    return folder / "tiny"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back_is_bit_exact_and_the_official_package_loads_it_strictly(
    converted: Path, state: dict, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"weights{suffix}"
    front.export(converted, out)
    back = read_state_dict(out)
    official.build(VARIANTS["tiny"]).load_state_dict(back, strict=True)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name


def test_the_official_package_gives_our_answers_with_exported_weights() -> None:
    """Weights that were never torch's, random so that every tensor matters."""
    config, rng = VARIANTS["tiny"], np.random.default_rng(2)
    shapes = jax.eval_shape(lambda key: init(Sam(config), key), jax.random.key(0))
    leaves = tree.flatten(shapes).items()
    variables = tree.unflatten({path: drawn(path, x.shape, rng) for path, x in leaves})
    model = with_state(config, to_state_dict(variables))
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    assert all(rung.holds for rung in climb(config, variables, model, image))


def test_hugging_face_names_are_all_known_and_go_to_the_right_tensors() -> None:
    """transformers' own model computes the same from the renamed weights."""
    # Here: it imports torchvision, which `tests.official` has made importable.
    from transformers import SamConfig, SamModel

    vision = {
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "image_size": 256,
        "window_size": 7,
        "global_attn_indexes": [2, 5],
        "mlp_dim": 768,
    }
    prompt = {"image_size": 256, "image_embedding_size": 16}
    # The official decoder's epsilon; transformers' default is 1e-6.
    settings = SamConfig(
        vision_config=vision,
        prompt_encoder_config=prompt,
        mask_decoder_config={"layer_norm_eps": 1e-5},
    )
    theirs = official.randomise(SamModel(settings).eval(), seed=5)
    theirs.prompt_encoder.shared_embedding = theirs.shared_image_embedding
    state = theirs.state_dict()
    assert hugging_face.is_hugging_face(state)
    arrays = {k: v.numpy() for k, v in hugging_face.to_official(state).items()}
    variables = to_variables(arrays, variant="tiny", source="transformers")
    pixels = np.random.default_rng(1).normal(size=(1, 256, 256, 3)).astype(np.float32)
    with torch.no_grad():
        want = theirs.get_image_embeddings(torch.from_numpy(np.moveaxis(pixels, -1, 1).copy()))
    got = jax.jit(lambda v, x: Sam(VARIANTS["tiny"]).apply(v, x, method="encode"))
    got = np.moveaxis(np.asarray(got(variables, pixels)), -1, 1)
    assert np.abs(got - want.numpy()).max() / want.numpy().std() < 1e-4
    ours = with_state(VARIANTS["tiny"], arrays)
    embedding = torch.from_numpy(got.copy())
    points = torch.tensor([[[[80.0, 120.0], [33.0, 200.0]]]])
    labels = torch.tensor([[[1, 0]]])
    boxes = torch.tensor([[[20.0, 30.0, 200.0, 180.0]]])
    with torch.no_grad():
        answer = theirs(
            image_embeddings=embedding,
            input_points=points,
            input_labels=labels,
            input_boxes=boxes,
            multimask_output=True,
        )
        sparse, dense = ours.prompt_encoder((points[0], labels[0]), boxes[0], None)
        logits, iou = ours.mask_decoder(
            embedding, ours.prompt_encoder.get_dense_pe(), sparse, dense, True
        )
    np.testing.assert_allclose(iou.numpy(), answer.iou_scores[0].numpy(), atol=1e-4)
    spread = float(logits.std())
    np.testing.assert_allclose(logits, answer.pred_masks[0], atol=1e-3 * spread)


def test_a_hugging_face_safetensors_file_is_read(state: dict, tmp_path: Path) -> None:
    theirs = {"vision_encoder.pos_embed": state["image_encoder.pos_embed"].clone()}
    save_file(theirs, tmp_path / "model.safetensors")
    assert list(read_state_dict(tmp_path / "model.safetensors")) == ["image_encoder.pos_embed"]


def test_a_damaged_safetensors_file_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{broken")
    with pytest.raises(ValueError, match=r"model\.safetensors: not a torch checkpoint"):
        read_state_dict(path)


@pytest.mark.parametrize("told", ["sam", "medsam"])
def test_the_manifest_says_how_images_are_prepared(state: dict, tmp_path: Path, told: str) -> None:
    path = tmp_path / "medsam_like.pth"
    torch.save(state, path)
    with pytest.raises(ValueError, match="--preprocess"):
        front.convert(path, tmp_path / "out")
    front.convert(path, tmp_path / "out", preprocess=told)
    assert checkpoints.read_manifest(tmp_path / "out")["preprocess"] == told


class Server(http.server.BaseHTTPRequestHandler):
    """A file server that knows ranges, and drops the first connection half way."""

    content = bytes(range(256)) * 4000
    asked: list[str | None] = []  # noqa: RUF012
    drop = True

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        type(self).asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(self.content):
            self.send_error(416)
            return
        rest = self.content[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        half, type(self).drop = (len(rest) // 2 if type(self).drop else len(rest)), False
        self.wfile.write(rest[:half])

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    Server.asked, Server.drop = [], True
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_goes_on_where_it_broke_off_and_is_verified(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(Server.content).hexdigest()
    file = download.OfficialFile("sam_vit_b_01ec64.pth", digest)
    monkeypatch.setattr(download, "FILES", {"vit_b": file})
    with pytest.raises(ValueError, match=r"the same command continues"):
        download.download("vit_b", tmp_path, url=url)
    half = (tmp_path / "sam_vit_b_01ec64.pth.partial").stat().st_size
    assert 0 < half < len(Server.content)
    path = download.download("vit_b", tmp_path, url=url)
    assert path.read_bytes() == Server.content
    assert Server.asked == [None, f"bytes={half}-"]
    download.download("vit_b", tmp_path, url=url)  # There already: nothing is asked again.
    assert len(Server.asked) == 2


def test_another_file_under_the_official_name_is_refused_and_not_kept(
    url: str, tmp_path: Path
) -> None:
    Server.drop = False
    with pytest.raises(ValueError, match=r"not ec2df6273261"):
        download.download("vit_b", tmp_path, url=url)
    assert not list(tmp_path.iterdir())


def test_no_answer_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"by hand"):
        download.download("vit_b", tmp_path, url="http://127.0.0.1:1/")
