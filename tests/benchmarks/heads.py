"""Head and loss, forward and backward: ours beside what else there is, in one run.

    sum over the masked rows r of c_r (lse(h_r W^T) - h_r . W_{y_r})

Every contender is first checked against float64 on a small odd shape; who fails, or is not installed, is a row without
times. Then all take turns, in an order that alternates, on several inputs; the median and its spread are kept. Memory
is measured in a fresh process each: the peak above weights, inputs and one set of gradients. Plain dicts come back.

    python -m tests.benchmarks.heads --rows 2048           # table of the loss
    python -m tests.benchmarks.heads --rows 8192 --fresh   # the same, each turn in a process of its own
    python -m tests.benchmarks.heads --what ggm            # one logit per example beside all of them

In one process, what one contender leaves behind changes the next one's times once logits take gigabytes: hence --fresh.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ggm_lightning.core import fused, losses

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # (hidden, weight, targets, row weights, mask)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
INPUT_SETS = 3


@dataclass(frozen=True)
class Shape:
    rows: int = 2048
    dim: int = 768
    classes: int = 50_258
    masked: float = 0.5
    device: str = "cpu"
    dtype: str = "float32"


def naive(h: Tensor, w: Tensor, y: Tensor, c: Tensor, mask: Tensor) -> Tensor:
    """All logits, then the library's cross-entropy."""
    nats = functional.cross_entropy((h @ w.t()).float(), y, reduction="none")
    return torch.where(mask, c * nats, 0.0).sum()


def mdlm(h: Tensor, w: Tensor, y: Tensor, c: Tensor, mask: Tensor) -> Tensor:
    """As MDLM has it: log-probabilities of all rows, those of known tokens filled in, one gathered."""
    logits = (h @ w.t()).float()
    log_p = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
    log_p = log_p.masked_fill(~mask[:, None], 0.0)
    return (c * -log_p.gather(1, y[:, None])[:, 0]).sum()


def _gathered(h: Tensor, w: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return (c * functional.cross_entropy((h @ w.t()).float(), y, reduction="none")).sum()


def gather_naive(h: Tensor, w: Tensor, y: Tensor, c: Tensor, mask: Tensor) -> Tensor:
    return _gathered(h[mask], w, y[mask], c[mask])


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_gathered, dynamic=True)


def gather_compiled(h: Tensor, w: Tensor, y: Tensor, c: Tensor, mask: Tensor) -> Tensor:
    return _compiled()(h[mask], w, y[mask], c[mask])


