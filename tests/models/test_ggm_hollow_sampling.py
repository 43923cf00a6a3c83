"""Samples of GGM with order: random: rows alone, calls and rows sent, known sites, orders, few laws at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.models import ggm_hollow
from ggm_lightning.models.ggm import GGM
from ggm_lightning.sampling.random_order import RandomOrder
from ggm_lightning.sampling.sweeping import Sweeping
from tests.models.hollow_models import B, Elementwise, N, V, model


@pytest.fixture
def x() -> Tensor:
    return torch.randint(V, (B, N), generator=torch.Generator().manual_seed(1))


def test_rows_alone_are_the_rows_in_a_batch(x: Tensor) -> None:
    """To the bit: bounds, and samples, free and clamped."""
    hollow = GGM(Elementwise(), V, (N,), order="random", num_sweeps=3)
    row = torch.tensor([7, 3, 11])
    nats = hollow.nelbo(x, num_samples=4, row=row)
    known = torch.tensor([[True, False, False, False, True], [False] * 5, [True] * 5])
    for part in range(B):
        one = slice(part, part + 1)
        assert torch.equal(hollow.nelbo(x[one], num_samples=4, row=row[one]), nats[one])
    for sampler in ("heat_bath", "parallel"):
        every = hollow.sample(B, 6, sampler=sampler, row=row).x
        clamped = hollow.sample(B, 6, sampler=sampler, row=row, clamp=(x, known)).x
        for i in range(B):
            one = slice(i, i + 1)
            assert torch.equal(hollow.sample(1, 6, sampler=sampler, row=row[one]).x, every[one])
            clamp = (x[one], known[one])
            assert torch.equal(hollow.sample(1, 6, sampler=sampler, row=row[one], clamp=clamp).x, clamped[one])
        assert torch.equal(clamped[known], x[known])
        assert not torch.equal(clamped[1], x[1])


@pytest.mark.parametrize(("sampler", "num_steps", "calls"), [("heat_bath", 1, 15), ("gated", 1, 15)])
def test_exact_samplers_make_all_visits(sampler: str, num_steps: int, calls: int) -> None:
    assert model().sample(B, num_steps, sampler=sampler).network_calls == calls


@pytest.mark.parametrize(("num_steps", "calls"), [(3, 3), (6, 6), (9, 9), (8, 6), (15, 15), (99, 15)])
def test_parallel_makes_one_call_for_each_block(num_steps: int, calls: int) -> None:
    drawn = model().sample(B, num_steps, sampler="parallel", trace=True)
    assert drawn.network_calls == calls
    assert len(drawn.trace) == calls + 1


def test_the_corrector_draws_an_eighth_of_the_unknown_sites(x: Tensor) -> None:
    """At level 0, with no bit set, behind the chain; 16 sites: two at a time."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

        def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
            self.asked.append((z, t, visited))
            return torch.sin((z.sum(1, keepdim=True) - z)[..., None].double() + torch.arange(V))

    inner = Wide()
    corrected = GGM(inner, V, (16,), order="random", num_sweeps=2, corrector_steps=30, redenoise=0)
    known = torch.arange(16) < 7
    drawn = corrected.sample(B, 2, sampler="parallel", clamp=(torch.zeros(16).long(), known), trace=True)
    states = torch.stack(drawn.trace[-31:])
    moved = states[1:] != states[:-1]
    assert drawn.network_calls == 32
    assert not moved[..., :7].any()
    assert moved.sum(-1).max() == 2
    assert moved.any(0)[:, 7:].all()
    assert all(not t.any() and not visited.any() for _, t, visited in inner.asked[-30:])


def test_known_sites_are_shown_as_unvisited_and_cost_nothing(x: Tensor) -> None:
    """Two of five are known in every row: three sites are left to visit, and one round up and down again."""
    inner = Elementwise()
    hollow = GGM(inner, V, (N,), order="random", num_sweeps=3, redenoise=1)
    known = torch.tensor(
        [[True, False, False, False, True], [False, True, True, False, False], [True, True, True, False, False]]
    )
    hollow.sample(B, 1)
    inner.asked.clear()
    drawn = hollow.sample(B, 1, sampler="gated", clamp=(x, known))
    assert drawn.network_calls == len(inner.asked) == (3 + 1) * 3
    assert drawn.rows == (3 + 1) * (2 + 3 + 3)  # the last row has two sites to visit
    assert all(torch.equal(z[known[: len(z)]], x[known][: known[: len(z)].sum()]) for z, _ in inner.asked)
    assert not any(visited[known[: len(visited)]].any() for _, visited in inner.asked)
    visits = [int(visited[0].sum()) for _, visited in inner.asked]
    assert visits == [3, 2, 1] * 4


