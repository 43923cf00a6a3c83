"""MarkovDiffusion with rates of one's own: a class, also of rates that change with time, and a .npy file. Bound and
sampler by enumeration, as in test_markov_exact.py for the processes that have a name."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_lightning.core.rates import MaskAndReplace, Rates
from ggm_lightning.exact import chains
from ggm_lightning.exact.networks import Equal
from ggm_lightning.models.base import Family
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.rundir import building
from tests.models.test_markov_exact import P0, RING, TWO, V, bound, model_of, states

WARM = torch.tensor(RING, dtype=torch.float64)  # four states for three classes


class Turning(Rates):
    """From one matrix to its transpose, in seven pieces: they do not commute."""

    num_pieces = 7

    def rates(self, num_classes: int, time: float) -> Tensor:
        share = time / 3
        return (1 - share) * WARM + share * WARM.T


class Warped(Rates):
    def rates(self, num_classes: int, time: float) -> Tensor:
        return WARM

    def elapsed(self, time: Tensor) -> Tensor:
        return time * (1 + time) / 4


class Both(Turning):
    """The rates turn, and run faster and faster."""

    def elapsed(self, time: Tensor) -> Tensor:
        return time * (1 + time) / 4


OWN = [Turning(), Warped(), Both(), MaskAndReplace(replaced=1.5, until=2.0, num_pieces=9)]


def kind(rates: Rates) -> str:
    return type(rates).__name__


@pytest.mark.parametrize("own", OWN, ids=kind)
@pytest.mark.parametrize("num_timesteps", [1, 4])
@pytest.mark.parametrize("parametrisation", ["prior", "posterior"])
def test_one_site_has_an_exact_bound(own: Rates, num_timesteps: int, parametrisation: str) -> None:
    """E bound = entropy + KL(p_1 || prior). Control: another law's denoiser."""
    options = {"num_timesteps": num_timesteps, "t_end": 3.0, "parametrisation": parametrisation}
    model = model_of(P0, own, **options)
    p0 = torch.zeros(4, dtype=torch.float64)
    p0[:V] = model.network.law.p
    p1 = model.process.marginal(p0, model.tau(torch.ones(1)))[0]
    entropy = -float(torch.xlogy(p0, p0).sum())
    prior_gap = float((p1 * (torch.log(p1) - torch.log(model.prior_law))).sum())
    assert float(model.network.law.p @ bound(model)) == pytest.approx(entropy + prior_gap, abs=1e-10)
    worse = model_of(np.array([0.2, 0.5, 0.3]), own, **options)
    assert float(model.network.law.p @ bound(worse)) > entropy + prior_gap + 1e-3


@pytest.mark.parametrize("own", OWN, ids=kind)
def test_equal_logits_begin_at_n_ln_v(own: Rates) -> None:
    model = MarkovDiffusion(Equal(V), V, (2,), process=own, num_timesteps=5, t_end=3.0)
    assert (bound(model) - 2 * math.log(V)).abs().max() < 1e-10


