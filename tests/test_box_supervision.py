import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from skimage import color

from pp_jax.finetune.box_supervision import box_projection, pairwise_affinity, rgb_to_lab
from pp_jax.finetune.step import wanted_of
from pp_jax.preprocess.geometry import low_res_target
from pp_jax.types import Batch

SIDE = 12
BOXES = np.array([[1.5, 2, 6, 9.25], [3, 3, 4, 4], [0, 0, 7, 10.5]], np.float32)
projection, affinity = jax.jit(box_projection), jax.jit(pairwise_affinity)


def cover() -> np.ndarray:
    """An image of 10.5 x 7 cells: of one row it covers a half."""
    weight = np.zeros((SIDE, SIDE), np.float32)
    weight[:10, :7], weight[10, :7] = 1, 0.5
    return weight


def patches(seed: int = 0) -> np.ndarray:
    """An image of patches of one colour each, with little noise on them."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (SIDE // 4, SIDE // 4, 3))
    image = np.kron(coarse, np.ones((4, 4, 1))) + rng.normal(scale=1.5, size=(SIDE, SIDE, 3))
    return np.clip(image, 0, 255).astype(np.float32)


def share(low: float, high: float, length: float) -> np.ndarray:
    """Part of each cell's covered length between two places, where an image covers `length`."""
    found = np.zeros(SIDE)
    for cell in range(SIDE):
        end = min(cell + 1, length)
        if end > cell:
            found[cell] = max(min(high, end) - max(low, cell), 0) / (end - cell)
    return found


def torch_projection(logits, box, weight):
    """AdelaiDet's `compute_project_term` of one mask, in which cells weigh what is covered."""
    p = torch.sigmoid(logits) * (weight > 0)
    rows, columns = weight.amax(1), weight.amax(0)
    height, width = float(rows.sum()), float(columns.sum())

    def dice(x, target, cells):
        union = (x**2 * cells).sum() + (target**2 * cells).sum() + 1e-5
        return 1 - 2 * (x * target * cells).sum() / union

    x0, y0, x1, y1 = map(float, box)
    across = dice(p.amax(0), torch.tensor(share(x0, x1, width)), columns)
    return across + dice(p.amax(1), torch.tensor(share(y0, y1, height)), rows)


def torch_affinity(logits, image, box, weight):
    """The mean over cells in the box and their neighbours, one pair after the other."""
    p = torch.sigmoid(logits)
    lab = color.rgb2lab(np.asarray(image, np.float64) / 255)
    x0, y0, x1, y1 = map(float, box)
    total, count = torch.zeros((), dtype=p.dtype), 0
    steps = [(dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2) if dy or dx]
    height, width = p.shape
    for y, x in np.ndindex(height, width):
        if not (x < x1 and x + 1 > x0 and y < y1 and y + 1 > y0):
            continue
        for there in ((y + dy, x + dx) for dy, dx in steps):
            within = 0 <= there[0] < height and 0 <= there[1] < width
            if not within or not weight[y, x] or not weight[there]:
                continue
            likeness = np.exp(-np.linalg.norm(lab[y, x] - lab[there]) / 2)
            assert abs(likeness - 0.3) > 1e-4  # Rounding does not decide.
            if likeness >= 0.3:
                same = p[y, x] * p[there] + (1 - p[y, x]) * (1 - p[there])
                total, count = total - torch.log(same), count + 1
    return total / max(count, 1)


def compared(ours, theirs) -> None:
    """Equal losses of three masks and equal gradients, in float32 and torch's float64."""
    logits = np.random.default_rng(1).normal(scale=3, size=(3, SIDE, SIDE)).astype(np.float32)
    exact = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    want = torch.stack([theirs(mask, box) for mask, box in zip(exact, BOXES, strict=True)])
    want.sum().backward()
    got, pull = jax.vjp(ours, logits)
    np.testing.assert_allclose(got, want.detach(), rtol=1e-5)
    slope = exact.grad.numpy()
    # Float32 rounds some 1e-7 of the largest.
    np.testing.assert_allclose(
        pull(jnp.ones(3))[0], slope, rtol=1e-4, atol=1e-6 * np.abs(slope).max()
    )


def test_the_projection_loss_and_its_gradient_are_boxinsts():
    weight = torch.tensor(cover()).double()
    compared(
        lambda x: projection(x, BOXES, cover()),
        lambda mask, box: torch_projection(mask, box, weight),
    )


def test_the_affinity_loss_and_its_gradient_are_boxinsts():
    image = patches()
    compared(
        lambda x: affinity(x, image, BOXES, cover()),
        lambda mask, box: torch_affinity(mask, image, box, cover()),
    )


def test_the_projection_of_literal_masks():
    one, box = np.ones((4, 4), np.float32), np.array([1.0, 1, 3, 3], np.float32)
    inside = np.pad(np.ones((2, 2), np.float32), 1)
    sure = 40 * (2 * inside - 1)
    # Filled; half sure: 1 - 2 * 1 / (4 / 4 + 2) on each axis; all but the box: 1 - 2 * 2 / (4 + 2).
    for logits, want in ((sure, 0), (0 * sure, 2 / 3), (-sure, 2 / 3)):
        got = float(projection(logits, box, one))
        assert got == pytest.approx(want, abs=1e-5)
    diagonal = 40 * (2 * np.diag([0.0, 1, 1, 0]) - 1).astype(np.float32)
    assert float(projection(diagonal, box, one)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("height", "width"), [(40, 48), (48, 30), (46, 48)])
