"""Times of a bound: where the states of a row stand among each other."""

from __future__ import annotations

import torch

from ggm_lightning.core import times


def test_what_states_came_to_stands_in_the_order_of_their_times() -> None:
    """Drawn, they begin anywhere (the control); of seven states each stands in a part of its own."""
    t = times.stratified_per_row(seed=0, row=torch.arange(50), num_samples=7)
    assert len(t.argmin(0).unique()) == 7
    ordered = times.by_time([10 * one for one in t], t)
    assert ordered.shape == (50, 7)
    assert torch.equal(ordered, 10 * t.T.sort(1).values)
    assert torch.equal((ordered / 10 * 7).floor(), torch.arange(7.0).double().expand(50, 7))
