"""`python -m pp_jax`: what one may want to do, and the command that does it."""

import sys

from pp_jax import wishes


def main(args: list[str] | None = None) -> None:
    """Print the table, or the rows in which every word of the command line stands."""
    words = sys.argv[1:] if args is None else args
    if {"-h", "--help"} & set(words):
        print(_USAGE)
        return
    found = wishes.find(words)
    if not found:
        raise SystemExit(f"error: no wish names {' and '.join(words)}; `python -m pp_jax` has all")
    for wish, command in found.items():
        print(f"{wishes.plain(wish)}\n    {wishes.plain(command)}")


_USAGE = "usage: python -m pp_jax [WORD ...]: the rows of README's table in which the words stand"

if __name__ == "__main__":
    main()
