"""What is trained: ordered rules over the paths of all variables."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

# A frozen leaf gets no gradient and no optimizer state. The positional Gaussian is never trained. A
# learned fusion's parameters are variables too, and always trained: `rules_of` puts them first.
POLICIES: Mapping[str, Sequence[tuple[str, bool]]] = MappingProxyType(
    {
        "decoder": (("params/mask_decoder/.*", True), (".*", False)),
        "full": (("constants/.*", False), (".*", True)),
    }
)
