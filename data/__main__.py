"""`python -m data`: prepare a data set, describe it, compare two."""

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from data import check, describe, prepare
from pp_jax import cli


def main(args: list[str] | None = None) -> None:
    """Do what the command line says, or `args` instead of it."""
    given = sys.argv[1:] if args is None else args
    with cli.one_line_errors():
        if not given or given[0] in ("-h", "--help"):
            print(_usage())
            raise SystemExit(0 if given else 2)
        if given[0] not in COMMANDS:
            raise ValueError(f"{given[0]!r} is no command; choose from {', '.join(COMMANDS)}")
        settings, run = COMMANDS[given[0]]
        run(cli.parse(settings, prog=f"python -m data {given[0]}", args=given[1:]))


def _usage() -> str:
    lines = [f"  {name:10}{one.__doc__.splitlines()[0]}" for name, (one, _) in COMMANDS.items()]
    return "\n".join(["usage: python -m data COMMAND ...; COMMAND --help says more", "", *lines])


COMMANDS: Mapping[str, tuple[type, Callable[[Any], None]]] = MappingProxyType(
    {
        "prepare": (prepare.Prepare, prepare.run),
        "describe": (describe.Describe, describe.run),
        "check": (check.Check, check.run),
    }
)


if __name__ == "__main__":
    main()
