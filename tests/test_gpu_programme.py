"""`make gpu` practised on a CPU: every part runs with tiny sizes, and one that fails costs no other."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from ggm_lightning.networks.blocks import Stack
from tests.benchmarks import gpu

QUICK = [part for part in gpu.PARTS if part not in ("fit", "small")]  # a process of its own; three compilations


def run(file: Path, *more: str) -> dict[str, object]:
    gpu.main(["--tiny", "--device", "cpu", "--out", str(file), *more])
    return json.loads(file.read_text())


@pytest.mark.filterwarnings("ignore")
def test_every_part_says_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(tmp_path / "gpu.json", "--only", *QUICK)
    parts = {name: found[name] if isinstance(found[name], list) else [found[name]] for name in QUICK}
    assert [name for name, rows in parts.items() if "left_out" in rows[0]] == ["gate"]  # there is no GPU
    assert {row["name"]: bool(row["why"]) for row in parts["head"]}["ours"] is False
    assert all(row["tokens_s"] > 0 for row in parts["steps"])
    assert {row["precision"] for row in parts["sampling"]} == {"32", "bf16"}
    assert parts["memory"][0]["predicted_gb"] > 0
    assert set(found["seconds"]) == set(QUICK)
    shown = capsys.readouterr().out
    assert all(name in shown for name in QUICK)


def test_what_fails_or_has_no_time_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: gpu.Run) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu.PARTS, "gate", broken)
    found = run(tmp_path / "a.json", "--only", "gate", "ceiling")
    assert found["gate"] == {"left_out": "RuntimeError: no such kernel"}
    assert found["ceiling"]["product_tflops"] > 0
    found = run(tmp_path / "b.json", "--only", "ceiling", "--budget", "1")
    assert found["ceiling"] == {"left_out": "no time left"}


@pytest.mark.slow
def test_a_small_network_through_the_command(tmp_path: Path) -> None:
    found = run(tmp_path / "gpu.json", "--only", "fit")
    assert found["fit"]["tokens_s"] > 0


@pytest.mark.slow
def test_a_small_network_in_three_ways(tmp_path: Path) -> None:
    found = run(tmp_path / "gpu.json", "--only", "small")
    rows = {row["blocks"]: row for row in found["small"]}
    assert list(rows) == ["eager", "compiled", "graphs"]
    assert all(row["apart"] < 1e-4 for row in rows.values())


def test_a_graph_that_computes_something_else_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control, with nothing compiled."""

    def wrong(stack: Stack) -> None:
        stack._as_graph = lambda state, *given, last=None: tuple(2 * part for part in state)

    monkeypatch.setattr(Stack, "compile_as_graph", wrong)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    rows = run(tmp_path / "gpu.json", "--only", "small")["small"]
    assert [row["apart"] > 1e-3 for row in rows] == [False, False, True]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="no CUDA device here"):
        gpu.main([])
