"""What a validation of LDDM says of the latent: both parts of the bound, oracle accuracy, and the line on its price."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_lightning.core import gaussian
from ggm_lightning.metrics.latent import LatentUse, Probe, does_not_pay
from ggm_lightning.models import lddm_probes
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.models.readout import Readout
from ggm_lightning.report.figures import words_of
from ggm_lightning.report.story import Run, Story
from tests.models.latent_bits import PAIRS, UNIT, LogSNR, P, seq
from tests.models.test_lddm import validated


def test_the_parts_add_up_to_the_bound_and_accuracy_stands_beside_chance() -> None:
    useful, _ = validated(seq(gaussian.Sqrt(), UNIT))
    assert useful["val/bpd_tokens"] + useful["val/bpd_latent"] == pytest.approx(useful["val/bpd"], abs=1e-5)
    assert useful["val/bpd_latent"] > 0.1
    assert useful["val/oracle_accuracy"] > 0.95
    assert useful["val/oracle_chance"] < 0.7
    constant, _ = validated(seq(gaussian.Sqrt(), torch.zeros(4).double()))
    assert constant["val/bpd_latent"] == pytest.approx(0, abs=1e-3)
    assert constant["val/latent_saves"] == pytest.approx(0, abs=1e-9)
    assert constant["val/oracle_accuracy"] == pytest.approx(constant["val/oracle_chance"], abs=1e-9)


def test_oracle_accuracy_is_the_probability_of_the_truth() -> None:
    """One step of two bits, given z_1 at SNR e: by quadrature over its noise. Control: with another row's latent."""
    model = seq(LogSNR(1.0, -6.0))
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(96))
    a, s = (f(torch.zeros(()).double()) for f in (model.latent_schedule.alpha, model.latent_schedule.masked_fraction))
    right = []
    for i, x in enumerate(PAIRS):
        latent = (a.sqrt() * UNIT[i] + s.sqrt() * nodes).reshape(-1, 1, 1)
        law = model.predict(torch.full((96, 2), 2), torch.ones(96), latent, torch.zeros(96).double(), None)[0]()
        p = law.softmax(-1).gather(-1, x.repeat(96)[:, None]).reshape(96, 2).mean(1)
        right.append(float((weights / weights.sum() * p).sum()))
    x = PAIRS.repeat(512, 1)
    probe = lddm_probes.of_rows(model, x, None, 3, torch.arange(len(x)))
    found = probe.right.reshape(-1, 2).mean(1).reshape(-1, 4)
    assert len(probe.right) == 4096
    assert (found.mean(0) - torch.tensor(right)).abs().max() < 4 * float(found.std(0).max()) / math.sqrt(512)
    assert float(probe.chance.mean()) < sum(right) / 4 - 0.1


def test_sites_are_spread_over_the_rows() -> None:
    """Of more sites than are looked at every row has its share; of fewer all are."""
    x = torch.zeros(300, 32).long()
    logits = torch.where(torch.arange(300)[:, None, None] < 150, 0.0, torch.tensor([9.0, 0.0])).expand(300, 32, 2)
    p = lddm_probes.probability_of_truth(Readout(logits.contiguous(), None, False), x, 2)
    assert len(p) == 4096
    assert float((p < 0.6).double().mean()) == pytest.approx(0.5, abs=1e-3)
    assert len(lddm_probes.probability_of_truth(Readout(logits[:3].contiguous(), None, False), x[:3], 2)) == 96


EVEN = torch.arange(8).repeat(1000).reshape(-1, 2)  # 3 bits a token, if they are independent


def use_of(cost: float, saves: float, without: float, x: Tensor = EVEN) -> dict[str, Tensor]:
    """Of rows of two tokens of eight classes: bits per token."""
    metric = LatentUse(3, 2, 8)
    nats, one = 2 * math.log(2), torch.ones(1)
    probe = Probe(one * saves * nats, one * without * nats, one, one / 3)
    metric.update(x, torch.zeros(1, 3, 1), one * 1.5 * nats, one * cost * nats, probe)
    return metric.compute()


def test_a_latent_that_costs_more_than_it_saves_is_said_once_and_not_in_stage_one() -> None:
    use = use_of(2.0, 3.0, 0.5)  # another row's latent misleads: what counts is the smaller
    assert {name: round(float(use[name]), 6) for name in ("bpd_tokens", "bpd_latent", "latent_saves")} == {
        "bpd_tokens": 1.5,
        "bpd_latent": 2.0,
        "latent_saves": 0.5,
    }
    watch, recipe = lddm_probes.Watch(3, 2, 8), Recipe(stage1_steps=10)
    assert watch.lines(use, recipe, 10) == []
    (line,) = watch.lines(use, recipe, 11)
    assert line.startswith("the latent costs 2 and saves 0.5 bits per token at most")
    assert watch.lines(use, recipe, 12) == []
    assert lddm_probes.Watch(3, 2, 8).lines(use_of(0.4, 3.0, 0.5), recipe, 11) == []
    assert does_not_pay(0.5, 0.5) is None
    # never more than what independent tokens would cost less what these do: 3 - 1.5, and less of uneven ones
    assert float(use_of(2.0, 9.0, 8.0)["latent_saves"]) == pytest.approx(1.5, abs=1e-3)
    assert float(use_of(2.0, 9.0, 8.0, EVEN % 2)["latent_saves"]) == 0
    collapsed = lddm_probes.Watch(3, 2, 8).lines(use_of(1.0, 0.0, 0.0), recipe, 11)
    assert ["of no use" in line for line in collapsed] == [True, False]
    assert "saves 0 bits" in collapsed[1]


def test_the_report_says_the_same() -> None:
    """After stage 1; a run without a latent has no such words."""

    def words(cost: float, saves: float, step: int) -> list[str]:
        values = {"val/bpd": 1.5 + cost, "val/bpd_tokens": 1.5, "val/bpd_latent": cost, "val/latent_saves": saves}
        metrics = {name: [(step, value)] for name, value in values.items()}
        story = Story(model="SeqLDDM", step=step, stage1_steps=10)
        return words_of(Run(Path(), story, metrics, ""))

    assert words(2.0, 0.5, 20) == [
        "Of the bits per token 1.5 are the tokens' given the latent, 2 the latent's.",
        "The latent costs 2 and saves 0.5 bits per token at most: without it the bound were better.",
    ]
    assert len(words(0.3, 0.5, 20)) == 1
    assert not any("costs" in word for word in words(2.0, 0.5, 10))


def test_the_mean_of_the_probe_is_over_the_law_of_the_source() -> None:
    """The gain of exact denoisers over rows of P is what the latent says of both tokens at most: above nothing, below
    the entropy."""
    model = seq(LogSNR(1.0, -6.0))
    x = PAIRS[torch.multinomial(P, 2000, replacement=True, generator=torch.Generator().manual_seed(0))]
    probe = lddm_probes.of_rows(model, x, None, 3, torch.arange(len(x)))
    assert float(probe.gain.mean()) > 0.1
    assert 0.1 < float(probe.without.mean()) < float(probe.gain.mean())
