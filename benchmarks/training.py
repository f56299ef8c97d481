"""One training step (forward, backward, optimiser) beside the same step in torch, in turn.

    python -m benchmarks.training --variant vit_b --policy decoder
    python -m benchmarks.training --variant vit_h --policy full --batch 8 --dtype bfloat16 \
        --device cuda --remat

One box on each image; SAM's loss; AdamW; weights in float32 and random. In torch: the official
model, its encoder without gradients where it is frozen, bfloat16 by autocast; once with the encoder
of transformers in its place. Prints Markdown.
`benchmarks/peers.py` says how the peers are installed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from benchmarks import flops, turns
from benchmarks.peers import (
    PRODUCT_PROGRAMS,
    PRODUCTS,
    Place,
    blocking,
    official_sam,
    start_torch,
    transformers_sam,
)
from pp_jax.sam import VARIANTS, sized

if TYPE_CHECKING:
    import torch

PACKAGES = ("jax", "flax", "optax", "torch", "segment-anything", "transformers")
_RATE, _DECAY = 1e-4, 1e-4
_FOCAL = 20.0  # Dice and the error of the predicted IoU weigh 1.


class Example(NamedTuple):
    """What a step learns from."""

    images: UInt8[np.ndarray, "B S S 3"]
    targets: Float[np.ndarray, "B 1 h w"]
    boxes: Float[np.ndarray, "B 1 4"]


def main() -> None:
    """Measure, and print the table."""
    settings = turns.read(Benchmark, make_programs)
    turns.print_machine(settings, PACKAGES)
    rows = turns.take_turns("benchmarks.training", make_programs(settings), settings)
    config, products = sized(settings.variant, settings.image_size), PRODUCTS[settings.device]
    print()
    print(
        turns.table(
            rows,
            count=settings.batch,
            flops=flops.training_flops(config, settings.policy, settings.batch),
            product_flops=flops.product_flops(config, batch=settings.batch, products=products),
        )
    )


def draw(place: Place) -> Example:
    """Noise, with one round object in each image."""
    rng = np.random.default_rng(0)
    side, fine = place.config.image_size, place.config.mask_side
    images = rng.integers(0, 256, (place.batch, side, side, 3), np.uint8)
    y, x = np.mgrid[:fine, :fine]
    disc = ((x - 0.4 * fine) ** 2 + (y - 0.5 * fine) ** 2 < (0.2 * fine) ** 2).astype(np.float32)
    targets = np.broadcast_to(disc, (place.batch, 1, fine, fine)).copy()
    box = side * np.array([0.2, 0.3, 0.6, 0.7], np.float32)
    return Example(images, targets, np.broadcast_to(box, (place.batch, 1, 4)).copy())


def ours(place: Place, *, policy: str, remat: bool = False, attention: str = "auto") -> turns.Run:
    """Our step, as the training loop compiles it."""
    import jax
    import jax.numpy as jnp
    import optax

    from pp_jax import prompts, sharding, tree
    from pp_jax.config import Look
    from pp_jax.finetune.step import State, make_step, make_terms
    from pp_jax.finetune.trainable import POLICIES
    from pp_jax.memory import keep_freed_memory
    from pp_jax.preprocess.stage import make_stage
    from pp_jax.sam import Sam
    from pp_jax.sam.model import init
    from pp_jax.types import Batch

    keep_freed_memory()
    side = place.config.image_size
    model = Sam(
        place.config,
        dtype=jnp.dtype(place.dtype),
        remat=remat,
        attention=attention,
        lora=flops.PAIRS if policy == "lora" else None,
    )
    mesh = sharding.make_mesh(jax.devices()[:1])
    # Where the step's result will be, or its second call would be compiled anew.
    variables = jax.device_put(init(model, jax.random.key(0)), sharding.replicated(mesh))
    trainable, frozen = tree.partition(variables, POLICIES[policy])
    rule = optax.adamw(_RATE, weight_decay=_DECAY)
    terms = make_terms(
        model,
        make_stage(Look(), side=side),
        prompting="box",
        purpose=prompts.Purpose.TRAIN_PROMPT,
        weights={"focal": _FOCAL, "dice": 1.0, "iou": 1.0},
    )
    step = jax.jit(make_step(terms, rule), donate_argnums=0)
    state = State(jnp.int32(0), trainable, rule.init(trainable))
    state = jax.device_put(state, sharding.replicated(mesh))
    images, targets, boxes = draw(place)
    rows = np.arange(place.batch, dtype=np.int32)
    sizes = np.full((place.batch, 2), side, np.int32)
    batch = Batch(images, sizes, targets, boxes, np.ones((place.batch, 1), bool), rows)
    placed = sharding.place_batch((batch, rows), mesh)
    key = jax.random.key(0)

    def run() -> None:
        nonlocal state
        state, means = step(state, frozen, *placed, key)
        jax.block_until_ready((state, means))

    return run


def official(
    place: Place,
    *,
    policy: str,
    sdpa: bool = False,
    compiled: bool = False,
    transformers: bool = False,
) -> turns.Run:
    """The same step with the official model, with its own encoder or that of transformers."""
    import torch

    device = start_torch(place)
    model = official_sam(place.config, sdpa=sdpa)
    if transformers:
        other = transformers_sam(place.config, attention="sdpa", dtype="float32")
        model.image_encoder = other.vision_encoder
        model.image_encoder.img_size = place.config.image_size  # `preprocess` reads it.
    (model if policy == "full" else model.mask_decoder).requires_grad_(True)
    if policy == "lora":
        add_pairs(model.image_encoder)
    model = model.to(device)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=_RATE, weight_decay=_DECAY, fused=True)
    images, targets, boxes = (torch.from_numpy(x).to(device) for x in draw(place))
    bfloat16 = place.dtype == "bfloat16"

    def forward() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            with torch.set_grad_enabled(policy != "decoder"):
                embedding = model.image_encoder(model.preprocess(images.permute(0, 3, 1, 2)))
                embedding = getattr(embedding, "last_hidden_state", embedding)
                sparse, dense = model.prompt_encoder(points=None, boxes=boxes[:, 0], masks=None)
            logits, iou = decode(model, embedding, sparse, dense)
        return loss(logits.float(), iou.float(), targets)

    if compiled:
        forward = torch.compile(forward)

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()

    return blocking(step, device)


def add_pairs(encoder: "torch.nn.Module") -> None:
    """Side paths of queries and values, trained, in each block of the official encoder or that of
    transformers.
    """
    import torch

    class WithPairs(torch.nn.Module):
        """`qkv` and the pairs of `flops.PAIRS`, as peft computes them."""

        def __init__(self, qkv: torch.nn.Linear):
            super().__init__()
            self.qkv, width, rank = qkv, qkv.in_features, flops.PAIRS.rank
            a, b = torch.empty(2, rank, width).uniform_(-1, 1), torch.zeros(2, width, rank)
            self.a, self.b = (torch.nn.Parameter(x) for x in (a * width**-0.5, b))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, v = (
                torch.nn.functional.linear(torch.nn.functional.linear(x, a), b) * flops.PAIRS.scale
                for a, b in zip(self.a, self.b, strict=True)
            )
            return self.qkv(x) + torch.cat([q, torch.zeros_like(q), v], -1)

    for block in getattr(encoder, "blocks", None) or encoder.layers:
        block.attn.qkv = WithPairs(block.attn.qkv)


def decode(
    model: "torch.nn.Module",
    embedding: "torch.Tensor",
    sparse: "torch.Tensor",
    dense: "torch.Tensor",
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Three masks and their IoU for one prompt on each image of a batch.

    The official decoder repeats the embedding of one image for all prompts. Here each prompt has an
    image of its own, which goes in with the dense prompt: the decoder adds the two.
    """
    import torch

    return model.mask_decoder(
        image_embeddings=torch.zeros_like(embedding[:1]),
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense + embedding,
        multimask_output=True,
    )