def test_known_sites_of_a_block_are_not_shown_as_visited(x: Tensor) -> None:
    """Blocks of two: the second one holds an unknown site and a known one."""
    inner = Elementwise()
    hollow = GGM(inner, V, (N,), order="random", num_sweeps=3, redenoise=1)
    known = torch.tensor([True, False, False, False, True])
    hollow.sample(B, 9, sampler="parallel")
    inner.asked.clear()
    drawn = hollow.sample(B, 9, sampler="parallel", clamp=(x, known.expand(B, N)))
    assert drawn.network_calls == len(inner.asked) == (3 + 1) * 2
    assert [int(visited[0].sum()) for _, visited in inner.asked] == [3, 2] * 4
    assert not any(visited[:, known].any() for _, visited in inner.asked)


def test_a_law_of_a_few_rows_at_a_time_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of five at a time: the same tokens to the bit and the same probabilities, of one network call."""

    def found() -> tuple[Tensor, Tensor, int]:
        hollow = GGM(Elementwise(), V, (N,), order="random", num_sweeps=3)
        z = torch.randint(V, (5, N), generator=torch.Generator().manual_seed(3))
        law = hollow.gibbs_law(z, torch.tensor([[0, 3, 1]] * 5))
        calls = hollow.network_calls
        return hollow.sample(5, 6, sampler="parallel").x, law.probs(), calls

    (x, probs, calls), whole_law = found(), ggm_hollow.BlockLaw._parts
    sizes = []

    def seen(law: ggm_hollow.BlockLaw) -> list[tuple[int, int]]:
        sizes.append(law.size)
        return whole_law(law)

    monkeypatch.setattr(ggm_hollow, "_LAW_ENTRIES", 2 * 3 * V)
    monkeypatch.setattr(ggm_hollow.BlockLaw, "_parts", seen)
    x_of_parts, probs_of_parts, calls_of_parts = found()
    assert torch.equal(x_of_parts, x)
    assert torch.equal(probs_of_parts, probs)
    assert calls_of_parts == calls == 1
    assert set(sizes) == {2, 3}  # three of blocks with two sites
    assert (probs.amax((0, 2)) < 1).tolist() == [True, True, False, True, False]  # the sites that move
    assert not torch.equal(probs[:, 0], probs[:1, 0].expand(5, V))  # rows have laws of their own


def test_a_fault_names_its_row_in_any_part(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Elementwise):
        def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
            given = super().forward(z, t, label, visited)
            if len(self.asked) > 4:
                given[3] = torch.nan
            return given

    monkeypatch.setattr(ggm_hollow, "_LAW_ENTRIES", 2 * 2 * V)
    with pytest.raises(ValueError, match=r"row 13, site \d: the network's logits are NaN"):
        GGM(Broken(), V, (N,), order="random").sample(5, 20, sampler="parallel", row=torch.arange(10, 15))


def test_each_row_has_an_order_of_its_own_in_each_sweep() -> None:
    inner = Elementwise()
    hollow = GGM(inner, V, (N,), order="random", num_sweeps=3)
    hollow.sample(40, 1)
    inner.asked.clear()
    hollow.sample(40, 1)
    firsts = torch.stack([(~visited).long().argmax(1) for _, visited in inner.asked[1::N]])  # undone first: [3, 40]
    assert all(len(sweep.unique()) == N for sweep in firsts)
    assert not torch.equal(firsts[0], firsts[1])
    assert firsts.flatten().bincount(minlength=N).min() > 8  # of 24, standard deviation 4.4


def test_samplers_of_the_other_order_are_refused() -> None:
    with pytest.raises(ValueError, match="order is given, but the model has one of its own"):
        model(order="raster").sample(B, 9, sampler=RandomOrder("gated"))
    with pytest.raises(ValueError, match="'Sweeping' is made for families that offer it, and GGM does not"):
        model().sample(B, 9, sampler=Sweeping("gated"))
