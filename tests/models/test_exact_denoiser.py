"""The exact denoiser in the place of a network: the law's own bound and samples, and who takes none."""

from __future__ import annotations

import itertools

import pytest
import torch

from ggm_lightning.core import schedules
from ggm_lightning.data.toy.dictionary import Dictionary
from ggm_lightning.data.toy.synthetic import MarkovChain
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Equal, Masked
from ggm_lightning.metrics import oracle
from ggm_lightning.models import exact_denoiser
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.md4 import MD4
from tests.models import infilling_law

V, N = 3, 4
LAW = MarkovChain(num_symbols=V, length=N, source_seed=2).law()
ALL = torch.tensor(list(itertools.product(range(V), repeat=N)))


def test_it_says_what_the_enumerated_law_says() -> None:
    table = Masked(JointLaw(LAW.log_prob(ALL).exp().reshape((V,) * N)))
    found = exact_denoiser.ExactDenoiser(LAW, from_left=False)(table.states)
    masked = (table.states == V)[..., None]
    assert torch.where(masked, (found.exp() - table.log_posterior.exp()).abs(), 0.0).max() < 1e-12


def test_from_left_to_right_the_bound_is_the_law() -> None:
    model = AutoregressiveModel(Equal(V), V, (N,))
    with exact_denoiser.put_in(model, LAW):
        assert (model.nelbo(ALL) + LAW.log_prob(ALL)).abs().max() < 1e-12
        samples = model.sample(3000, 1, seed=1).x
    assert (model.nelbo(ALL) + LAW.log_prob(ALL)).abs().max() > 0.1  # its own network again
    found = oracle.against(LAW, samples)
    assert abs(found.excess) < 4 * found.excess_stderr


def test_what_is_left_is_the_sampler_s_error() -> None:
    """With one site a step the samples are of the law; drawn all at once they are not, whatever the network knows."""
    model = MD4(Equal(V), V, (N,), schedule=schedules.Linear(0.0))
    with exact_denoiser.put_in(model, LAW):
        one_by_one = oracle.against(LAW, model.sample(4000, N, sampler="first_hitting", seed=2).x)
        at_once = oracle.against(LAW, model.sample(4000, 1, seed=2).x)
    assert abs(one_by_one.excess) < 4 * one_by_one.excess_stderr
    assert one_by_one.divergence <= 4 * one_by_one.divergence_stderr
    assert at_once.excess > 10 * at_once.excess_stderr
    not_learned = oracle.against(LAW, model.sample(4000, N, sampler="first_hitting", seed=2).x)
    assert not_learned.divergence > 10 * not_learned.divergence_stderr


def test_states_that_the_law_excludes_are_filled_in_as_well() -> None:
    words = Dictionary(num_words=4, word_length=3, num_letters=4, length=8)
    model = MD4(Equal(5), 5, (8,))
    with exact_denoiser.put_in(model, words.law()):
        few = oracle.against(words.law(), model.sample(200, 2, seed=0).x)
        many = oracle.against(words.law(), model.sample(200, 8, sampler="first_hitting", seed=0).x)
    assert few.excluded > 0.1
    assert many.excluded < 0.01  # what the floor of the schedule leaves to the end


def test_who_takes_none() -> None:
    for model in (infilling_law.ggm(), infilling_law.fuji(), GenMD4(Equal(V), V, (N,)), infilling_law.blackout()):
        with pytest.raises(ValueError, match="denoiser exact: what the network of"), exact_denoiser.put_in(model, LAW):
            pass
    with pytest.raises(ValueError, match="of 4 sites of 3 classes, the model of 5 of 3"):
        exact_denoiser.put_in(MD4(Equal(V), V, (5,)), LAW).__enter__()
    with pytest.raises(ValueError, match="the law of mine is not known"):
        exact_denoiser.put_in(MD4(Equal(V), V, (N,)), None, "mine").__enter__()
