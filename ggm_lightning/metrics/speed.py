"""What sampling costs on this device: seconds per sample, samples per second, and rows through the network per second.

Each setting is run several times on the same rows, after one run that is not counted (compilation, caches), and the
medians are told. A time is that of the wall, with nothing left running on a GPU. So it says how fast this machine was
with what else it had to do: compare figures of one machine, made one behind the other.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ggm_lightning.sampling.request import Samples


@dataclass(frozen=True)
class Speed:
    """Medians over `repeats` runs.

    Attributes:
        samples: drawn at once.
        seconds_per_sample, samples_per_second: of the whole run.
        rows_per_second: rows sent to the network in a second of the run. rows_per_sample: what a sample costs.
        fastest, slowest: seconds of one run, between which all runs lie.
        device: with its name, where it has one. threads: of torch, on a CPU.
    """

    samples: int
    repeats: int
    seconds_per_sample: float
    samples_per_second: float
    rows_per_second: float
    rows_per_sample: float
    fastest: float
    slowest: float
    device: str
    threads: int


def measure(
    draw: Callable[[], Samples],
    device: torch.device,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """`draw` draws the same samples each time. `clock`: seconds, for tests."""
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; it must be at least 1")
    drawn = draw()
    seconds = [_timed(draw, device, clock) for _ in range(repeats)]
    middle, samples = statistics.median(seconds), len(drawn.x)
    return Speed(
        samples=samples,
        repeats=repeats,
        seconds_per_sample=middle / samples,
        samples_per_second=samples / middle,
        rows_per_second=drawn.rows / middle,
        rows_per_sample=drawn.rows / samples,
        fastest=min(seconds),
        slowest=max(seconds),
        device=named(device),
        threads=torch.get_num_threads(),
    )


def _timed(draw: Callable[[], Samples], device: torch.device, clock: Callable[[], float]) -> float:
    _wait(device)
    begin = clock()
    draw()
    _wait(device)
    return clock() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def named(device: torch.device) -> str:
    """'cuda (NVIDIA H200)', 'cpu'."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
