"""What `make gpu` (gpu.py) measures with: sizes, the time left, milliseconds, memory, waits and device time."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.benchmarks import heads


@dataclass
class Sizes:
    """Of all parts; `tiny` ones run in seconds on a CPU."""

    head_rows: int = 32_768
    head_dim: int = 768
    classes: int = 50_257
    length: int = 1024
    network: dict[str, Any] = field(default_factory=lambda: {"feature_dim": 64, "num_heads": 12, "num_layers": 12})
    batches: tuple[int, ...] = (16, 32, 64)
    small: dict[str, Any] = field(default_factory=lambda: {"feature_dim": 64, "num_heads": 6, "num_layers": 6})
    small_rows: int = 128
    small_length: int = 256
    small_steps: int = 400
    sample_steps: tuple[int, ...] = (64, 256)
    sample_rows: int = 16
    rounds: int = 5
    full_size: tuple[str, ...] = ("md4_imagenet64", "md4_cifar10", "blackout_cifar10", "genmd4_owt", "ggm_owt")

    @classmethod
    def tiny(cls) -> Sizes:
        network = {"feature_dim": 8, "num_heads": 2, "num_layers": 1}
        sizes = {"length": 16, "network": network, "batches": (2,), "small": network, "small_rows": 4, "small_steps": 3}
        sizes["small_length"] = 16
        sizes |= {"sample_steps": (2,), "sample_rows": 2, "rounds": 1, "full_size": ("md4_markov",)}
        return cls(head_rows=64, head_dim=32, classes=4_097, **sizes)  # type: ignore[arg-type]


class Clock:
    """How much of the budget is left."""

    def __init__(self, budget: float) -> None:
        self.end = time.monotonic() + budget

    def left(self) -> float:
        return self.end - time.monotonic()


@dataclass
class Run:
    """What every part needs."""

    device: str
    sizes: Sizes
    clock: Clock

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    def autocast(self) -> Any:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.cuda)


def milliseconds(run: Run, call: Callable[[], Any], warm: int = 3) -> float:
    """The median of a few calls, each waited for."""
    for _ in range(warm if run.cuda else 1):
        call()
    return 1000 * statistics.median(heads.seconds(call, run.device) for _ in range(run.sizes.rounds))


def peak(run: Run, step: Callable[[], None]) -> dict[str, Any]:
    if not run.cuda:
        return {}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step()
    return {"gb": torch.cuda.max_memory_allocated() / 1e9}


def waits(run: Run, step: Callable[[], None]) -> dict[str, Any]:
    """What torch warns of in one step; the promise is none."""
    if not run.cuda:
        return {}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {"waits": len([w for w in seen if "synchroniz" in str(w.message)])}


def device_time(run: Run, step: Callable[[], None]) -> dict[str, Any]:
    """Wall and device time of a step, and its kernels: small networks are to be bound by the device."""
    if not run.cuda:
        return {}
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        wall = 1000 * heads.seconds(step, run.device)
    kernels = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return {"kernels": len(kernels), "device_ms": sum(e.device_time for e in kernels) / 1000, "profiled_wall_ms": wall}
