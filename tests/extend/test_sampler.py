"""docs/extend/sampler.md, followed word by word; its law is tested in tests/sampling/test_strangers_sampler.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.extend import pages

N = 64


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    page = "sampler.md"
    pages.write(page, tmp_path)
    x, unknown = np.zeros(N, np.int64), np.arange(N) % 3 == 0
    np.savez(tmp_path / "given.npz", x=x, mask=unknown)
    fit, sample, infill = pages.commands_of(page)
    pages.run_here(fit, tmp_path, *pages.QUICK)
    run = tmp_path / "runs" / "surely"
    assert (run / "samples" / "step-000002.txt").is_file()
    pages.run(sample, tmp_path)
    (drawn,) = run.glob("samples-*Surest*")
    with np.load(drawn / "samples.npz") as found:
        assert found["x"].shape == (4, N)
        assert int(found["network_calls"]) == N // 2  # two sites of a row in each step
    pages.run_here(infill, tmp_path)
    (filled,) = run.glob("infilled-*Surest*")
    with np.load(filled / "samples.npz") as found:
        assert (found["x"].reshape(-1, N)[:, ~unknown] == 0).all()