@pytest.mark.parametrize("own", OWN, ids=kind)
def test_one_site_is_drawn_exactly_in_any_number_of_steps(own: Rates, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the data's own law at t = 1. Control: steps as if P(x_t | x_s) were that of t - s alone."""
    model = model_of(P0, own, t_end=3.0)
    p0 = torch.cat([model.network.law.p, torch.zeros(1, dtype=torch.float64)])
    model._prior = model.process.marginal(p0, model.tau(torch.ones(1)))[0]
    for num_steps in (1, 3, 8):
        assert (chains.markov(model, num_steps) - model.network.law.p).abs().max() < 1e-12
    if own.num_pieces > 1:
        monkeypatch.setattr(model._process, "between", lambda t, s: model._process.transition(t - s))
        assert (chains.markov(model, 3) - model.network.law.p).abs().max() > 1e-4


@pytest.mark.parametrize("own", OWN, ids=kind)
def test_samples_and_known_sites(own: Rates) -> None:
    """8,000 rows of two sites against the enumerated law of six steps, and the estimated bound against its sum."""
    model = model_of(TWO, own, t_end=3.0)
    drawn = model.sample(8000, 6, seed=1)
    expected = chains.markov(model, 6).numpy()
    counts = np.bincount(model.network.law.index(drawn.x).numpy(), minlength=V**2)

    def chi2(law: np.ndarray) -> tuple[float, float]:
        keep = law * 8000 > 5
        found = ((counts - 8000 * law)[keep] ** 2 / (8000 * law[keep])).sum()
        return found, keep.sum() - 1 + 4 * math.sqrt(2 * keep.sum())

    assert chi2(expected)[0] < chi2(expected)[1]
    wrong = chains.markov(model_of(TWO, "uniform", t_end=0.1), 6).numpy()
    assert chi2(wrong)[0] > 10 * chi2(expected)[1]
    known = model.sample(50, 6, clamp=(torch.tensor([2, 0]), torch.tensor([True, False])))
    assert (known.x[:, 0] == 2).all()
    likely = int(model.network.law.p.argmax())
    nats = model.nelbo(model.network.law.x[likely].expand(3000, 2), num_samples=4, seed=3)
    assert abs(float(nats.mean() - bound(model)[likely])) < 4 * float(nats.std()) / 3000**0.5
    assert bool(torch.isfinite(model.loss(model.network.law.x)))
    assert len(states(model)) == 16


def test_a_class_a_file_and_the_numbers_are_one_model(tmp_path: Path) -> None:
    """To the bit; control: the transpose."""
    path = tmp_path / "ring.npy"
    np.save(path, WARM.numpy())
    constant = type("Constant", (Rates,), {"rates": lambda self, num_classes, time: WARM})()
    x = torch.tensor([[0, 1], [2, 1], [1, 1]])
    values = [
        MarkovDiffusion(Equal(V), V, (2,), process=process, num_timesteps=5).nelbo(x)
        for process in (RING, str(path), constant)
    ]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    np.save(path, WARM.numpy().T)
    assert not torch.equal(MarkovDiffusion(Equal(V), V, (2,), process=str(path), num_timesteps=5).nelbo(x), values[0])


def test_what_a_file_held_is_carried_along(tmp_path: Path) -> None:
    path = tmp_path / "ring.npy"
    np.save(path, WARM.numpy())
    model = MarkovDiffusion(Equal(V), V, (2,), process=str(path))
    path.unlink()
    again = MarkovDiffusion(Equal(V), V, (2,), process=str(path), **model.carried_arguments())
    assert torch.equal(again.process.L, model.process.L)
    for process in ("uniform", RING, Warped()):
        assert MarkovDiffusion(Equal(V), V, (2,), process=process).carried_arguments() == {}
    with pytest.raises(ValueError, match="there is no such file"):
        MarkovDiffusion(Equal(V), V, (2,), process=str(path))
    with pytest.raises(ValueError, match="matrix is given beside process 'uniform'"):
        MarkovDiffusion(Equal(V), V, (2,), matrix=RING)


def test_amounts_are_asked_for_by_the_class() -> None:
    class Levels(Warped):
        needs_order = True

    needs = [MarkovDiffusion(Equal(V), V, (2,), process=p).needs_order for p in (Levels(), Warped(), "gaussian", RING)]
    assert needs == [True, False, True, False]


DESCRIBED = {
    "numbers": ({"matrix": RING}, None),
    "ragged": ({"matrix": [[0.0, 1.0], [1.0]]}, "process: no matrix of numbers"),
    "texts": ({"matrix": [["a"]]}, "matrix is"),
    "a class in it": ({"matrix": [[{"class_path": "os.system"}]]}, "os.system, which is not of this package"),
    "no file": ({}, "there is no such file"),
    "rates of a stranger": (
        {"process": {"class_path": "payload.Rates"}},
        "payload.Rates, which is not of this package",
    ),
    "another class": ({"process": {"class_path": "ggm_lightning.core.schedules.Linear"}}, "is no Rates"),
    "rates of ours": ({"process": {"class_path": "ggm_lightning.core.rates.MaskAndReplace"}}, None),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_what_a_strangers_checkpoint_may_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder of checkpoints makes numbers and classes of this package, and nothing else."""
    monkeypatch.chdir(tmp_path)
    given, message = DESCRIBED[name]
    transformer = {"feature_dim": 8, "num_heads": 2, "num_layers": 1, "num_classes": 3}
    network = {"class_path": "ggm_lightning.networks.transformer.Transformer", "init_args": transformer}
    arguments = {"network": network, "num_classes": 3, "shape": [2], "process": "ring.npy"} | given
    section = {"class_path": "ggm_lightning.models.markov.MarkovDiffusion", "init_args": arguments}
    if message is None:
        assert building.build(section, Family).process.num_states == 4
        return
    with pytest.raises(ValueError, match=message) as caught:
        building.build(section, Family)
    assert "\n" not in str(caught.value)