def test_a_filled_box_has_no_projection_loss_wherever_cells_and_image_end(height, width):
    rng = np.random.default_rng(height)
    weight = np.outer(*(np.clip(size / 4 - np.arange(SIDE), 0, 1) for size in (height, width)))
    for _ in range(5):
        x0, y0 = rng.integers(0, width - 16), rng.integers(0, height - 16)
        x1, y1 = rng.integers(x0 + 8, width + 1), rng.integers(y0 + 8, height + 1)
        mask = np.zeros((height, width), bool)
        mask[y0:y1, x0:x1] = True
        target = np.clip(low_res_target(mask, side=4 * SIDE), 1e-7, 1 - 1e-7)
        box = np.array([x0, y0, x1, y1], np.float32) / 4
        logits = np.log(target / (1 - target))
        assert abs(float(projection(logits, box, weight.astype(np.float32)))) < 1e-4


def test_the_affinity_of_literal_masks():
    one, image = np.ones((3, 3), np.float32), np.full((3, 3, 3), 90, np.float32)
    whole, left = np.array([0.0, 0, 3, 3], np.float32), np.array([0.0, 0, 1, 3], np.float32)
    sure = np.full((3, 3), -50, np.float32)
    sure[:, 0] = 50
    differ = 50 - np.log(2)  # Of one that is surely inside and one that is not.
    assert float(affinity(0 * sure, image, whole, one)) == pytest.approx(np.log(2))
    # Two cells away are 3 pairs along rows, 3 along columns and 2 diagonals.
    assert float(affinity(sure, image, whole, one)) == pytest.approx(5 / 8 * differ)
    # Pairs of which the box holds one end count once, the one that lies in it twice.
    assert float(affinity(sure, image, left, one)) == pytest.approx(5 / 7 * differ)
    image[:, 2] = 100, 90, 90
    assert float(affinity(sure, image, whole, one)) == pytest.approx(0, abs=1e-6)
    assert float(affinity(sure, image, left + 5, one)) == 0  # No pair at all.


def test_colours_are_scikit_images():
    levels = np.array([0, 1, 5, 10, 11, 90, 254, 255], np.float32)
    image = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 8, 3)
    want = color.rgb2lab(image.astype(np.float64) / 255)
    np.testing.assert_allclose(jax.jit(rgb_to_lab)(image), want, atol=2e-3)  # Of a range of 200.
    slope = jax.grad(lambda x: rgb_to_lab(x).sum())(jnp.zeros((1, 3)))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("level", [0, 100])
def test_saturated_masks_on_flat_images_have_a_finite_loss_and_gradient(level):
    signs = np.random.default_rng(2).choice([-1.0, 1.0], (3, SIDE, SIDE))
    image, weight = np.zeros((SIDE, SIDE, 3), np.float32), cover()

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(affinity(x, image, BOXES, weight) + projection(x, BOXES, weight))

    value, slope = jax.value_and_grad(loss)((level * signs).astype(np.float32))
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    assert slope.any()  # A wrong cell still learns, however sure of itself.


def test_what_lies_beyond_the_image_does_not_count():
    rng = np.random.default_rng(3)
    logits, image, weight = rng.normal(size=(SIDE, SIDE)), patches(), cover()
    inside = weight > 0
    for change in (rng.normal(scale=9, size=(SIDE, SIDE)), np.full((SIDE, SIDE), 1e4)):
        other = np.where(inside, logits, change).astype(np.float32)
        painted = np.where(inside[..., None], image, 255).astype(np.float32)
        for got, want in (
            (projection(other, BOXES[0], weight), projection(logits, BOXES[0], weight)),
            (affinity(other, painted, BOXES[0], weight), affinity(logits, image, BOXES[0], weight)),
        ):
            assert float(got) == float(want)


def test_a_cell_has_the_mean_colour_of_its_pixels_in_the_image():
    rng = np.random.default_rng(4)
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[0, :10, :7] = rng.integers(0, 256, (10, 7, 3))
    batch = Batch(
        image=image,
        size=np.array([[10, 7]], np.int32),
        targets=np.zeros((1, 1, 4, 4), np.float32),
        boxes=np.array([[[2, 4, 6, 10]]], np.float32),
        valid=np.ones((1, 1), bool),
        index=np.zeros(1, np.int32),
    )
    got = wanted_of(batch, side=16, image=True)
    for row, column in np.ndindex(4, 4):
        pixels = image[0, 4 * row : min(4 * row + 4, 10), 4 * column : min(4 * column + 4, 7)]
        want = pixels.mean((0, 1)) if pixels.size else 0
        np.testing.assert_allclose(got.image[0, row, column], want, rtol=1e-6)
    assert got.boxes.tolist() == [[[0.5, 1, 1.5, 2.5]]]
    assert wanted_of(batch, side=16).image is None
    embedded = batch._replace(image=image[:, :0, :0], features=np.zeros((1, 1, 1, 8), np.float32))
    assert wanted_of(embedded, side=16, image=True).image is None
