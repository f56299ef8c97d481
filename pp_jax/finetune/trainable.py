"""What is trained: ordered rules over the paths of all variables."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

# A frozen leaf gets no gradient and no optimizer state. The positional Gaussian is never trained.
# With the learned fusion its parameters are variables too, which the rows `+fusion` train.
POLICIES: Mapping[str, Sequence[tuple[str, bool]]] = MappingProxyType(
    {
        "decoder": (("params/mask_decoder/.*", True), (".*", False)),
        "decoder+fusion": (
            ("fusion/.*", True),
            ("params/mask_decoder/.*", True),
            (".*", False),
        ),
        "full": (("constants/.*", False), (".*", True)),
        "full+fusion": (("constants/.*", False), ("fusion/.*", True), (".*", True)),
    }
)
