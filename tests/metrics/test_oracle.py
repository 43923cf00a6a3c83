"""Samples against a known law: by enumeration, and what the figures say of samplers that are wrong."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_lightning.core.known_law import KnownLaw
from ggm_lightning.data.toy.dictionary import Dictionary
from ggm_lightning.data.toy.synthetic import MarkovChain
from ggm_lightning.metrics import oracle

V, N = 3, 4
ALL = torch.tensor(list(itertools.product(range(V), repeat=N)))


def chain(seed: int = 2) -> KnownLaw:
    return MarkovChain(num_symbols=V, length=N, source_seed=seed).law()


def drawn(p: Tensor, count: int = 20_000) -> Tensor:
    return ALL[torch.multinomial(p, count, replacement=True, generator=torch.Generator().manual_seed(0))]


def test_both_parts_by_enumeration() -> None:
    """q another chain: the sum is exact, and the parts are, as a model of order 3 knows all of 4 symbols."""
    law, other = chain(), chain(5)
    p, q = law.log_prob(ALL), other.log_prob(ALL)
    x = drawn(q.exp())
    found = oracle.against(law, x)
    divergence = float((q.exp() * (q - p)).sum())
    gap = other.entropy()[0] - law.entropy()[0]
    assert found.excess == pytest.approx(divergence + gap, abs=4 * found.excess_stderr)
    assert found.divergence == pytest.approx(divergence, abs=4 * found.divergence_stderr + 5e-3)
    assert found.gap == pytest.approx(gap, abs=4 * found.gap_stderr + 5e-3)
    assert found.excess == pytest.approx(found.gap + found.divergence, abs=1e-12)
    assert divergence > 40 * found.divergence_stderr  # control: nothing of it is 0 by accident
    assert abs(gap) > 10 * found.gap_stderr
    assert found.excluded == 0


def test_true_samples_and_samples_of_low_entropy() -> None:
    """The excess of one likely row repeated is below that of true samples; its divergence shows it."""
    law = chain()
    p = law.log_prob(ALL)
    true = oracle.against(law, drawn(p.exp()))
    assert abs(true.excess) < 4 * true.excess_stderr
    assert true.divergence < 4 * true.divergence_stderr + 1e-3
    repeated = oracle.against(law, ALL[p.argmax()].expand(96, N))
    assert repeated.excess == pytest.approx(float(-p.max()) - law.entropy()[0])
    assert repeated.excess < -0.8
    # the truth is -log p of the row; a model counted on 48 rows still holds others for possible
    assert float(-p.max()) > repeated.divergence > 0.9 * float(-p.max())


def test_a_model_that_knows_more_than_counts() -> None:
    """The parts are those of the best r: with -log q itself they are exact, with a bad one they stay."""
    law, other = chain(), chain(5)
    x = drawn(other.log_prob(ALL).exp(), 200)
    with_model = oracle.against(law, x, -other.log_prob(x))
    assert with_model.by == "model"
    assert with_model.divergence > oracle.against(law, x).divergence
    assert oracle.against(law, x, torch.full((200,), 99.0)).by.startswith("order")
    true = drawn(law.log_prob(ALL).exp(), 20)
    assert oracle.against(law, true).by == "law"  # too few to count on


def test_what_the_law_excludes_is_counted_and_left_out() -> None:
    data = Dictionary(num_words=9, word_length=3, num_letters=4, length=8)
    x = torch.from_numpy(data.draw(300, np.random.default_rng(0)).astype(np.int64))
    wrong = x.clone()
    wrong[:30] = 0
    found, right = oracle.against(data.law(), wrong), oracle.against(data.law(), x[30:])
    assert found.excluded == pytest.approx(0.1)
    assert found.excess == pytest.approx(right.excess, abs=1e-12)
    none = oracle.against(data.law(), torch.zeros(7, 8, dtype=torch.int64))
    assert none.excluded == 1
    assert math.isnan(none.divergence)
    with pytest.raises(ValueError, match="at least 4"):
        oracle.against(data.law(), x[:3])


def test_rows_have_no_part_in_what_they_are_measured_by() -> None:
    """Random rows of many symbols: counted on themselves they would look likely."""
    x = torch.randint(50, (40, 6), generator=torch.Generator().manual_seed(0))
    for nats in oracle.counted(x, 50).values():
        assert float(nats.mean()) > 6 * math.log(50) - 1
