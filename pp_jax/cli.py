"""The command line: choices from tables, and one clear line for a user's mistake."""

import contextlib
import copy
import dataclasses
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import jax
import tyro

from pp_jax.memory import keep_freed_memory

T = TypeVar("T")


def parse(
    config: type[T],
    *,
    prog: str,
    choices: Mapping[str, Iterable[str]] | None = None,
    specs: Mapping[str, tuple[Callable[[str], object], str]] = MappingProxyType({}),
    aliases: Mapping[str, str] = MappingProxyType({}),
    presets: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    alternatives: Iterable[Sequence[str]] = (),
    default: T | None = None,
    args: list[str] | None = None,
) -> T:
    """An instance of the frozen dataclass `config`, from the command line.

    Args:
      choices: For some fields of type `str`, the names that are allowed; `--help` shows them.
      specs: For some fields of type `str`, a check that raises on a wrong value, and what `--help`
        says of the values.
      aliases: For some fields, another flag of the same meaning.
      presets: What stands in place of the fields' defaults where `--preset` names it.
      alternatives: Groups of fields of which one is told: where it is, a preset's others are left
        out.
      default: What stands in place of all fields' defaults, presets' too.
      args: Instead of `sys.argv[1:]`.

    Raises:
      ValueError: From a check.
    """
    choices = {name: tuple(names) for name, names in (choices or {}).items()}
    typed: Any = config
    if choices or specs:
        fields = [
            (
                field.name,
                _with_alias(_type(field, choices=choices, specs=specs), aliases.get(field.name)),
                copy.copy(field),  # make_dataclass writes the type into the field it is given.
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
    given: Mapping[str, Any]
    if default is None:
        named = presets.get(told("--preset", args), {})
        given = _without_rivals(named, alternatives=alternatives, args=args)
    else:
        given = vars(default)
    start = typed(**given) if given else None
    parsed = tyro.cli(typed, prog=prog, args=args, default=start)
    for name, (check, _) in specs.items():
        if value := getattr(parsed, name):
            check(value)
    return config(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(config)})


def told(flag: str, args: Sequence[str] | None = None) -> str:
    """The value of a flag, before all flags are parsed; empty without one."""
    args = sys.argv[1:] if args is None else args
    words = [part for word in args for part in word.split("=", 1)]
    return words[words.index(flag) + 1] if flag in words[:-1] else ""


def _without_rivals(
    preset: Mapping[str, Any],
    *,
    alternatives: Iterable[Sequence[str]],
    args: Sequence[str] | None,
) -> dict[str, Any]:
    """A preset's flags but those in place of which another one is told."""
    kept = dict(preset)
    for group in alternatives:
        typed = {name for name in group if _is_told(name, args)}
        if typed:
            kept = {k: v for k, v in kept.items() if k not in group or k in typed}
    return kept


def _is_told(field: str, args: Sequence[str] | None) -> bool:
    flags = (f"--{field}", f"--{field.replace('_', '-')}")  # The parser takes either.
    return any(told(flag, args) for flag in flags)


def _type(
    field: dataclasses.Field,
    *,
    choices: Mapping[str, tuple[str, ...]],
    specs: Mapping[str, tuple[Callable[[str], object], str]],
) -> Any:
    if field.name in choices:
        return Literal[choices[field.name]]
    if field.name in specs:
        return Annotated[field.type, tyro.conf.arg(help_behavior_hint=specs[field.name][1])]
    return field.type


def _with_alias(type_: Any, alias: str | None) -> Any:
    return Annotated[type_, tyro.conf.arg(aliases=(alias,))] if alias else type_


TIED = "PP_ENDS_WITH_PARENT"  # In the environment of a job: its input closes with its parent.
_STOPPED = 130


def end_with_parent() -> None:
    """This process, if it is a job, ends at once when the one that started it is gone.

    A job that outlived it would still write where the next call goes on.
    """
    if not os.environ.pop(TIED, ""):
        return

    def watch() -> None:
        # Not by `sys.stdin`, whose lock this thread would hold when the interpreter ends.
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os._exit(_STOPPED)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def one_line_errors(*, less_memory: str = "take fewer or smaller images") -> Iterator[None]:
    """A user's mistake (`ValueError`, `OSError`) ends in one line on stderr and exit code 2.

    So do a training that diverged (`FloatingPointError`) and memory that ran out, of the machine or
    of a device. A warning is one line, too. `PP_TRACEBACK=1` shows the traceback instead.

    Args:
      less_memory: What to do where memory ran out.
    """
    end_with_parent()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        wanted = _memory_ran_out(error)
        if os.environ.get("PP_TRACEBACK") or (isinstance(error, RuntimeError) and not wanted):
            raise
        text = f"out of memory ({wanted}): {less_memory}" if wanted else _in_one_line(error)
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _in_one_line(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"{error.filename}: no such file or folder; check the path"
    return " ".join(str(error).split())


def _memory_ran_out(error: Exception) -> str:
    """What wanted memory that was not there; empty for another error."""
    text = str(error)
    if isinstance(error, RuntimeError):  # XLA's, of a device; on CPUs that is the machine.
        text = text.partition(_EXHAUSTED)[2]
    elif not isinstance(error, MemoryError):
        return ""
    elif not text:
        text = "of the machine"
    return textwrap.shorten(text.lstrip(": "), _LONGEST, placeholder=" ...")  # Tables may follow.


# Of a front that only asks a model.
SMALLER = "give a smaller --image-size, --dtype bfloat16, or one model instead of several at once"
_EXHAUSTED, _LONGEST = "RESOURCE_EXHAUSTED", 150


def _show_warning(message: Any, category: Any, filename: Any, lineno: Any, *rest: Any) -> None:
    del category, filename, lineno, rest
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


DEVICES = ("auto", "cpu", "gpu", "tpu")


def devices(name: str) -> list[jax.Device]:
    """The devices to compute on; the first process prints them. `auto` is whatever jax prefers.

    Where that is the CPU although the machine has something faster, a warning says what to install.

    Raises:
      ValueError: jax sees none of that kind.
    """
    try:
        found = jax.devices(None if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(
            f"--device {name}: jax {jax.__version__} sees no such device, only "
            f"{jax.devices()[0].platform}; install jax with its CUDA or TPU extra"
        ) from error
    if name != "auto":
        # A device of this process: the first of all may be another host's.
        jax.config.update("jax_default_device", jax.local_devices(backend=name)[0])
    if found[0].platform == "cpu":
        keep_freed_memory()
        # Who chose the CPU, by the flag or by JAX_PLATFORMS, knows.
        if name == "auto" and not jax.config.jax_platforms and (unused := unused_accelerator()):
            print(
                f"warning: {unused}, but jax {jax.__version__} sees only the CPU and training "
                f"takes many times longer; install jax's build for it: {_BUILDS} (docs/"
                "troubleshooting.md), or say --device cpu",
                file=sys.stderr,
            )
    if jax.process_index() == 0:
        print(f"devices: {len(found)} x {found[0].device_kind} ({found[0].platform})")
    return found


_BUILDS = "`make train JAX=cuda12` (or cuda13, tpu)"
_TPU_VARIABLES = ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE", "TPU_CHIPS_PER_HOST_BOUNDS")


def unused_accelerator(dev: Path = Path("/dev")) -> str:
    """An accelerator that this machine has, by its device files and drivers; empty without one.

    To be asked where jax sees none.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    if not hidden and (dev / "nvidia0").exists():
        return f"an NVIDIA device is here ({dev / 'nvidia0'})"
    if not hidden and (listed := _nvidia_smi()):
        return f"an NVIDIA device is here ({listed})"
    # Numbered: /dev/accel/ holds other makers'.
    if chips := sorted(dev.glob("accel[0-9]*")):
        return f"a TPU is here ({chips[0]})"
    if (dev / "vfio").exists() and any(map(os.environ.get, _TPU_VARIABLES)):
        return f"a TPU is here ({dev / 'vfio'})"
    return ""


def _nvidia_smi() -> str:
    """The first device that the driver's program lists: under WSL there is no device file."""
    program = shutil.which("nvidia-smi")
    if not program:
        return ""
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    first = done.stdout.partition("\n")[0]
    return first.partition(" (UUID")[0] if first.startswith("GPU 0") else ""


_CLUSTER = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join_processes() -> None:
    """This process computes together with the others that were started by the same command.

    jax finds them under Slurm, Open MPI and Kubernetes and on TPU pods; elsewhere three variables
    of the environment tell. To be called before any device is touched.

    Raises:
      ValueError: Nothing tells of other processes, or not all that is needed.
    """
    told = {name: os.environ[name] for name in _CLUSTER if os.environ.get(name)}
    try:
        if not told:
            jax.distributed.initialize()
            return
        address, count, own = (told[name] for name in _CLUSTER)
        jax.distributed.initialize(address, int(count), int(own))
    except (KeyError, ValueError) as error:
        held = ", ".join(f"{name}={told.get(name, '')}" for name in _CLUSTER)
        raise ValueError(
            f"--distributed: no other processes are known ({held}); start this under Slurm or on a "
            f"TPU pod, or set {_CLUSTER[0]} (as in 10.0.0.1:1234), {_CLUSTER[1]} and "
            f"{_CLUSTER[2]} (from 0) for each process"
        ) from error


def process_share() -> dict[str, int]:
    """Which of the processes of a multi-host run this one is."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def require_clone() -> None:
    """Nothing, when started from the root of the clone, where relative folders mean something.

    Raises:
      ValueError: Started elsewhere.
    """
    root = Path(__file__).resolve().parents[1]
    if Path.cwd() != root:
        raise ValueError(f"start this from the clone's root: cd {root}")


def fresh_folder(out: Path, *, ours: str) -> Path:
    """A new empty folder to fill and then rename to `out`.

    Raises:
      ValueError: `out` holds something that is not an older output, known by the file `ours`.
    """
    partial = partial_folder(out, ours=ours)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def partial_folder(out: Path, *, ours: str) -> Path:
    """Where an output is made before it is renamed to `out`; what lies there may be gone on with.

    Raises:
      ValueError: `out` holds something that is not an older output, known by the file `ours`.
    """
    if out.exists() and not (out / ours).is_file() and (out.is_file() or any(out.iterdir())):
        raise ValueError(f"--out {out}: not empty, and no older report; choose another folder")
    return out.with_name(out.name + ".partial")


def put_folder(partial: Path, out: Path) -> None:
    """The folder has its final name; an older one of that name is gone."""
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
