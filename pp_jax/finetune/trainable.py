"""What is trained: ordered rules over the paths of all variables."""

from collections.abc import Mapping
from types import MappingProxyType

from pp_jax.tree import Rules

_LAST = "{last}"  # Stands in a pattern for the numbers of the last blocks.


def policy(name: str, *, depth: int, last_blocks: int) -> Rules[bool]:
    """The rules of a row of `POLICIES` for an image encoder of `depth` blocks.

    Raises:
      ValueError: More last blocks than there are.
    """
    rules = POLICIES[name]
    if not any(_LAST in pattern for pattern, _ in rules):
        return rules
    if not 1 <= last_blocks <= depth:
        raise ValueError(
            f"--last-blocks {last_blocks}: the image encoder has {depth} blocks; choose 1 to "
            f"{depth}, or --trainable full"
        )
    numbers = "|".join(f"{i:02d}" for i in range(depth - last_blocks, depth))
    return tuple((pattern.replace(_LAST, f"({numbers})"), chosen) for pattern, chosen in rules)


# A frozen leaf gets no gradient and no optimizer state. The positional Gaussian (`constants`) is
# never trained. A learned fusion's parameters are variables too, and always trained: `rules_of`
# puts them first.
POLICIES: Mapping[str, Rules[bool]] = MappingProxyType(
    {
        "decoder": (("params/mask_decoder/.*", True), (".*", False)),
        "decoder+prompt": (
            ("params/mask_decoder/.*", True),
            ("params/prompt_encoder/.*", True),
            (".*", False),
        ),
        # Low-rank pairs beside the frozen encoder (arXiv 2106.09685).
        "lora": (("lora/.*", True), ("params/mask_decoder/.*", True), (".*", False)),
        "last-k": (
            ("params/image_encoder/blocks_{last}/.*", True),
            ("params/image_encoder/neck_.*", True),
            ("params/mask_decoder/.*", True),
            (".*", False),
        ),
        # BitFit (arXiv 2106.10199), which has all biases, and the scales of all norms. Of the
        # decoder no more than these: BitFit trains a head only because it is a new one.
        "norm+bias": (("params/.*/scale", True), ("params/.*/bias", True), (".*", False)),
        "full": (("params/.*", True), (".*", False)),
    }
)
