"""Over which times a bound's samples go: with one sample for each stratum or step, every one of them exactly once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import death
from ggm_lightning.models.base import Family
from ggm_lightning.models.markov import MarkovDiffusion
from tests.models.every_family import N, V, small

B, SAMPLES = 3, 7


def times_of(model: Family, num_samples: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The times of the corrupted states of a bound, [samples, b], in the order in which they are made."""
    found: list[Tensor] = []
    if isinstance(model, MarkovDiffusion):  # its states come from a table, by the numbers of their steps
        steps = model.step_of
        monkeypatch.setattr(model, "step_of", lambda t: (found.append(t), steps(t))[1])
    else:
        original = model.corrupt
        monkeypatch.setattr(model, "corrupt", lambda x, t, u: (found.append(t), original(x, t, u))[1])
    x = torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))
    model.nelbo(x, num_samples=num_samples, seed=4)
    # of a Markov process each time is asked twice: for the state, and for the terms
    return torch.stack(found[::2] if isinstance(model, MarkovDiffusion) else found)


def strata(share: Tensor) -> list[list[int]]:
    """Of each row, in which of len(share) equal parts of [0, 1) its samples lie."""
    return (share * len(share)).floor().long().sort(0).values.T.tolist()


EACH_ONCE = [list(range(SAMPLES))] * B


def test_continuous_times_have_one_sample_in_each_stratum(monkeypatch: pytest.MonkeyPatch) -> None:
    md4 = times_of(small("md4"), SAMPLES, monkeypatch)
    assert strata(md4) == EACH_ONCE
    assert len(md4[0].unique()) == B  # each row at times of its own
    genmd4 = small("genmd4")
    t = times_of(genmd4, SAMPLES, monkeypatch)
    assert float(t.min()) >= genmd4.first_time
    assert strata((t - genmd4.first_time) / (1 - genmd4.first_time)) == EACH_ONCE
    for name in ("fuji", "seq"):
        assert strata(times_of(small(name), SAMPLES, monkeypatch)[::2]) == EACH_ONCE  # the others are the latent's


def test_blackouts_times_are_even_in_the_logit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("blackout")
    *t, first = times_of(model, SAMPLES, monkeypatch)
    assert strata((1 - death.logit_of(torch.stack(t)) / death.last_logit(model.t_end)) / 2) == EACH_ONCE
    assert (first == model.grid[1]).all()


def test_every_visit_of_ggm_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("ggm")
    steps = model.sweeps.num_steps
    t = times_of(model, steps, monkeypatch)
    assert t.sort(0).values.T.tolist() == [list(range(1, steps + 1))] * B


@pytest.mark.parametrize(("name", "steps"), [("md4", 6), ("markov", 10), ("fuji", 6)])
def test_every_step_of_a_discrete_bound_is_asked_once(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(name) if name == "markov" else small(name, num_timesteps=steps)
    t = times_of(model, steps, monkeypatch)
    t = t[::2] if name == "fuji" else t
    grid = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    torch.testing.assert_close(t.sort(0).values, grid[:, None].expand(steps, B), rtol=0, atol=1e-15)


def test_every_step_of_blackouts_chain_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("blackout", bound="posterior")
    *t, _ = times_of(model, model.num_timesteps - 1, monkeypatch)
    assert torch.equal(torch.stack(t).sort(0).values, model.grid[2:, None].expand(-1, B))