def torch_chunked(h: Tensor, w: Tensor, y: Tensor, c: Tensor, mask: Tensor) -> Tensor:
    """torch 2.13's own; with reduction "none" (row weights) it forms the logits once more going back."""
    if not hasattr(functional, "linear_cross_entropy"):
        raise NotImplementedError("torch has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=512, chunking_method=None)
    nats = functional.linear_cross_entropy(h[mask], w, y[mask], reduction="none", options=options)
    return (c[mask] * nats.float()).sum()


def liger(h: Tensor, w: Tensor, y: Tensor, c: Tensor, mask: Tensor) -> Tensor:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    nats = LigerFusedLinearCrossEntropyFunction.apply(h[mask], w, y[mask], None, None, -100, 0.0, 0.0, "none")[0]
    return (c[mask] * nats).sum()


def cut(h: Tensor, w: Tensor, y: Tensor, c: Tensor, mask: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return (c[mask] * linear_cross_entropy(h[mask], w, y[mask], reduction="none", filter_eps=None)).sum()


def ours(h: Tensor, w: Tensor, y: Tensor, c: Tensor, mask: Tensor) -> Tensor:
    return fused.masked_linear_cross_entropy(h, w, y, c, mask, min_classes=0).loss


CONTENDERS: dict[str, Loss] = {
    "MDLM's form": mdlm,
    "all logits": naive,
    "gather": gather_naive,
    "gather, compiled": gather_compiled,
    "torch linear_cross_entropy": torch_chunked,
    "Liger": liger,
    "CCE": cut,
    "ours": ours,
}


def given(shape: Shape, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, shape.dtype)
    h = torch.randn(shape.rows, shape.dim, generator=g).to(shape.device, dtype).requires_grad_()
    w = (torch.randn(shape.classes, shape.dim, generator=g) * 0.05).to(shape.device, dtype).requires_grad_()
    y = torch.randint(shape.classes, (shape.rows,), generator=g).to(shape.device)
    c = (torch.rand(shape.rows, generator=g) + 0.5).to(shape.device)
    return h, w, y, c, (torch.rand(shape.rows, generator=g) < shape.masked).to(shape.device)


def failure(loss: Loss, shape: Shape) -> tuple[float, str]:
    """(largest relative error of loss and gradients against float64, why it is left out or "")."""
    h, w, y, c, mask = given(Shape(301, 96, 1031, 0.5, shape.device, shape.dtype), seed=7)
    exact = [part.detach().double().requires_grad_() for part in (h, w)]
    expected = torch.where(mask, c * losses.cross_entropy(exact[0] @ exact[1].t(), y), 0.0).sum()
    expected.backward()
    try:
        found = loss(h, w, y, c, mask)
        found.backward()
    except Exception as error:  # a library may fail in any way: then it is a row without times
        absent = isinstance(error, ImportError)
        return float("nan"), "not installed" if absent else f"not here: {str(error).splitlines()[0][:60]}"
    pairs = [(found.detach(), expected.detach()), (h.grad, exact[0].grad), (w.grad, exact[1].grad)]
    error = max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)
    return error, "" if error < TOLERANCE[getattr(torch, shape.dtype)] else "inexact"


def seconds(call: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def taking_turns(calls: dict[str, Callable[[int], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name in list(calls)[:: 1 if round_ % 2 else -1]:
            taken = seconds(partial(calls[name], round_), device)
            if round_:
                times[name].append(taken)
    return times


def summary(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {"median_s": statistics.median(ordered), "low_s": ordered[0], "high_s": ordered[-1]}


def steps_here(shape: Shape, names: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of the contenders' steps, one each in every round, on several inputs."""
    sets = [given(shape, seed) for seed in range(min(INPUT_SETS, rounds))]

    def step(name: str, round_: int) -> None:
        h, w, *rest = sets[round_ % len(sets)]
        h.grad = w.grad = None
        CONTENDERS[name](h, w, *rest).backward()

    return taking_turns({name: partial(step, name) for name in names}, rounds, shape.device)


def steps_apart(shape: Shape, names: list[str], rounds: int) -> dict[str, list[float]]:
    """The same, each contender's two steps of a round in a fresh process, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds):
        for name in names[:: 1 if round_ % 2 else -1]:
            times[name] += _in_a_process("--turn", name, shape)
            print(f"round {round_ + 1} of {rounds}: {name} {times[name][-2:]}", file=sys.stderr, flush=True)
    return times


def measure(
    shape: Shape, names: list[str], rounds: int, memory: bool, steps: Callable[..., dict[str, list[float]]] = steps_here
) -> list[dict[str, Any]]:
    """A dict per contender: error, median_s, low_s, high_s, extra_mib, or why there are none."""
    checked = {name: failure(CONTENDERS[name], shape) for name in names}
    times = steps(shape, [name for name in names if not checked[name][1]], rounds)
    rows = []
    for name in names:
        error, why = checked[name]
        row: dict[str, Any] = {"name": name, "error": error, "why": why}
        if not why:
            row |= summary(times[name])
            if memory:
                (row["extra_mib"],) = _in_a_process("--peak", name, shape)
        rows.append(row)
    return rows


def _in_a_process(what: str, name: str, shape: Shape) -> list[float]:
    """The numbers of its last line."""
    command = [sys.executable, "-m", "tests.benchmarks.heads", what, name, "--shape", json.dumps(asdict(shape))]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return json.loads(lines[-1])


def _resident(key: str) -> float:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def peak(name: str, shape: Shape) -> float:
    """MiB above weights, inputs and one set of gradients, of the second step in this process."""
    h, w, *rest = given(shape, 0)
    loss = CONTENDERS[name]
    loss(h, w, *rest).backward()
    if shape.device == "cuda":
        before = torch.cuda.memory_allocated() / 2**20
        h.grad = w.grad = None
        torch.cuda.reset_peak_memory_stats()
        loss(h, w, *rest).backward()
        return torch.cuda.max_memory_allocated() / 2**20 - before
    before = _resident("VmRSS")
    h.grad = w.grad = None
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # the peak starts again from here
    loss(h, w, *rest).backward()
    return _resident("VmHWM") - before


def one_token(batch: int, length: int, dim: int, classes: int, rounds: int, device: str = "cpu") -> dict[str, Any]:
    """GGM's loss with logits of all sites, of the hidden site, and of one token of it."""
    g = torch.Generator().manual_seed(0)
    h = torch.randn(batch, length, dim, generator=g).to(device).requires_grad_()
    w = (torch.randn(classes, dim, generator=g) * 0.05).to(device).requires_grad_()
    row = torch.arange(batch, device=device)
    site = torch.randint(length, (batch,), generator=g).to(device)
    token = torch.randint(classes, (batch,), generator=g).to(device)
    logits = {
        "logits [B, L, V]": lambda: (h @ w.t())[row, site, token],
        "logits [B, V]": lambda: (h[row, site] @ w.t())[row, token],
        "one logit": lambda: fused.token_logits(h[row, site], w, token),
    }

    def step(name: str) -> None:
        h.grad = w.grad = None
        functional.softplus(logits[name]()).sum().backward()

    times = taking_turns({name: lambda _, n=name: step(n) for name in logits}, rounds, device)
    return {name: summary(taken) for name, taken in times.items()}


def thresholds(shape: Shape, sizes: list[int], rounds: int) -> list[dict[str, Any]]:
    """From how many classes on ours is faster than gathering and forming all logits."""
    rows = []
    for classes in sizes:
        at = Shape(**{**asdict(shape), "classes": classes})
        found = {row["name"]: row["median_s"] for row in measure(at, ["gather", "ours"], rounds, memory=False)}
        rows.append({"classes": classes, **found})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", default="loss", choices=("loss", "ggm", "threshold"))
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(CONTENDERS))
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--peak", help="used by the program itself")
    parser.add_argument("--turn", help="used by the program itself")
    parser.add_argument("--shape", type=json.loads)
    asked = parser.parse_args()
    if asked.peak:
        print([peak(asked.peak, Shape(**asked.shape))])
        return
    if asked.turn:
        print(steps_here(Shape(**asked.shape), [asked.turn], 2)[asked.turn])
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = Shape(rows=asked.rows, device=device, dtype="bfloat16" if device == "cuda" else "float32")
    if asked.what == "ggm":
        print(json.dumps(one_token(8, 256, 768, 50_258, asked.rounds, device), indent=1))
    elif asked.what == "threshold":
        print(json.dumps(thresholds(shape, [27, 256, 1024, 2048, 4096, 8192, 16384], asked.rounds), indent=1))
    else:
        how = steps_apart if asked.fresh else steps_here
        for row in measure(shape, asked.only, asked.rounds, memory=True, steps=how):
            print(json.dumps(row))


if __name__ == "__main__":
    main()
