"""Install the project beside what the machine has: `python docs/notebooks/install.py [--torch]`.

The first cell of every notebook runs it. Colab, Kaggle and DeepNote bring a jax that fits their
devices: it stays if it is new enough, and so does their torch. Needs the standard library alone.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
JAX = (0, 10)  # The oldest jax that the project runs on.
PARITY = ("torchvision", "segment-anything==1.0", "safetensors>=0.5,<1")


def installed(name: str) -> str:
    """The version of a package, empty where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def keeps(jax: str) -> bool:
    """Whether this version of jax, empty for none, is new enough to stay."""
    found = re.match(r"(\d+)\.(\d+)", jax)
    return found is not None and (int(found[1]), int(found[2])) >= JAX


def extra() -> str:
    """The extra of jax for the accelerator of this machine: cuda12, tpu, or none for a CPU."""
    if shutil.which("nvidia-smi"):
        return "[cuda12]"
    return "[tpu]" if any(Path("/dev").glob("accel*")) else ""


def plan(jax: str, *, ours: str, needs: Sequence[str], accelerator: str) -> list[list[str]]:
    """What `pip install` is told, one list for each call; nothing where all is there.

    Args:
      jax: The version that is there, empty for none.
      ours: The project's version that is there, empty for none.
      needs: The project's requirements.
      accelerator: What `extra` says.
    """
    if ours and keeps(jax):
        return []
    wanted = next(need for need in needs if re.match(r"jax\b(?!-)", need))
    others = [need for need in needs if need != wanted]
    # Named among the others, or one of them could exchange it.
    own = f"jax=={jax}" if keeps(jax) else wanted.replace("jax", f"jax{accelerator}", 1)
    return [[own, *others], ["--no-deps", "-e", str(ROOT)]]


def plan_torch(torch: str, *, pin: str, options: Sequence[str] = ()) -> list[list[str]]:
    """The same for what notebook 04 compares with; a torch that is there stays.

    Args:
      torch: The version that is there, empty for none.
      pin: What is installed where there is none.
      options: Of pip, for example an `--index-url` of CPU-only wheels.
    """
    first = [] if torch else [[*options, pin]]
    return [*first, [f"torch=={torch}" if torch else pin, *PARITY]]


def pin_of(name: str) -> str:
    """The line of `constraints.txt` about a package."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


def main(args: Sequence[str]) -> None:
    """Install, and say what is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    jax = installed("jax")
    told = plan(jax, ours=installed("pp_jax"), needs=project["dependencies"], accelerator=extra())
    if "--torch" in args:
        options = shlex.split(os.environ.get("TORCH_OPTIONS", ""))
        told += plan_torch(installed("torch"), pin=pin_of("torch"), options=options)
    for one in told:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *one], check=True)
    kept = "as it was" if keeps(jax) else f"in place of {jax or 'none'}"
    print(f"pp_jax {installed('pp_jax')}, jax {installed('jax')} ({kept})")


if __name__ == "__main__":
    main(sys.argv[1:])