def loss(logits: "torch.Tensor", iou: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """`pp_jax.finetune.losses.sam_terms` of one object in each image that fills its canvas.

    Args:
      logits: B M h w.
      iou: B M.
      targets: B 1 h w.
    """
    import torch
    from torch.nn import functional

    targets = targets.expand_as(logits)
    probability = logits.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = targets * (1 - probability) + (1 - targets) * probability
    balance = 0.25 * targets + 0.75 * (1 - targets)
    focal = (balance * wrong**2 * entropy).mean((-2, -1))
    overlap, total = (probability * targets).sum((-2, -1)), (probability + targets).sum((-2, -1))
    masks = _FOCAL * focal + 1 - (2 * overlap + 1) / (total + 1)
    with torch.no_grad():
        inside, wanted = logits > 0, targets > 0.5
        either = (inside | wanted).sum((-2, -1))
        both = (inside & wanted).sum((-2, -1))
        truth = torch.where(either > 0, both / either.clamp(min=1), 1.0)
    return (masks.amin(-1) + ((iou - truth) ** 2).mean(-1)).mean()


OFFICIAL: Mapping[str, Callable[..., turns.Run]] = MappingProxyType(
    {
        "official": official,
        "official-sdpa": partial(official, sdpa=True),
        "official-compiled": partial(official, compiled=True),
        "official-sdpa-compiled": partial(official, sdpa=True, compiled=True),
        "transformers-sdpa": partial(official, transformers=True),
    }
)


@dataclass(frozen=True, kw_only=True)
class Benchmark(turns.Settings):
    """Time training steps side by side."""

    variant: Literal[tuple(VARIANTS)] = "vit_b"
    """Of the model."""
    policy: Literal[tuple(flops.PASSES)] = "decoder"
    """What is trained."""
    image_size: int | None = None
    """Side of the images; None: the variant's own."""
    batch: int = 1
    """Images in a batch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the compute."""
    remat: bool = False
    """Compute each block of our encoder again in the backward pass: less memory, more time."""
    programs: tuple[Literal[("ours", *OFFICIAL)], ...] = ("ours", *OFFICIAL)
    """What to run."""
    attention: tuple[str, ...] = ()
    """Attention implementations of ours to run as well, by name; `ours` chooses for itself."""


def make_programs(settings: Benchmark) -> Mapping[str, turns.Prepare]:
    """What takes turns: the programs asked for, and the products."""
    config = sized(settings.variant, settings.image_size)
    place = Place(config, settings.batch, settings.dtype, settings.device)
    own = partial(ours, remat=settings.remat)
    builds = {"ours": own} | OFFICIAL
    chosen = {name: builds[name] for name in settings.programs}
    chosen |= {f"ours, {name}": partial(own, attention=name) for name in settings.attention}
    steps = {name: partial(build, place, policy=settings.policy) for name, build in chosen.items()}
    return steps | {name: partial(build, place) for name, build in PRODUCT_PROGRAMS.items()}


if __name__ == "__main__":
    main()
