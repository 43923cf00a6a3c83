"""networks/dit.py against the public code of MDLM, whose state dict and logits are in tests/data; MD4 around it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from ggm_lightning.core.schedules import Linear
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.dit import DiT
from tests.networks.mdlm_network import BUFFER, EPS, ORACLE, SIZES, N, V, network, times, weights

Z = torch.from_numpy(ORACLE["z"])


@pytest.mark.parametrize(("dtype", "bits", "tolerance"), [(torch.float32, 32, 1e-5), (torch.float64, 64, 1e-6)])
@pytest.mark.parametrize("which", ["zero", "some"])
def test_logits_of_the_public_code(dtype: torch.dtype, bits: int, tolerance: float, which: str) -> None:
    """All but the mask's, which theirs sets to -inf and ours does not have."""
    theirs = torch.from_numpy(ORACLE[f"logits_f{bits}_{which}"])[..., :V]
    t = times(ORACLE[f"sigma_{which}"]).to(dtype)
    with torch.no_grad():
        logits = network(dtype, time_conditioning=True)(Z, t)
        assert logits.dtype == dtype
        assert (logits - theirs).abs().max() < tolerance
        other = network(dtype, time_conditioning=True)(Z, (t + 0.3).clamp(max=1))
        assert (other - theirs).abs().max() > 10 * tolerance, "control: the time matters"


def test_without_time_conditioning_sigma_is_zero() -> None:
    theirs = torch.from_numpy(ORACLE["logits_f32_zero"])[..., :V]
    with torch.no_grad():
        assert (network()(Z, times(ORACLE["sigma_some"]).float()) - theirs).abs().max() < 1e-5


def test_sigma_is_minus_the_logarithm_of_what_is_clean() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    sigma = network(time_conditioning=True).sigma(t)
    assert torch.allclose(torch.exp(-sigma), 1 - (1 - EPS) * t, rtol=0, atol=1e-15)
    apart = (torch.exp(-sigma) - Linear().alpha(t)).abs().max()
    assert 0 < apart < EPS, "what it would be with our schedule"


def test_the_keys_are_theirs_in_their_order() -> None:
    """Their averages are a list in the order of the parameters."""
    assert [name for name, _ in network().named_parameters()] == [name for name in weights() if name != BUFFER]
    assert list(network().state_dict()) == [name for name in weights() if name != BUFFER]


def test_full_size() -> None:
    """What the published file holds: 12 layers of 12 heads of 64, GPT-2's 50,257 tokens and the mask."""
    with torch.device("meta"):
        assert sum(p.numel() for p in DiT(50257).parameters()) == 169_627_218


def test_the_head_is_a_view_of_their_layer() -> None:
    """Both paths give the same numbers, and a loss through either moves the published layer but the mask's row."""
    net = network()
    gradients = []
    for logits in (
        net(Z, torch.zeros(5)),
        nn.functional.linear(net.features(Z, torch.zeros(5)), net.head.weight, net.head.bias),
    ):
        net.zero_grad()
        logits.logsumexp(-1).sum().backward()
        gradients.append(net.output_layer.linear.weight.grad.clone())
    assert torch.equal(*gradients)
    assert gradients[0][:-1].abs().min() > 0
    assert gradients[0][-1].abs().max() == 0
    assert "head.weight" not in net.state_dict()


def test_it_begins_as_the_uniform_law_and_refuses_labels() -> None:
    net = DiT(V, **SIZES)
    assert net(Z, torch.rand(5)).abs().max() == 0
    with pytest.raises(ValueError, match="knows no classes"):
        net(Z, torch.rand(5), torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match="eps is 0"):
        DiT(V, **SIZES, eps=0)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    def gradient(seed: int, **options: bool) -> torch.Tensor:
        net = network(**options).train()
        torch.manual_seed(seed)  # of the dropout
        net(Z, torch.zeros(5)).logsumexp(-1).sum().backward()
        return net.vocab_embed.embedding.grad

    assert torch.equal(gradient(3), gradient(3, checkpoint_activations=True))
    assert not torch.allclose(gradient(3), gradient(4), rtol=1e-2), "control: another dropout"


# ------------------------------------------------------------------ MD4 around it


def model(fused: bool | None = None, **options: bool) -> MD4:
    found = MD4(network(**options), V, (N,), schedule=Linear(0.0))
    found.fused = fused
    return found


def test_bound_by_enumeration() -> None:
    """Two sites: nelbo's mean over the four patterns of masks, each with its weight, is what `nelbo` estimates."""
    two = MD4(network(torch.float64), V, (2,), schedule=Linear(0.0))
    x = torch.tensor([[3, 8]])
    exact = 0.0
    for masked in itertools.product((False, True), repeat=2):
        if not any(masked):
            continue
        count = sum(masked)
        zt = torch.where(torch.tensor([masked]), V, x)
        # integral of u^(count-1) (1-u)^(2-count) du over the masked fraction u: 1/t from the weight, t^count from q
        weight = math.gamma(count) * math.gamma(3 - count) / math.gamma(3)
        logits = two.network(zt, torch.full((1,), 0.5, dtype=torch.float64)).log_softmax(-1)
        nats = -logits[0, torch.arange(2), x[0]][torch.tensor(masked)].sum()
        exact += weight * float(nats.detach())
    values = two.nelbo(x.expand(600, 2), num_samples=8, seed=3, row=torch.arange(600), estimator="counts")
    error = float(values.std() / len(values) ** 0.5)
    assert abs(float(values.mean()) - exact) < 4 * error + 1e-9
    assert error < 0.05 * exact


def test_both_paths_give_the_same_bound_and_samples() -> None:
    """By features and head, fused or not, and by the whole logits of a network that has neither."""

    class Whole(nn.Module):
        def __init__(self, inner: DiT):
            super().__init__()
            self.inner = inner

        def forward(self, z, t, label=None):
            return self.inner(z, t, label)

    x = Z % V
    models = [model(False), model(True), MD4(Whole(network()), V, (N,), schedule=Linear(0.0))]
    bounds = [one.nelbo(x, num_samples=3, seed=2) for one in models]
    losses = [one.eval().loss(x, step=1, row=torch.arange(5)) for one in models]
    drawn = [one.sample(5, 5, seed=1).x for one in models]
    for bound, loss, samples in zip(bounds[1:], losses[1:], drawn[1:], strict=True):
        assert torch.allclose(bound, bounds[0], rtol=1e-5)
        assert torch.allclose(loss, losses[0], rtol=1e-5)
        assert torch.equal(samples, drawn[0])
    assert drawn[0].max() < V, "the mask is never drawn"
    assert not torch.allclose(model(time_conditioning=True).nelbo(x, num_samples=3, seed=2), bounds[0], rtol=1e-3)


def test_products_in_bfloat16() -> None:
    """As on a GPU: near the numbers of full precision, and every parameter gets a gradient."""
    one = model(time_conditioning=True).eval()
    with torch.autocast("cpu", torch.bfloat16):
        loss = one.loss(Z % V, step=1, row=torch.arange(5))
    loss.backward()
    full = model(time_conditioning=True).eval().loss(Z % V, step=1, row=torch.arange(5))
    assert abs(float(loss.detach() - full.detach())) < 0.02 * float(full.detach())
    assert all(torch.isfinite(p.grad).all() for p in one.parameters())
