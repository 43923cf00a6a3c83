"""GenMD4 against the official code's float64 numbers: schedule, losses, surrogate, gradients, reverse transitions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core import vector_masking
from ggm_lightning.core.vector_masking import VectorMaskedLaw
from ggm_lightning.models.genmd4 import GenMD4

CONFIGS = ["g5", "g27", "g50", "gimg", "gunit", "geq2", "gtiny"]


class Recorded(nn.Module):
    """A network that returns what was recorded."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.logits


class Case:
    """The recorded inputs of one configuration, and the model that has them."""

    def __init__(self, arrays: np.lib.npyio.NpzFile, config: str) -> None:
        self.get = lambda name: arrays[f"gen__{config}__{name}"]
        self.x, self.z1, self.z2 = (torch.from_numpy(self.get(name)).long() for name in ("x", "z1", "z2"))
        logits = torch.cat([torch.from_numpy(self.get(f"logits{i}")).double() for i in (1, 2)])
        self.model = GenMD4(Recorded(logits), logits.shape[-1], tuple(self.x.shape[1:]), published_estimate=True)
        self.model.raw_exponents = nn.Parameter(torch.from_numpy(self.get("w_raw")).double())
        b = len(self.x)
        u0 = torch.tensor(float(self.get("u0"))).double()
        self.t = self.model.time(torch.remainder(u0 + torch.arange(b).double() / b, 1.0))


@pytest.fixture(scope="module")
def arrays(oracles: Path) -> np.lib.npyio.NpzFile:
    return np.load(oracles / "genmd4_oracle.npz")


@pytest.mark.parametrize("config", CONFIGS)
def test_schedule(arrays: np.lib.npyio.NpzFile, config: str) -> None:
    case = Case(arrays, config)
    w = case.model.exponents().detach()
    np.testing.assert_allclose(case.t, case.get("t_f64"), rtol=1e-12)
    np.testing.assert_allclose(w, case.get("w_f64"), rtol=1e-12)
    classes = torch.arange(len(w)).expand(len(case.t), -1)
    masked = vector_masking.masked_probability(classes, case.t, w)
    np.testing.assert_allclose(1 - masked, case.get("alpha_t_f64"), rtol=1e-10)
    np.testing.assert_allclose(-w / case.t[:, None], case.get("weight_t_f64"), rtol=1e-10)
    for name, value in (("min", w.min()), ("max", w.max()), ("avg", w.mean())):
        assert float(value) == pytest.approx(float(case.get(f"power_{name}_f64")), rel=1e-12)


@pytest.mark.parametrize("config", CONFIGS)
def test_losses_and_gradients(arrays: np.lib.npyio.NpzFile, config: str) -> None:
    case = Case(arrays, config)
    model = case.model
    mean, terms, surrogate = model.leave_one_out(case.x, case.z1, case.z2, case.t)
    l1, l2 = terms.chunk(2)
    torch.testing.assert_close(mean, (l1 + l2) / 2, rtol=1e-15, atol=0)
    np.testing.assert_allclose(l1.detach(), case.get("loss_diff1_nats_f64"), rtol=1e-10)
    np.testing.assert_allclose(l2.detach(), case.get("loss_diff2_nats_f64"), rtol=1e-10)
    np.testing.assert_allclose(surrogate.detach(), case.get("rloo_nats_f64"), atol=1e-9)
    recon = model.reconstruction(case.x)
    np.testing.assert_allclose(recon.detach(), case.get("loss_recon_nats_f64"), rtol=1e-10)
    bits = model.num_sites * math.log(2)
    bound = ((l1 + l2) / 2 + recon).mean() / bits
    assert float(bound.detach()) == pytest.approx(float(case.get("loss_nelbo_bpd_f64")), rel=1e-10)
    scalar = ((l1 + l2) / 2 + surrogate + recon).mean() / bits
    assert float(scalar.detach()) == pytest.approx(float(case.get("loss_bpd_f64")), abs=1e-9)
    for value, name in ((bound, "loss_nelbo_bpd"), (scalar, "loss_bpd")):
        (gradient,) = torch.autograd.grad(value, model.raw_exponents, retain_graph=True)
        np.testing.assert_allclose(gradient, case.get(f"grad_wraw_{name}_f64"), rtol=1e-10, atol=1e-9)


def test_the_gradient_of_loss_is_the_published_one_and_its_value_the_bound(
    arrays: np.lib.npyio.NpzFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through `loss` itself: times and states are replaced by the recorded ones."""
    case = Case(arrays, "g27")
    states = iter([case.z1, case.z2])
    monkeypatch.setattr(case.model, "time", lambda t0: case.t)
    monkeypatch.setattr(case.model, "corrupt", lambda x, t, u: next(states))
    loss = case.model.loss(case.x)
    assert float(loss.detach()) == pytest.approx(float(case.get("loss_nelbo_bpd_f64")), rel=1e-10)
    assert abs(float(loss.detach()) - float(case.get("loss_bpd_f64"))) > 1  # what a naive log would have shown
    loss.backward()
    np.testing.assert_allclose(case.model.raw_exponents.grad, case.get("grad_wraw_loss_bpd_f64"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("config", CONFIGS)
def test_reverse_transitions(arrays: np.lib.npyio.NpzFile, config: str) -> None:
    case = Case(arrays, config)
    model = case.model
    model.network.logits = nn.Parameter(model.network.logits[: len(case.x)])
    s = torch.from_numpy(case.get("der_step_s_f64"))
    np.testing.assert_allclose(s, 0.7 * case.t, rtol=1e-12)
    law = model.reverse_law(case.z1, case.t, s)
    assert isinstance(law, VectorMaskedLaw)
    masked = (case.z1 == model.mask_id).flatten(1)
    expected = torch.from_numpy(case.get("der_step_probs_f64")).flatten(1, -2)
    np.testing.assert_allclose(law.probs().detach()[masked], expected[masked], rtol=1e-10, atol=1e-15)
    clean = nn.functional.one_hot(case.z1.flatten(1), model.mask_id + 1).double()
    assert torch.equal(law.probs().detach()[~masked], clean[~masked])
