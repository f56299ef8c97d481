"""The command line: choices from tables, and one clear line for a user's mistake."""

import contextlib
import dataclasses
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import tyro

T = TypeVar("T")


def parse(
    config: type[T],
    *,
    prog: str,
    choices: Mapping[str, Iterable[str]] | None = None,
    args: list[str] | None = None,
) -> T:
    """An instance of the frozen dataclass `config`, from the command line.

    Args:
      choices: For some fields of type `str`, the names that are allowed; `--help` shows them.
      args: Instead of `sys.argv[1:]`.
    """
    choices = {name: tuple(names) for name, names in (choices or {}).items()}
    typed: Any = config
    if choices:
        fields = [
            (
                field.name,
                Literal[choices[field.name]] if field.name in choices else field.type,
                field,
            )
            for field in dataclasses.fields(config)
        ]
        # A subclass with narrower types: the parser sees the choices, the code a plain `str`.
        typed = dataclasses.make_dataclass(
            config.__name__,
            fields,
            bases=(config,),
            frozen=True,
            namespace={"__doc__": config.__doc__},
        )
    parsed = tyro.cli(typed, prog=prog, args=args)
    return config(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(config)})


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """A user's mistake (`ValueError`, `OSError`) ends in one line on stderr and exit code 2.

    `PP_TRACEBACK=1` shows the traceback instead.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    except (ValueError, OSError) as error:
        if os.environ.get("PP_TRACEBACK"):
            raise
        text = " ".join(str(error).split())
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _show_warning(message: Any, category: Any, filename: Any, lineno: Any, *rest: Any) -> None:
    del category, filename, lineno, rest
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
