"""One formula, two ways: the terms of the masked families by logits and by core/fused.py, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core import losses
from ggm_lightning.core.masked_sites import MaskedSites
from ggm_lightning.models.readout import MaskedTerms, Readout, published_loss

B, N, V, D = 4, 5, 7, 11  # two examples in two states each


def drawn() -> tuple[Tensor, Tensor, Tensor, nn.Linear]:
    """Features, x0, which sites are masked (none in the second row), head."""
    torch.manual_seed(0)
    head = nn.Linear(D, V).double()
    masked = torch.rand(B, N) < 0.6
    masked[1] = False
    return torch.randn(B, N, D, dtype=torch.float64, requires_grad=True), torch.randint(V, (B, N)), masked, head


def weigh(nats: Tensor) -> Tensor:
    return torch.tensor([0.5, 3.0, 2.0, 7.0], dtype=nats.dtype) * nats


@pytest.mark.parametrize("w", [None, torch.linspace(0.5, 2.0, V, dtype=torch.float64)])
@pytest.mark.parametrize("states", [1, 2])
def test_both_ways_minimise_the_formula(states: int, w: Tensor | None) -> None:
    values, x0, masked, head = drawn()
    logits = head(values)
    if w is None:
        per_site = losses.cross_entropy(logits, x0)
    else:
        per_site = losses.rate_divergence(logits.flatten(0, 1), x0.flatten(), w).reshape(B, N)
    formula = weigh((per_site * masked).sum(1))
    (slope,) = torch.autograd.grad(formula.mean(), values, retain_graph=True)
    for fuse in (False, True):
        terms = Readout(values, head, fuse).terms(x0, masked, weigh, w)
        loss, rows = terms.loss(states)
        torch.testing.assert_close(loss.mean(), formula.mean(), rtol=1e-12, atol=0)
        torch.testing.assert_close(rows, formula, rtol=1e-12, atol=0)
        torch.testing.assert_close(terms.rows(), formula, rtol=1e-12, atol=0)
        (own,) = torch.autograd.grad(loss.mean(), values)
        torch.testing.assert_close(own, slope, rtol=1e-10, atol=1e-14)
        with torch.no_grad():
            torch.testing.assert_close(terms.rows(), formula, rtol=1e-12, atol=0)


def test_several_states_are_averaged_example_by_example() -> None:
    values, x0, masked, head = drawn()
    loss, rows = Readout(values, head, False).terms(x0, masked, weigh).loss(states=2)
    torch.testing.assert_close(loss, torch.stack([(rows[0] + rows[2]) / 2, (rows[1] + rows[3]) / 2]))


def test_weights_of_other_rows_are_seen() -> None:
    """Control: far beyond the tolerance, in both ways."""
    values, x0, masked, head = drawn()
    for fuse in (False, True):
        answer = Readout(values, head, fuse)
        right, _ = answer.terms(x0, masked, weigh).loss()
        wrong, _ = MaskedTerms(answer, x0, MaskedSites(masked), lambda nats: weigh(nats.flip(0)).flip(0), None).loss()
        assert abs(float(wrong.mean() / right.mean()) - 1) > 1e-2


@pytest.mark.parametrize("fuse", [False, True])
def test_the_logit_of_a_token_is_the_one_of_the_row_of_logits(fuse: bool) -> None:
    values, x0, _, head = drawn()
    found = Readout(values, head, fuse).of_tokens(x0.flatten(), fuse)
    expected = head(values).gather(2, x0[..., None]).flatten()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_blackouts_loss_in_one_pass_is_its_formula() -> None:
    torch.manual_seed(0)
    raw, scale = torch.randn(B, N, dtype=torch.float64), torch.tensor([0.2, 0.9, 0.5, 0.7], dtype=torch.float64)
    x0 = torch.randint(V, (B, N))
    xt = (x0 * torch.rand(B, N)).long()
    y = scale[:, None] * nn.functional.softplus(raw)
    expected = (y - (x0 - xt) * y.log()).mean(1)
    for given in (scale, None):
        found = published_loss(raw, x0, xt, given, lambda: (y, y.log()))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    other = published_loss(raw, x0, xt, scale.flip(0), lambda: (y, y.log()))  # control
    assert not torch.allclose(other, expected, rtol=1e-2)
