"""Sources with a computable likelihood: exact by enumeration, and drawn from the law they state."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ggm_lightning.data.toy.synthetic import MarkovChain, Sawtooth


def _all_rows(num_classes: int, length: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(num_classes), repeat=length)))


def test_the_chain_of_the_documentation() -> None:
    chain = MarkovChain()
    assert chain.entropy == pytest.approx(1.4550054, abs=1e-7)
    assert chain.entropy_rate == pytest.approx(1.4414308, abs=1e-7)
    assert chain.marginal_entropy == pytest.approx(2.3102105, abs=1e-7)
    assert chain.references()["entropy"] == pytest.approx(chain.entropy / math.log(2))
    assert chain.references()["independent tokens"] == pytest.approx(chain.marginal_entropy / math.log(2))


def test_making_a_chain_leaves_the_global_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it write into it for a moment, in which another thread might draw: two ranks of one process had two
    chains."""
    torch.manual_seed(8)
    drawn = torch.distributions.Dirichlet(torch.full((11,), 0.3, dtype=torch.float64)).sample((11,))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    monkeypatch.setattr(torch, "manual_seed", None)
    assert torch.equal(MarkovChain(source_seed=8).transition, drawn)
    monkeypatch.undo()
    assert (torch.rand(3) == expected).all()


@pytest.mark.parametrize(("num_symbols", "length"), [(2, 5), (3, 4), (7, 3), (5, 1)])
def test_the_chain_by_enumeration(num_symbols: int, length: int) -> None:
    chain = MarkovChain(num_symbols=num_symbols, length=length, source_seed=3)
    logp = chain.log_likelihood(_all_rows(num_symbols, length))
    p = logp.exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert -(torch.xlogy(p, p)).sum().item() / length == pytest.approx(chain.entropy, abs=1e-12)
    assert torch.allclose(chain.stationary @ chain.transition, chain.stationary, atol=1e-13)
    last = torch.zeros(num_symbols, dtype=torch.float64).index_add(0, _all_rows(num_symbols, length)[:, -1], p)
    assert torch.allclose(last, chain.stationary, atol=1e-12)  # a stationary start


def test_draws_follow_the_chain() -> None:
    """Bigram counts at the first and last pair: chi-square within 6 standard deviations; a shifted chain fails."""
    chain = MarkovChain(num_train=20_000, num_val=10)
    x = chain.load("train").x.astype(np.int64)
    joint = (chain.stationary[:, None] * chain.transition).numpy()
    for pair in (x[:, :2], x[:, -2:]):
        counts = np.bincount(pair[:, 0] * 11 + pair[:, 1], minlength=121).reshape(11, 11)
        for law, holds in ((joint, True), (np.roll(joint, 1, 1), False)):
            used = law * len(x) > 5
            expected = law[used] * len(x)
            excess = (((counts[used] - expected) ** 2 / expected).sum() - used.sum()) / (2 * used.sum()) ** 0.5
            assert (excess < 6) if holds else (excess > 60)
    nats = -chain.log_likelihood(torch.from_numpy(x)) / 64
    assert abs(nats.mean().item() - chain.entropy) < 4 * nats.std().item() / len(x) ** 0.5


def test_data_are_the_same_each_time_and_the_splits_differ() -> None:
    for source in (MarkovChain(num_train=50, num_val=50), Sawtooth(num_train=50, num_val=50)):
        assert (source.load("train").x == source.load("train").x).all()
        assert (source.load("train").x != source.load("val").x).any()
    assert (MarkovChain(num_train=9).load("train").x != MarkovChain(num_train=9, source_seed=1).load("train").x).any()


def test_the_sawtooth_by_enumeration() -> None:
    saw = Sawtooth(length=7, saws=2, scale=0.05)
    p = saw.log_likelihood(_all_rows(2, 7)).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    ones = _all_rows(2, 7).double().T @ p
    assert torch.allclose(ones, torch.full((7,), 0.5, dtype=torch.float64), atol=1e-6)  # every phase is as likely


def test_the_sawtooth_integral_against_a_finer_grid() -> None:
    saw, fine = Sawtooth(), Sawtooth()
    fine.grid_points = 16384
    x = torch.from_numpy(saw.draw(64, np.random.default_rng(1)))
    assert (saw.log_likelihood(x) - fine.log_likelihood(x)).abs().max() < 1e-3
    fine.grid_points = 16
    assert (saw.log_likelihood(x) - fine.log_likelihood(x)).abs().max() > 1e-2  # control: a grid that is too coarse


def test_the_sawtooth_entropy_of_the_specification() -> None:
    """67.90 +- .06 nats, and two independent estimates of 8192 draws agree with it within 4 standard errors."""
    for seed in (0, 1):
        mean, stderr = Sawtooth().entropy_estimate(seed=seed)
        assert 0.03 < stderr < 0.09
        assert abs(mean - 67.90) < 4 * math.hypot(stderr, 0.06)
    lines = Sawtooth().references()
    assert lines["independent tokens"] == pytest.approx(1, abs=1e-9)
    assert (lines["independent tokens"] - lines["entropy"]) * 128 * math.log(2) == pytest.approx(20.83, abs=0.35)


def test_entropy_given_the_phase() -> None:
    p = Sawtooth().probabilities((torch.arange(2048, dtype=torch.float64) + 0.5) / 4096)
    nats = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).sum(1).mean()
    assert nats.item() == pytest.approx(65.23, abs=0.005)


def test_both_feed_batches_and_decode() -> None:
    chain = MarkovChain(num_train=10, num_val=10, global_batch_size=5)
    chain.setup("fit")
    x = next(iter(chain.train_dataloader()))["x"]
    assert (x.shape, chain.num_classes, chain.shape) == ((5, 64), 11, (64,))
    assert chain.decode(x)[0] == " ".join(map(str, x[0].tolist()))
    saw = Sawtooth(num_train=10, num_val=10)
    assert (saw.num_classes, saw.shape) == (2, (128,))
    row = saw.load("val")[[3]]["x"]
    assert saw.decode(row) == ["".join(map(str, row[0].tolist()))]


def test_impossible_sources_are_refused() -> None:
    with pytest.raises(ValueError, match="num_symbols 1"):
        MarkovChain(num_symbols=1)
    with pytest.raises(ValueError, match=r"scale 0.5 in \(0, .5\)"):
        Sawtooth(scale=0.5)
