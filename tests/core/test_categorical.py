"""Token draws: exact laws, the tail that a float32 race loses, nucleus and temperature, a row alone = in a batch."""

from __future__ import annotations

import math

import pytest
import torch

from ggm_lightning.core import categorical, noise
from ggm_lightning.core.categorical import Sharpening
from ggm_lightning.core.masking import MaskedLaw

V, SITES = 50_257, 3_000


def uniforms(stream: str, rows: int, seed: int = 0) -> torch.Tensor:
    return noise.uniform(stream, seed=seed, step=0, row=torch.arange(rows), num_sites=1)[:, 0]


def test_draw_is_the_inverse_of_the_cumulative_sum() -> None:
    logits = torch.tensor([[0.0, -math.inf, math.log(3.0)]]).expand(4, 3)
    drawn = categorical.draw(logits, torch.tensor([1e-9, 0.2499, 0.2501, 1 - 1e-12], dtype=torch.float64))
    assert drawn.tolist() == [0, 0, 2, 2]  # 1/4, nothing, 3/4: class 1 is never drawn, not even at the border


def test_frequencies_follow_the_law() -> None:
    rows = 200_000
    logits = torch.tensor([2.0, -1.0, 0.5, -3.0, 0.0, 1.0, -6.0])
    p = logits.double().softmax(0)
    counts = categorical.draw(logits.expand(rows, 7), uniforms("value", rows)).bincount(minlength=7)
    chi2 = ((counts - rows * p) ** 2 / (rows * p)).sum().item()
    assert chi2 < 6 + 4 * math.sqrt(12)


def test_the_other_nucleus_top_k_and_the_mode() -> None:
    """ReMDM's nucleus leaves out the class that crosses its mass; ties go together. Control: ours, which keeps it."""
    p = torch.tensor([[0.4, 0.3, 0.1, 0.1, 0.06, 0.04]], dtype=torch.float64)

    def kept(**options: object) -> list[bool]:
        return (categorical.probabilities(p.log(), Sharpening(**options))[0] > 0).tolist()

    assert kept(top_p=0.75, nucleus="inside") == [True, True, False, False, False, False]
    assert kept(top_p=0.75) == [True, True, True, True, False, False]
    assert kept(top_p=0.85, nucleus="inside") == [True, True, False, False, False, False]  # 3 and 4 are tied
    assert kept(top_p=0.95, nucleus="inside") == [True, True, True, True, False, False]
    assert kept(top_p=0.1, nucleus="inside") == [True, False, False, False, False, False]
    assert kept(top_k=2) == [True, True, False, False, False, False]
    assert kept(top_k=3) == [True, True, True, True, False, False]
    assert kept(top_k=99) == [True] * 6
    assert kept(top_k=2, top_p=0.5) == [True, False, False, False, False, False]  # .4 of .7 is more than half
    assert kept(temperature=0.0) == [True, False, False, False, False, False]
    tied = categorical.probabilities(torch.tensor([[2.0, -math.inf, 2.0]]), Sharpening(temperature=0.0))
    assert tied.tolist() == [[0.5, 0.0, 0.5]]
    logs = categorical.log_probabilities(p.log(), Sharpening(temperature=0.0))
    assert logs[0].tolist() == [0.0, *[-math.inf] * 5]
    u = torch.rand(1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide = torch.randn(1, 5000, generator=torch.Generator().manual_seed(1))
    assert int(categorical.draw(wide, u, Sharpening(temperature=0.0))) == int(wide.argmax())
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="logits are"):
            categorical.draw(torch.full((1, 3), bad), u, Sharpening(temperature=0.0))


