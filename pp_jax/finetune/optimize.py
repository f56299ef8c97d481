"""Optimizers and learning-rate schedules, one row each."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import optax

Schedule = Callable[..., optax.Schedule]


def warm_up(schedule: optax.Schedule, *, peak: float, warmup: int) -> optax.Schedule:
    """Linear from `peak / warmup` to `peak` in `warmup` steps, then `schedule` from its start."""
    if not warmup:
        return schedule
    start = peak / warmup
    return optax.join_schedules(
        [optax.linear_schedule(start, peak, max(warmup - 1, 1)), schedule], [warmup]
    )


def decays(params: Any) -> Any:
    """Which leaves weight decay acts on: kernels, not biases, norms, tokens or positions."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(
    *,
    name: str,
    schedule: str,
    lr: float,
    warmup: int,
    steps: int,
    weight_decay: float,
    clip: float,
) -> optax.GradientTransformation:
    """The update rule: clipped gradients, the named optimizer, decay of kernels alone."""
    rate = warm_up(SCHEDULES[schedule](lr, max(steps - warmup, 1)), peak=lr, warmup=warmup)
    update = OPTIMIZERS[name](rate, weight_decay=weight_decay, mask=decays)
    update = optax.chain(optax.clip_by_global_norm(clip), update) if clip else update
    return optax.with_extra_args_support(update)


SCHEDULES: Mapping[str, Schedule] = MappingProxyType(
    {
        "cosine": lambda lr, steps: optax.cosine_decay_schedule(lr, steps, alpha=0.01),
        "constant": lambda lr, steps: optax.constant_schedule(lr),
    }
)

OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = MappingProxyType(
    {"adamw": optax.adamw}
)
