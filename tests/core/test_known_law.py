"""Known laws by enumeration of all rows: -log p, entropy, posterior and predictive law, to 1e-12."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ggm_lightning.core.known_law import HiddenChain, KnownLaw, Mixture
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.toy.dictionary import Dictionary
from ggm_lightning.data.toy.digits import Digits
from ggm_lightning.data.toy.synthetic import MarkovChain, Sawtooth

SOURCES: dict[str, DiscreteData] = {
    "markov": MarkovChain(num_symbols=3, length=4, source_seed=2),
    "sawtooth": Sawtooth(length=5, saws=2, scale=0.05),
    "dictionary": Dictionary(num_words=5, word_length=2, num_letters=2, length=5, source_seed=3),
    "short dictionary": Dictionary(num_words=5, word_length=3, num_letters=2, length=3, source_seed=3),
}


def all_rows(num_classes: int, num_sites: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(num_classes), repeat=num_sites)))


def law_of(name: str) -> KnownLaw:
    law = SOURCES[name].law()
    assert law is not None
    return law


def enumerated(law: KnownLaw, x: Tensor, p: Tensor, agrees: Tensor) -> Tensor:
    """Float64[n, V]: p(x_i = v) of the rows that agree, by summing over all of them."""
    one_hot = torch.nn.functional.one_hot(x, law.num_classes).double()
    joint = ((p * agrees)[:, None, None] * one_hot).sum(0)
    return joint / joint.sum(-1, keepdim=True)


@pytest.mark.parametrize("name", SOURCES)
def test_the_law_is_the_data_s_own(name: str) -> None:
    law, data = law_of(name), SOURCES[name]
    x = all_rows(law.num_classes, law.num_sites)
    p = law.log_prob(x).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    assert (p - data.log_likelihood(x).exp()).abs().max() < 1e-12  # type: ignore[attr-defined]
    if name != "sawtooth":
        nats, stderr = law.entropy()
        assert stderr == 0
        assert nats == pytest.approx(float(-torch.xlogy(p, p).sum()), abs=1e-12)


@pytest.mark.parametrize("name", SOURCES)
def test_the_posterior_by_enumeration(name: str) -> None:
    """Of every state that the law does not exclude. Control: the forward pass alone, blind for what stands behind."""
    law = law_of(name)
    n, v = law.num_sites, law.num_classes
    x = all_rows(v, n)
    p = law.log_prob(x).exp()
    z = all_rows(v + 1, n)
    found, blind = law.log_posterior(z).exp(), 0.0
    for state, posterior in zip(z, found, strict=True):
        agrees = ((state == x) | (state == v)).all(-1)
        if float((p * agrees).sum()) == 0:
            assert torch.isfinite(posterior).all()
            continue
        assert (posterior - enumerated(law, x, p, agrees)).abs().max() < 1e-12
        begin = ((state == x) | (state == v))[:, :-1].all(-1)
        blind = max(blind, float((posterior - enumerated(law, x, p, begin))[:-1].abs().max()))
    assert blind > 1e-2


@pytest.mark.parametrize("name", SOURCES)
def test_what_comes_next_by_enumeration(name: str) -> None:
    law = law_of(name)
    x = all_rows(law.num_classes, law.num_sites)
    p = law.log_prob(x).exp()
    found = law.log_next(x).exp()
    for i in range(law.num_sites):
        begins = (x[:, None, :i] == x[None, :, :i]).all(-1)
        possible = (begins * p).sum(-1) > 0
        own = torch.stack([enumerated(law, x, p, row)[i] for row in begins[possible]])
        assert (found[possible, i] - own).abs().max() < 1e-12
    chain = found.gather(-1, x[..., None])[..., 0].prod(-1)
    assert (chain - p).abs().max() < 1e-12  # the product is the law itself


@pytest.mark.slow
def test_entropies_of_the_sources_at_full_length() -> None:
    saw, words = Sawtooth(), Dictionary()
    for found, (mean, stderr) in (
        (saw.law().entropy(), saw.entropy_estimate()),
        (words.law().entropy(), words.entropy_estimate()),
    ):
        assert found[0] == pytest.approx(mean, abs=4 * (stderr**2 + found[1] ** 2) ** 0.5)
        assert found[1] < stderr / 3


def test_contradictions_are_slips() -> None:
    """The words ab and cd (and a space): of 'a?' with d behind it, the nearer reading is one slip."""
    words = Dictionary(num_words=1, word_length=2, num_letters=4, length=4, source_seed=0)
    words.words[:] = [[0, 1, 4]]
    law = words.law()
    z = torch.tensor([[0, 1, 4, 2], [0, 5, 4, 2]])  # 'ab c': c cannot follow, two spaces apart from a
    assert torch.isneginf(law.log_prob(z[:1])).all()
    found = law.log_posterior(z)[1, 1].exp()
    assert float(found[1]) == pytest.approx(1, abs=1e-4)  # b: only the c was a slip


def test_what_the_law_cannot_mean_is_refused() -> None:
    law = law_of("markov")
    with pytest.raises(ValueError, match="rows have 5 sites, the law is of 4"):
        law.log_prob(torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"ids lie in 0\.\.3; the law knows 0\.\.2"):
        law.log_prob(torch.tensor([[0, 1, 2, 3]]))
    zero = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    with pytest.raises(ValueError, match="take HiddenChain"):
        Mixture(torch.ones(1, dtype=torch.float64), zero, lambda: (0.0, 0.0))
    assert isinstance(law, HiddenChain)
    assert Digits().law() is None
