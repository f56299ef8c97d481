"""What every notebook begins with: badges, and the cell that installs.

`python docs/notebooks/top.py` writes both into all notebooks, with the address of the repository
that stands in `pyproject.toml`.
"""

import json
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

_BADGES = """\
[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]\
(https://colab.research.google.com/github/{name}/blob/main/{path})
[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]\
(https://kaggle.com/kernels/welcome?src=https://github.com/{name}/blob/main/{path})
[![Launch in DeepNote](https://deepnote.com/buttons/launch-in-deepnote-small.svg)]\
(https://deepnote.com/launch?url=https://github.com/{name}/blob/main/{path})"""

_INSTALL = """\
import os
import subprocess
import sys
from pathlib import Path

address = os.environ.get("PP_REPOSITORY", "{address}")
above = [Path.cwd(), *Path.cwd().parents]
clones = [folder for folder in above if (folder / "docs/notebooks/install.py").is_file()]
clone = clones[0] if clones else Path.cwd() / "pixel-perfect"
if not clone.exists():
    subprocess.run(["git", "clone", "--quiet", address, clone], check=True)
os.chdir(clone)  # All commands are started here, with this notebook's Python.
os.environ["PATH"] = f"{{Path(sys.executable).parent}}{{os.pathsep}}{{os.environ['PATH']}}"
!python docs/notebooks/install.py"""


def address() -> str:
    """Where the repository is cloned from."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["urls"]["Repository"]


def badges(notebook: str, address: str) -> str:
    """The links that open a notebook of this file name on Colab, Kaggle and DeepNote."""
    name = address.removeprefix("https://github.com/")
    return _BADGES.format(name=name, path=f"docs/notebooks/{notebook}")


def install(address: str) -> str:
    """The cell that finds the clone, or makes it, and installs the project."""
    return _INSTALL.format(address=address)


def notebooks() -> list[Path]:
    """All notebooks, in the order in which they are read."""
    return sorted(HERE.glob("[0-9]*.ipynb"))


def main() -> None:
    """Write badges and install cell of every notebook anew."""
    for path in notebooks():
        notebook = json.loads(path.read_text())
        tops = {"badges": badges(path.name, address()), "install": install(address())}
        for cell in notebook["cells"]:
            if cell["id"] in tops:
                cell["source"] = tops[cell["id"]].splitlines(keepends=True)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
