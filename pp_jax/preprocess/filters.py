"""The filters by name, and the specs that choose them: `median:3>clahe:clip=3>sobel`.

A spec is one or more *chains*, separated by commas, each a list of filters joined by `>`. A filter
is a name in `FILTERS` and its parameters, by position or by name. Sizes are pixels of the model
frame. In a chain each filter sees the response of the one before, mapped to [0, 255].
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Num

from pp_jax.preprocess.gradients import sobel
from pp_jax.preprocess.responses import Filter, respond, to_grey_levels

Value = int | float | str | bool


class Named(NamedTuple):
    """A filter's name with all its parameters, the default ones as well."""

    name: str
    parameters: tuple[tuple[str, Value], ...]

    def __str__(self) -> str:
        return ":".join((self.name, *(f"{name}={value}" for name, value in self.parameters)))


Chain = tuple[Named, ...]


def parse(spec: str) -> tuple[Chain, ...]:
    """The chains of a spec, every parameter filled in and checked.

    Raises:
      ValueError: An unknown name or parameter, or a value outside its range; names the value and
        the choices.
    """
    return tuple(tuple(map(_named, chain.split(">"))) for chain in spec.split(","))


def canonical(spec: str) -> str:
    """The spec with all names, parameters and defaults written out: what a cache key must hold."""
    return ",".join(">".join(map(str, chain)) for chain in parse(spec))


def file_name(spec: str) -> str:
    """The spec in characters that every file system takes."""
    return spec.replace(">", "+").replace(":", "-").replace("=", "").replace(",", "_")


def make_filter(named: Named) -> Filter:
    """The filter of one link of a chain."""
    return FILTERS[named.name](**dict(named.parameters))


def show(
    image: Float[Array, "H W"], size: Int[Array, "2"], *, chain: Sequence[Filter]
) -> Float32[Array, "H W"]:
    """The image after all filters of a chain, in grey levels in [0, 255]."""
    for filter in chain:
        image = to_grey_levels(respond(image, size, filter=filter), filter=filter)
    return image


def filter_image(image: Num[np.ndarray, "H W"], *, spec: str) -> Float32[np.ndarray, "chains H W"]:
    """One host image after each chain of the spec, in grey levels in [0, 255].

    Raises:
      ValueError: A wrong spec, or an image that is empty, has channels, or holds values that are
        not finite or outside [0, 255].
    """
    if image.ndim != 2 or 0 in image.shape:
        raise ValueError(f"an image of shape {image.shape}: filters take one grey image, (H, W)")
    low, high = image.min(), image.max()  # NaN where there is one.
    if not 0 <= low <= high <= 255:
        raise ValueError(f"grey levels from {low} to {high}: filters take finite ones in [0, 255]")
    size = jnp.array(image.shape)
    levels = jnp.asarray(image, jnp.float32)
    chains = (tuple(map(make_filter, chain)) for chain in parse(spec))
    return np.stack([jax.jit(partial(show, chain=chain))(levels, size) for chain in chains])


def describe() -> str:
    """One line for `--help`: every filter with its parameters and their defaults."""
    rows = (":".join((name, *_signature(name))) for name in FILTERS)
    return "NAME[:VALUE...], chained by '>' (quote it), alternatives by ',': " + "; ".join(rows)


def _signature(name: str) -> list[str]:
    parameters = inspect.signature(FILTERS[name]).parameters.values()
    return [f"{p.name}={p.default}" for p in parameters]


def _named(text: str) -> Named:
    name, *given = (part.strip() for part in text.split(":"))
    if name not in FILTERS:
        raise ValueError(f"filter {name!r} is unknown: choose one of {', '.join(FILTERS)}")
    parameters = inspect.signature(FILTERS[name]).parameters
    values: dict[str, Value] = {p.name: p.default for p in parameters.values()}
    for position, argument in enumerate(given):
        key, equals, value = argument.rpartition("=")
        if not equals:
            key = list(values)[position] if position < len(values) else ""
        if key not in values:
            raise ValueError(
                f"filter {text!r}: no parameter for {argument!r}; {name} takes "
                f"{', '.join(_signature(name)) or 'none'}"
            )
        values[key] = _value(value, like=values[key], where=f"filter {text!r}: {key}")
    named = Named(name, tuple(values.items()))
    try:
        make_filter(named)
    except ValueError as error:
        raise ValueError(f"filter {text!r}: {error}") from None
    return named


def _value(text: str, *, like: Value, where: str) -> Value:
    """The text as a value of the type of the default."""
    if isinstance(like, str):
        return text
    try:
        return type(like)(text)
    except ValueError:
        kind = "a whole number" if isinstance(like, int) else "a number"
        raise ValueError(f"{where}={text!r} must be {kind}") from None


def none() -> Filter:
    """The grey levels themselves."""
    return Filter(lambda image, size: image, border="reflect101", margin=0, low=0, high=255)


FILTERS: Mapping[str, Callable[..., Filter]] = MappingProxyType({"none": none, "sobel": sobel})
