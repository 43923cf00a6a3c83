"""docs/extend/network.md, followed word by word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.extend import pages


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    page = "network.md"
    pages.write(page, tmp_path)
    fit, sample, evaluate = pages.commands_of(page)
    pages.run_here(fit, tmp_path, *pages.QUICK)
    pages.run(sample, tmp_path)
    assert len(list(tmp_path.glob("runs/mixed/samples-*/samples.txt"))) == 1
    assert "bits" in pages.run_here(evaluate, tmp_path, "--limit=16")
    # control: without --trust nothing of the folder is imported
    (tmp_path / "mixer.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    words = ["sample", "--ckpt_path", "runs/mixed/last.ckpt", "--num_samples", "1"]
    refused = subprocess.run(
        [sys.executable, "-m", "ggm_lightning", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "--trust mixer" in refused.stderr
    assert "imported'" not in refused.stderr


def test_both_ways_give_the_same_numbers(tmp_path: Path) -> None:
    space: dict = {}
    exec(pages.files_of("network.md")["mixer.py"], space)
    torch.manual_seed(0)
    network = space["Mixer"](7, (5,), width=11)
    z, t = torch.randint(0, 8, (2, 5)), torch.rand(2)
    assert torch.equal(network(z, t), network.head(network.features(z, t)))
