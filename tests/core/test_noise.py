"""The counter-based uniforms: uniform, independent along every coordinate, and functions of their coordinates only."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ggm_lightning.core import noise, times


def draw(rows: int = 211, sites: int = 499, **kwargs: object) -> torch.Tensor:
    options = {"seed": 0, "step": 0, "row": torch.arange(rows), "num_sites": sites, **kwargs}
    return noise.uniform("mask", **options)


KNOWN = [
    [0.7838871013380425, 0.6096253382588664],
    [0.1779656589013897, 0.26102521032285975],
    [0.48970078382834525, 0.751531208437782],
]


def test_known_values_never_change() -> None:
    """Recorded samples and resumed runs rest on these; a change of the hash breaks both."""
    row = torch.tensor([0, 1, 7])
    values = noise.uniform("mask", seed=3, step=5, row=row, num_sites=2)
    np.testing.assert_array_equal(values.numpy(), np.array(KNOWN))


def test_uniform_on_the_open_interval() -> None:
    u = draw()
    assert u.dtype == torch.float64
    assert u.min() > 0
    assert u.max() < 1
    counts = torch.histc(u, 100, 0, 1)
    expected = u.numel() / 100
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi2 - 99) < 5 * np.sqrt(2 * 99)


@pytest.mark.parametrize("coordinate", ["site", "row", "step", "seed"])
def test_neighbours_are_uncorrelated_in_every_coordinate(coordinate: str) -> None:
    u = draw()
    other = {
        "site": u.roll(1, 1),
        "row": u.roll(1, 0),
        "step": draw(step=1),
        "seed": draw(seed=1),
    }[coordinate]
    correlation = np.corrcoef(u.flatten(), other.flatten())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(u.numel())


def test_coordinates_do_not_trade_places() -> None:
    """Row r of seed s is not row s of seed r, and streams differ."""
    a = noise.uniform("mask", seed=1, step=2, row=torch.tensor([3]), num_sites=5)
    for seed, step, row in ((2, 1, 3), (3, 2, 1), (1, 3, 2)):
        b = noise.uniform("mask", seed=seed, step=step, row=torch.tensor([row]), num_sites=5)
        assert not torch.equal(a, b)
    assert not torch.equal(a, noise.uniform("time", seed=1, step=2, row=torch.tensor([3]), num_sites=5))


def test_rows_and_prefixes_stand_alone() -> None:
    whole = draw(rows=13, sites=17)
    assert torch.equal(whole[5:6], noise.uniform("mask", seed=0, step=0, row=torch.tensor([5]), num_sites=17))
    assert torch.equal(whole[:, :3], draw(rows=13, sites=3))


def test_the_next_batch_of_a_row_is_new() -> None:
    assert not torch.equal(draw(step=1), draw(step=2))
    assert noise.integer_seed("dropout", seed=0, step=1) != noise.integer_seed("dropout", seed=0, step=2)
    assert 0 <= noise.integer_seed("dropout", seed=-4, step=1) < 2**63


def test_whole_seeds_differ_in_every_coordinate() -> None:
    base = {"seed": 3, "step": 5, "row": 7}
    seeds = {noise.integer_seed("dropout", **base), noise.integer_seed("block size", **base)}
    seeds |= {noise.integer_seed("dropout", **{**base, name: value + 1}) for name, value in base.items()}
    assert len(seeds) == 5
    assert noise.integer_seed("dropout", **base) == noise.integer_seed("dropout", **base)


@pytest.mark.parametrize("total", [1, 2, 49, 98, 103, 196])
def test_times_are_stratified_over_the_whole_global_batch(total: int) -> None:
    t = times.stratified(seed=0, step=4, row=torch.arange(total), total=total)
    assert t.shape == (total,)
    gaps = torch.diff(t.sort().values)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / total), rtol=0, atol=1e-12)
    last = times.stratified(seed=0, step=4, row=torch.arange(total)[-1:], total=total)  # another rank
    assert torch.equal(last, t[-1:])


def test_a_rows_own_times_are_stratified_and_its_own() -> None:
    t = times.stratified_per_row(seed=0, row=torch.tensor([2, 9, 5]), num_samples=7)
    gaps = torch.diff(t.sort(0).values, dim=0)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / 7), rtol=0, atol=1e-12)
    assert torch.equal(t[:, 1:2], times.stratified_per_row(seed=0, row=torch.tensor([9]), num_samples=7))
    assert len(t[0].unique()) == 3


def test_grids_reach_zero_and_know_their_names() -> None:
    for kind in times.GRIDS:
        grid = times.sampling_grid(7, kind)
        assert len(grid) == 8
        assert grid[0] == 1.0
        assert grid[-1] == 0.0
        assert all(a > b for a, b in itertools.pairwise(grid))
    with pytest.raises(ValueError, match="choose one of uniform, cosine"):
        times.sampling_grid(3, "linear")
    with pytest.raises(ValueError, match="at least one step"):
        times.sampling_grid(0)