def test_temperature_and_nucleus() -> None:
    p = torch.tensor([[0.4, 0.3, 0.1, 0.1, 0.06, 0.04]], dtype=torch.float64)
    keep = categorical.probabilities(p.log(), Sharpening(top_p=0.75))
    expected = torch.tensor([[0.4, 0.3, 0.1, 0.1, 0.0, 0.0]]).double() / 0.9  # ties at the threshold all stay
    torch.testing.assert_close(keep, expected)
    torch.testing.assert_close(categorical.probabilities(p.log(), Sharpening(temperature=0.5)), p**2 / (p**2).sum())
    assert (categorical.probabilities(p.log(), Sharpening(top_p=1e-9)) > 0).sum() == 1
    for bad in ({"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": 0}, {"nucleus": "outside"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            categorical.draw(p, torch.tensor([0.5], dtype=torch.float64), Sharpening(**bad))


def test_a_row_alone_is_bit_for_bit_the_row_in_a_batch() -> None:
    torch.manual_seed(0)
    logits, u = 3 * torch.randn(29, 1013), uniforms("value", 29)
    for options in ({}, {"temperature": 0.7, "top_p": 0.9}):
        whole = categorical.unnormalised(logits, Sharpening(**options))
        batch = categorical.draw(logits, u, Sharpening(**options))
        for i in range(29):
            assert torch.equal(whole[i : i + 1], categorical.unnormalised(logits[i : i + 1], Sharpening(**options)))
            assert batch[i] == categorical.draw(logits[i : i + 1], u[i : i + 1], Sharpening(**options))[0]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, u = torch.randn(31, 7), uniforms("value", 31)
    whole = categorical.draw(logits, u)
    monkeypatch.setattr(categorical, "_CHUNK_ENTRIES", 20)
    assert torch.equal(whole, categorical.draw(logits, u))
    assert categorical.draw(logits[:0], u[:0]).shape == (0,)


def many_classes(rows: int, spread: float, dtype: torch.dtype) -> torch.Tensor:
    g = torch.Generator().manual_seed(5)
    return spread * torch.randn(rows, V, generator=g, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_two_levels_find_the_class_that_one_finds(dtype: torch.dtype, top_p: float) -> None:
    logits, u = many_classes(53, 2.0, dtype), uniforms("value", 53)
    logits[0, : V - 3] = -math.inf  # whole blocks of nothing
    logits[1, 1000:] = -math.inf
    u[2], u[3], u[1] = 1 - 2.0**-53, 2.0**-53, 1 - 2.0**-53
    drawn = categorical.draw(logits, u, Sharpening(0.7, top_p))
    cumulative = categorical.unnormalised(logits, Sharpening(0.7, top_p)).cumsum(-1)
    expected = torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:], right=True)[:, 0]
    near = torch.tensor([1, 2])  # where all of the sum is asked for: the last class that has any
    assert bool((logits.double().gather(1, drawn[:, None]) > -math.inf).all())
    assert drawn[1] < 1000
    others = torch.ones(53, dtype=torch.bool).index_fill(0, near, False)
    assert torch.equal(drawn[others], expected[others])


def test_top_k_alone_where_there_are_many_classes() -> None:
    """Both the draw in two levels and the logarithms leave the others out. Control: without top_k they are drawn."""
    logits, u = many_classes(53, 0.1, torch.float32), uniforms("value", 53)
    largest = logits.topk(3).indices
    few = Sharpening(top_k=3)
    assert bool((largest == categorical.draw(logits, u, few)[:, None]).any(1).all())
    assert not bool((largest == categorical.draw(logits, u)[:, None]).any(1).all())
    kept = categorical.log_probabilities(logits, few) > -math.inf
    assert torch.equal(kept, torch.zeros_like(kept).scatter(1, largest, True))


def test_what_one_kernel_draws() -> None:
    """core/draw_kernels.py knows a positive temperature and the nucleus that keeps the class that crosses."""
    for known in ({}, {"temperature": 0.7}, {"top_p": 0.8}, {"nucleus": "inside"}):
        assert Sharpening(**known).in_one_kernel
    for unknown in ({"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.8, "nucleus": "inside"}):
        assert not Sharpening(**unknown).in_one_kernel


@pytest.mark.parametrize("spread", [3.0, 1.0, 0.01])
def test_the_nucleus_of_the_search_is_that_of_a_sort(spread: float) -> None:
    """Nuclei of a few classes, of some thousands, of nearly all: each of the widths that are looked at."""
    logits = spread * (10 * many_classes(3, 1.0, torch.float64)).round() / 10  # with ties
    p = categorical.unnormalised(logits)
    for top_p in (0.1, 0.9, 0.999):
        ordered = p.sort(-1, descending=True).values
        first = (ordered.cumsum(-1) < top_p * p.cumsum(-1)[:, -1:]).sum(-1, keepdim=True)
        expected = torch.where(p >= ordered.gather(-1, first), p, 0.0)
        assert torch.equal(categorical.unnormalised(logits, Sharpening(top_p=top_p)), expected)
        kept = expected.sum(-1) / p.sum(-1)
        assert bool((kept >= top_p - 1e-12).all())
        # control: without the smallest of them, which were found by a search, too little is left
        less = torch.where(p > ordered.gather(-1, first), p, 0.0).sum(-1) / p.sum(-1)
        assert bool((less < top_p).all())


def test_a_row_of_many_classes_alone_is_the_row_in_a_batch() -> None:
    logits, u = many_classes(29, 1.0, torch.float32), uniforms("value", 29)
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for options in ({}, {"temperature": 0.7, "top_p": 0.9}):
                batch = categorical.draw(logits, u, Sharpening(**options))
                alone = [categorical.draw(logits[i : i + 1], u[i : i + 1], Sharpening(**options)) for i in range(29)]
                assert torch.equal(batch, torch.cat(alone))
        finally:
            torch.set_num_threads(before)


# ----------------------------------------------------------------------------------------------------- the tail


def tail_logits() -> torch.Tensor:
    """Half the classes common, half rare: the rare half holds 1/6 of the mass, each 2e-6 of it (as in a text model)."""
    logits = torch.zeros(V)
    logits[: V // 2] = math.log(0.2)
    return logits


def our_step(reveal: float, repeats: int) -> tuple[int, int, int]:
    """(sites, revealed, rare among them) over `repeats` draws of SITES masked sites through MaskedLaw."""
    logits = tail_logits()
    revealed = rare = 0
    for i in range(repeats):
        zt = torch.full((1, SITES), V)
        law = MaskedLaw(zt, torch.full((1, SITES), reveal).double(), lambda m: logits.expand(int(m.sum()), V), V)
        z = law.draw(lambda stream, i=i: noise.uniform(stream, seed=i, step=0, row=torch.tensor([0]), num_sites=SITES))
        revealed += int((z != V).sum())
        rare += int((z < V // 2).sum())
    return SITES * repeats, revealed, rare


def float32_race(reveal: float, sites: int) -> tuple[int, int, int]:
    """The published way: one Gumbel race of all V tokens and the mask, in float32 with 24-bit uniforms.

    Classes of equal probability race against each other only through their largest uniform, so that one is drawn from
    its own law on the 24-bit grid, P(max < (k + 1) / 2^24) = ((k + 1) / 2^24)^K, instead of K times per site.
    """
    generator = torch.Generator().manual_seed(0)

    def gumbel(group: int) -> torch.Tensor:
        u = torch.rand(sites, generator=generator, dtype=torch.float64) ** (1 / group)
        u = (torch.floor(u * 2**24) / 2**24).float().clamp(min=torch.finfo(torch.float32).tiny)
        return -torch.log(-torch.log(u))

    log_mu = tail_logits().log_softmax(0)
    race = [
        gumbel(V // 2) + log_mu[0] + math.log(reveal),
        gumbel(V - V // 2) + log_mu[-1] + math.log(reveal),
        gumbel(1) + math.log1p(-reveal),
    ]
    winner = torch.stack(race).argmax(0)
    return sites, int((winner < 2).sum()), int((winner == 0).sum())


def deviations(sites: int, revealed: int, rare: int, reveal: float) -> tuple[float, float]:
    """Reveal rate and rare share among the revealed, in standard errors from the truth."""
    share = float(tail_logits().double().softmax(0)[: V // 2].sum())
    rate = (revealed / sites - reveal) / math.sqrt(reveal * (1 - reveal) / sites)
    mass = (rare / max(revealed, 1) - share) / math.sqrt(share * (1 - share) / max(revealed, 1))
    return rate, mass


@pytest.mark.parametrize("num_steps", [100, 1000])
def test_rare_tokens_and_reveal_rate_are_exact(num_steps: int) -> None:
    rate, mass = deviations(*our_step(1 / num_steps, repeats=60), reveal=1 / num_steps)
    assert abs(rate) < 4
    assert abs(mass) < 4


@pytest.mark.parametrize(
    ("num_steps", "sites"), [pytest.param(100, 12_000_000, marks=pytest.mark.slow), (1000, 6_000_000)]
)
def test_control_the_float32_race_fails_the_same_check(num_steps: int, sites: int) -> None:
    rate, mass = deviations(*float32_race(1 / num_steps, sites), reveal=1 / num_steps)
    assert min(rate, mass) < -40  # ten times the tolerance of the test above


@pytest.mark.parametrize("v", [7, 1025, 50_257])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_no_rows_draw_nothing(v: int, top_p: float) -> None:
    """A step may reveal no site at all."""
    drawn = categorical.draw(torch.zeros(0, v), torch.zeros(0, dtype=torch.float64), Sharpening(top_p=top_p))
    assert drawn.shape == (0,)
    assert drawn.dtype == torch.int64
