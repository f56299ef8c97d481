"""Rows of tables by name with parameters: `sobel:5:part=x`.

A row is a factory: a function whose parameters are keyword-only and have defaults of type int,
float or str. A spec gives them by position or by name.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Value = int | float | str
Table = Mapping[str, Callable[..., Any]]


class Named(NamedTuple):
    """A row's name with all its parameters, the default ones as well."""

    name: str
    parameters: tuple[tuple[str, Value], ...]

    def __str__(self) -> str:
        return ":".join((self.name, *(f"{name}={value}" for name, value in self.parameters)))


def parse_row(text: str, table: Table, *, what: str) -> Named:
    """The row that a spec names, every parameter filled in and checked.

    Args:
      what: The rows' kind, for errors.

    Raises:
      ValueError: An unknown name or parameter, or a value outside its range; names the value and
        the choices.
    """
    name, *given = (part.strip() for part in text.split(":"))
    if name not in table:
        raise ValueError(f"{what} {name!r} is unknown: choose one of {', '.join(table)}")
    values: dict[str, Value] = _defaults(table[name])
    told: set[str] = set()
    for position, argument in enumerate(given):
        key, equals, value = argument.rpartition("=")
        if not equals:
            key = list(values)[position] if position < len(values) else ""
        if key not in values or key in told:
            raise ValueError(
                f"{what} {text!r}: {argument!r} is {'given twice' if key in told else 'unknown'}; "
                f"{name} takes {':'.join(signature(table[name])) or 'no parameters'}"
            )
        told.add(key)
        values[key] = _value(value, like=values[key], where=f"{what} {text!r}: {key}")
    named = Named(name, tuple(values.items()))
    try:
        make_row(named, table)
    except ValueError as error:
        raise ValueError(f"{what} {text!r}: {error}") from None
    return named


def make_row(named: Named, table: Table) -> Any:
    """What the row's factory makes of the parameters."""
    return table[named.name](**dict(named.parameters))


def signature(factory: Callable[..., Any]) -> list[str]:
    """`name=default` of each parameter."""
    return [f"{name}={value}" for name, value in _defaults(factory).items()]


def describe(table: Table) -> str:
    """Every row with its parameters and their defaults, for `--help`."""
    return "; ".join(":".join((name, *signature(make))) for name, make in table.items())


def _defaults(factory: Callable[..., Any]) -> dict[str, Value]:
    return {p.name: p.default for p in inspect.signature(factory).parameters.values()}


def _value(text: str, *, like: Value, where: str) -> Value:
    """The text as a value of the type of the default."""
    if isinstance(like, str):
        return text
    try:
        return type(like)(text)
    except ValueError:
        kind = "a whole number" if isinstance(like, int) else "a number"
        raise ValueError(f"{where}={text!r} must be {kind}") from None
