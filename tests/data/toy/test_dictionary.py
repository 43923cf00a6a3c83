"""The dictionary source: its likelihood by enumeration, its draws by counting."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ggm_lightning.data.toy.dictionary import Dictionary


@pytest.mark.parametrize(("word_length", "length"), [(2, 5), (1, 4), (3, 2), (2, 1)])
def test_the_likelihood_by_enumeration(word_length: int, length: int) -> None:
    data = Dictionary(num_words=5, word_length=word_length, num_letters=2, length=length, source_seed=3)
    x = torch.tensor(list(itertools.product(range(3), repeat=length)))
    p = data.log_likelihood(x).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    drawn = data.draw(50_000, np.random.default_rng(0))
    counts = np.bincount(drawn.astype(np.int64) @ 3 ** np.arange(length - 1, -1, -1), minlength=len(p))
    expected = 50_000 * p.numpy()
    assert (counts[expected == 0] == 0).all()
    some = expected > 0
    chi2 = ((counts - expected)[some] ** 2 / expected[some]).sum()
    freedom = some.sum() - 1
    assert chi2 < freedom + 6 * math.sqrt(2 * max(freedom, 1))
    wrong = np.roll(expected, 1)[some] + 1e-9  # control
    assert ((counts[some] - wrong) ** 2 / wrong).sum() > 100 * freedom


def test_the_entropy_of_the_documentation() -> None:
    data = Dictionary()
    nats, stderr = data.entropy_estimate()
    assert nats / 32 == pytest.approx(1.0955, abs=6 * stderr / 32)
    assert data.references()["entropy"] == pytest.approx(nats / 32 / math.log(2))
    # a word holds ln 64 nats (a little less: some are drawn twice) in four characters
    assert nats / 32 == pytest.approx(math.log(64) / 4, abs=0.08)


def test_as_text() -> None:
    data = Dictionary(num_train=7, num_val=5)
    batch = data.load("train")[[0, 3]]
    (text, _) = data.decode(batch["x"])
    assert len(text) == 32
    assert {text[i::4] for i in range(4)} & {" " * 8}
    assert not torch.equal(data.load("train")[[0]]["x"], data.load("val")[[0]]["x"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_words": 0}, "num_words is 0"),
        ({"num_letters": 27}, "num_letters is 27"),
        ({"source_seed": -1}, "source_seed is -1"),
    ],
)
def test_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dictionary(**arguments)
