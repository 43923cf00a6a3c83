"""Sums of numbers given by their logarithms: against decimals of 60 digits, at gaps that float64 cannot hold."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import logs

B, N, M, K = 2, 3, 5, 7
INF = math.inf


def wide(*shape: int, seed: int = 0, impossible: float = 0.2) -> Tensor:
    """Logarithms over 4,000 nats, some of them -inf."""
    generator = torch.Generator().manual_seed(seed)
    x = 1000 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(*shape, generator=generator) < impossible, -INF, x)


def exact_log_sum(terms: list[float]) -> float:
    with localcontext() as context:
        context.prec = 60
        total = sum((Decimal(x).exp() for x in terms if x > -INF), Decimal(0))
        return float(total.ln()) if total else -INF


def test_log_sum_and_log_add_hold_any_gap() -> None:
    x = wide(N, K)
    assert logs.log_sum(x).tolist() == pytest.approx([exact_log_sum(row.tolist()) for row in x], rel=1e-14)
    a, b = wide(11, seed=1), wide(11, seed=2)
    expected = [exact_log_sum(pair) for pair in zip(a.tolist(), b.tolist(), strict=True)]
    assert logs.log_add(a, b).tolist() == pytest.approx(expected, rel=1e-14)
    assert bool(torch.isinf(x.exp().sum(-1).log()).any())  # control: as numbers they are lost


def test_log_matmul_holds_any_gap() -> None:
    a, m = wide(B, N, K), wide(B, M, K, seed=3)
    out = logs.log_matmul(a, m)
    for b in range(B):
        for n in range(N):
            expected = [exact_log_sum((a[b, n] + m[b, j]).tolist()) for j in range(M)]
            assert out[b, n].tolist() == pytest.approx(expected, rel=1e-14)
    top = a.amax(-1, keepdim=True)
    as_numbers = torch.log((a - top).exp() @ m.exp().transpose(1, 2)) + top  # control: scaled by rows alone
    assert bool(torch.isinf(as_numbers).any())


def test_gradients_are_shares_and_never_nan() -> None:
    a, m = wide(B, N, K).requires_grad_(), wide(B, M, K, seed=3)
    d = torch.randn(B, N, M, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    logs.log_matmul(a, m).backward(d)
    terms = a.detach()[:, :, None] + m[:, None]
    total = torch.logsumexp(terms, -1, keepdim=True)
    expected = (torch.where(total > -INF, torch.exp(terms - total), 0.0) * d[..., None]).sum(2)
    assert (a.grad - expected).abs().max() < 1e-12
    assert float(a.grad.abs().max()) > 0.1


@pytest.mark.parametrize("chunk", [1, 70])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for entries in (1 << 22, chunk):
        monkeypatch.setattr(logs, "_CHUNK_ENTRIES", entries)
        a = wide(B, N, K).requires_grad_()
        out = logs.log_matmul(a, wide(B, M, K, seed=3))
        torch.where(out > -INF, out, 0.0).sum().backward()
        results.append((out.detach(), a.grad))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_rows_without_a_class_are_minus_inf_and_leave_the_others_their_gradient() -> None:
    functions = {
        "sum": logs.log_sum,
        "add": lambda x: logs.log_add(x[:, :3], x[:, 3:6]),
        "normalised": logs.log_normalised,
        "matmul": lambda x: logs.log_matmul(x[None], torch.zeros(1, 2, 6, dtype=torch.float64))[0],
    }
    for name, function in functions.items():
        x = torch.tensor([[0.0, -INF, 2.0, 1.0, -INF, 0.5], [-INF] * 6], dtype=torch.float64, requires_grad=True)
        out = function(x)
        assert bool((out[1] == -INF).all()), name
        assert not bool(torch.isnan(out).any()), name
        torch.where(out > -INF, out * torch.arange(1, out[0].numel() + 1).reshape(out[0].shape), 0.0).sum().backward()
        assert not bool(torch.isnan(x.grad).any()), name
        assert float(x.grad[0].abs().max()) > 0.01, name
        assert bool(torch.isnan(function(torch.full((2, 6), torch.nan).double())).all()), name
    x = torch.full((6,), -INF, dtype=torch.float64, requires_grad=True)
    torch.logsumexp(x, 0).backward()
    assert bool(torch.isnan(x.grad).all())  # control: torch's own


def test_divergence_is_zero_finite_or_infinite_where_it_should() -> None:
    q = torch.tensor([[0.25, 0.75, 0.0], [0.25, 0.75, 0.0], [0.5, 0.0, 0.5]], dtype=torch.float64)
    log_p = torch.tensor([[-900.0, 0.0, -INF], [-INF, 0.0, -1.0], [0.5, 0.0, 0.5]], dtype=torch.float64)
    log_p[2] = log_p[2].log()
    nats = logs.divergence(q, log_p)
    assert float(nats[0]) == pytest.approx(0.25 * (900 + math.log(0.25)) + 0.75 * math.log(0.75))
    assert nats[1:].tolist() == [INF, 0.0]
