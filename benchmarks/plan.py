"""What fine-tuning takes on slices of TPUs: `python -m benchmarks.plan` makes the README's table.

Needs the extra `tpu-plan` and no TPU: each step is compiled by `pp_jax.finetune.plan`, each in a
process of its own, one at a time. What is done stands in a JSON file and is not done again, unless
it failed.

All chips are on `fsdp`: a chip of v5e holds 16 GiB, of which a copy of all parameters of `vit_h`
with the moments of AdamW would take 7.2, and its gradients 2.4 more. Per-block checkpointing,
blocks compiled as a loop, bfloat16 in the encoder.
"""

import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from pp_jax import config
from pp_jax.config import TrainConfig
from pp_jax.finetune import plan

TOPOLOGIES = ("v5e:2x2", "v5e:16x16", "v5e:4x4", "v5e:8x8")  # In the order they are compiled in.
POLICIES = ("decoder", "lora", "full")
_KINDS = (plan.TRAINED, plan.FROZEN, plan.OPTIMIZER, plan.BATCHES, plan.TEMPORARY)
_CELL = "--cell"  # What a process that compiles one cell is started with.


@dataclass(frozen=True)
class Settings:
    """Which cells are compiled."""

    variant: str = "vit_h"
    """Which SAM."""
    chip: int = 8
    """Images per chip and step."""
    accumulate: int = 1
    """Parts that they are computed in."""
    only: tuple[str, ...] = ()
    """Some of the cells, such as `v5e:2x2/lora` or `v5e:4x4`; default: all."""
    limit: float = 3600.0
    """Seconds that a cell may take."""
    out: Path = Path("benchmarks/plan.json")
    """Where cells are kept."""
    table: bool = False
    """Compile nothing; print what is done."""


def main() -> None:
    """Compiles what is missing, and prints the table."""
    if sys.argv[1:2] == [_CELL]:
        print(json.dumps(compile_cell(json.loads(sys.argv[2]))))
        return
    settings = tyro.cli(Settings, prog="python -m benchmarks.plan", description=__doc__)
    done = json.loads(settings.out.read_text()) if settings.out.is_file() else {}
    for topology in TOPOLOGIES:
        for policy in POLICIES:
            cell = f"{topology}/{policy}"
            asked = not settings.only or cell in settings.only or topology in settings.only
            kept = done.get(name_of(settings, cell), {"failed": ""})
            if settings.table or not asked or "failed" not in kept:
                continue
            print(f"{cell}: compiling ...", file=sys.stderr, flush=True)
            done[name_of(settings, cell)] = run_cell(settings, topology, policy)
            settings.out.write_text(json.dumps(done, indent=1) + "\n")
    print(table(settings, done))


def name_of(settings: Settings, cell: str) -> str:
    """What a cell is kept under."""
    parts = f"/accumulate={settings.accumulate}" if settings.accumulate > 1 else ""
    return f"{settings.variant}/{settings.chip}{parts}/{cell}"


def run_cell(settings: Settings, topology: str, policy: str) -> dict[str, Any]:
    """The facts of one cell, or `{"failed": why}`."""
    asked = {
        "variant": settings.variant,
        "trainable": policy,
        "plan": f"tpu:{topology}",
        "chip": settings.chip,
        "accumulate": settings.accumulate,
    }
    command = [sys.executable, "-m", "benchmarks.plan", _CELL, json.dumps(asked)]
    begun = time.perf_counter()
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=settings.limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"not compiled in {settings.limit:.0f} s"}
    if ended.returncode:
        return {"failed": (ended.stderr.strip().splitlines() or ["no word"])[-1]}
    return json.loads(ended.stdout.splitlines()[-1]) | {
        "compiled_s": round(time.perf_counter() - begun)
    }


def compile_cell(asked: dict[str, Any]) -> dict[str, Any]:
    """The facts of a cell, in this process."""
    chip = asked.pop("chip")
    device, devices = plan.find(asked["plan"])
    settings = config.resolve(
        TrainConfig(
            init="random",
            steps=1000,
            batch=chip * len(devices),
            mesh=f"data=1,fsdp={len(devices)}",
            remat=True,
            scan_blocks=True,
            dtype="bfloat16",
            **asked,
        )
    )
    made = plan.make_plan(settings, device, devices)
    facts = {"fits": made.fits, "seconds": made.seconds, "total": made.total}
    fields = ("trained", "frozen", "useful", "executed", "held", "refused", "devices", "batch")
    settings = dataclasses.asdict(settings)
    return {name: getattr(made, name) for name in fields} | facts | {"settings": settings}


def table(settings: Settings, done: dict[str, Any]) -> str:
    """Markdown; cells that are not there are left out."""
    heads = ["v5e", "trained", "M trained", *(f"GiB {kind}" for kind in _KINDS), "GiB other"]
    heads += ["GiB per chip", "fits 16", "TFLOP per chip", "s per step", "images/s"]
    lines = [" | ".join(heads), " | ".join(["---"] * len(heads))]
    for topology in sorted(TOPOLOGIES, key=lambda name: [int(x) for x in name[4:].split("x")]):
        for policy in POLICIES:
            facts = done.get(name_of(settings, f"{topology}/{policy}"))
            if facts:
                row = [topology.removeprefix("v5e:"), policy, *_row(facts)]
                lines.append(" | ".join([*row, *[""] * (len(heads) - len(row))]))
    return "\n".join(f"| {line} |" for line in lines)


def _row(facts: dict[str, Any]) -> list[str]:
    if "failed" in facts:
        return [facts["failed"]]
    held = facts["held"]
    gib = [held.get(kind, 0) / plan.GIB for kind in _KINDS]
    return [
        f"{facts['trained'] / 1e6:.1f}",
        *(f"{x:.2f}" for x in gib),
        f"{facts['total'] / plan.GIB - sum(gib):.2f}",
        f"{facts['total'] / plan.GIB:.2f}",
        "yes" if facts["fits"] else "no",
        f"{facts['useful'] / facts['devices'] / 1e12:.1f}",
        f"{facts['seconds']:.2f}",
        f"{facts['batch'] / facts['seconds']:.0f}",
    ]


if __name__ == "__main__":
    main()
