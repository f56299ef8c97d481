"""Execute the notebooks without a browser: `python docs/notebooks/run.py [--clean] [NAME ...]`.

NAME is a notebook, or the beginning of the name of one that lies here, such as `00`; without one,
all are executed. With `--clean` they run as a newcomer's: in an empty folder, from an environment
of their own, into which their first cell puts a clone of what is committed here. `PP_QUICK=1`
stands for tiny settings. A cell that fails ends it all, with its source and its error; so does a
command of a cell that fails.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

import top

LIMIT = 600  # Seconds that a notebook may take on two cores.

# A cell goes on after a command that failed. Here it does not.
_STRICT = """\
def _strict(command, run=get_ipython().system):
    run(get_ipython().var_expand(command, depth=1))
    if code := get_ipython().user_ns.get("_exit_code"):
        raise ChildProcessError(f"exit code {code}: {command}")


get_ipython().system = _strict"""


def execute(path: Path, *, folder: Path, limit: int = LIMIT) -> None:
    """Execute all cells of a notebook in `folder`, by this Python; the file stays as it is.

    Raises:
      nbclient.exceptions.CellExecutionError: A cell or a command in it failed.
      nbclient.exceptions.DeadKernelError: It ended the process that executes it.
      TimeoutError: It took longer than `limit` seconds.
    """
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(_STRICT))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as private:
        # Sockets in a folder of ours: no port that others of the machine could listen at.
        sockets = Config(KernelManager={"transport": "ipc", "ip": f"{private}/kernel"})
        client = NotebookClient(
            notebook,
            timeout=limit,
            startup_timeout=limit,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
            config=sockets,
        )
        client.execute()
    if (took := time.monotonic() - began) > limit:
        raise TimeoutError(f"{path.name}: {took:.0f} s, of {limit} at most")


def execute_all(paths: Sequence[Path], *, folder: Path) -> int:
    """The exit code, after the time of each notebook was printed, or the error of the first."""
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    for path in paths:
        began = time.monotonic()
        try:
            execute(path, folder=folder)
        except (CellExecutionError, DeadKernelError, TimeoutError) as error:
            text = re.sub(r"\x1b\[[\d;]*m", "", str(error))  # Without colours.
            print(f"{path.name} failed:\n{text}", file=sys.stderr)
            return 1
        print(f"{path.name}: {time.monotonic() - began:.0f} s", flush=True)
    return 0


def execute_clean(paths: Sequence[Path]) -> int:
    """The exit code of this program in an environment, a clone and a folder of their own."""
    project = tomllib.loads((top.ROOT / "pyproject.toml").read_text())["project"]
    needs = project["optional-dependencies"]["notebooks"]
    pins = ["-c", str(top.ROOT / "constraints.txt")]
    with tempfile.TemporaryDirectory(prefix="notebooks-") as folder:
        home = Path(folder)
        venv.create(home / "venv", with_pip=True)
        python = home / "venv/bin/python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins, *needs], check=True)
        (home / "empty").mkdir()
        told = os.environ | {"PP_REPOSITORY": top.ROOT.as_uri()}
        program = Path(__file__).resolve()
        command = [python, program, *(path.resolve() for path in paths)]
        return subprocess.run(command, cwd=home / "empty", env=told).returncode


def main() -> int:
    """Execute what the command line names."""
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__)
    parser.add_argument("names", nargs="*", help="files, or beginnings of names; default: all")
    parser.add_argument("--clean", action="store_true", help="as a newcomer would, from nothing")
    asked = parser.parse_args()
    chosen = []
    for name in asked.names or [""]:
        named = [Path(name)] if name.endswith(".ipynb") else top.notebooks()
        found = [path for path in named if path.is_file() and path.name.startswith(Path(name).name)]
        if not found:
            print(f"error: no notebook is called {name}", file=sys.stderr)
            return 2
        chosen += found
    if asked.clean:
        return execute_clean(chosen)
    return execute_all(chosen, folder=Path.cwd())


if __name__ == "__main__":
    sys.exit(main())
