"""The Triton kernels against float64: on a GPU (`python -m pytest tests/core -m gpu`), or interpreted on a CPU, as
test_kernels_interpreted.py runs this file in a process of its own. Few programs and small shapes: interpreted, an
operation takes 50 microseconds."""

from __future__ import annotations

import math
import os

import pytest
import torch
from scipy.stats import binom, chi2
from torch import Tensor

from ggm_lightning.core import categorical, fused, softplus_loss, watch
from ggm_lightning.core.categorical import Sharpening

INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="no CUDA device"),
]
NAN = float("nan")


def error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def chunk(k: int, v: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits with rubbish in the padding, targets, row weights, padded class weights."""
    g = torch.Generator().manual_seed(k + v)
    logits = torch.full((k, -(-v // 64) * 64), NAN)
    logits[:, :v] = 4 * torch.randn(k, v, generator=g)
    w = torch.zeros(logits.shape[1])
    w[:v] = torch.rand(v, generator=g) + 0.5
    return logits, torch.randint(0, v, (k,), generator=g), torch.rand(k, generator=g) + 0.1, w


@pytest.mark.parametrize("rates", [False, True])
@pytest.mark.parametrize(("k", "v"), [(7, 1031), (1, 67), (3, 128), (0, 67)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows(rates: bool, k: int, v: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bias of its own, which the rows do not hold, for every second case."""
    from ggm_lightning.core import kernels

    monkeypatch.setattr(kernels, "ROW_BLOCK", 512)  # several blocks to a row
    logits, y, c, w = (part.to(DEVICE) for part in chunk(k, v))
    bias = torch.linspace(-2, 3, len(w), device=DEVICE) if rates == (k == 7) else None
    gradient = torch.full(logits.shape, NAN, dtype=dtype, device=DEVICE)
    d_class = torch.full((v,), 0.25, device=DEVICE) if rates else None
    nats = kernels.rows(logits, v, y, c, bias, w if rates else None, gradient, d_class)
    z = logits[:, :v].double() + (0.0 if bias is None else bias[:v].double())
    expected_class = torch.full((v,), 0.25, device=DEVICE, dtype=torch.float64) if rates else None
    expected = fused.rows_in_place(z, y, c.double(), w[:v].double() if rates else None, True, expected_class)
    assert error(nats, expected) < 1e-6
    assert error(gradient[:, :v], z) < (1e-5 if dtype == torch.float32 else 1e-2)
    assert bool((gradient[:, v:] == 0).all())
    if rates:
        assert error(d_class, expected_class) < 1e-5
    without = kernels.rows(logits, v, y, c, bias, w if rates else None, None, None)
    assert torch.equal(without, nats)
    if k:  # control: the row weight left out
        assert error(gradient[:, :v] / c[:, None], z) > 1e-1


@pytest.mark.skipif(INTERPRETED, reason="no CUDA device: the interpreter runs single kernels only")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rates", [False, True])
def test_the_whole_loss_on_a_gpu(dtype: torch.dtype, rates: bool) -> None:
    from tests.core import test_fused

    torch.set_float32_matmul_precision("highest")
    given = {key: value.detach().to(DEVICE) for key, value in test_fused.inputs(dtype).items()}
    if not rates:
        del given["class_weight"]
    for key in ("hidden", "weight", "bias", "class_weight"):
        if key in given:
            given[key].requires_grad_()
    tolerance = (1e-6, 1e-5) if dtype == torch.float32 else (1e-6, 1e-2)
    test_fused.check(given, *tolerance, max_bytes=test_fused.THREE_CHUNKS)


@pytest.mark.skipif(INTERPRETED, reason="no CUDA device: the interpreter runs single kernels only")
def test_autocast_keeps_float32_logits_and_weight_gradients() -> None:
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=g).to(DEVICE).requires_grad_() for n in (512, 5003))
    y, c = torch.randint(0, 5003, (512,), generator=g).to(DEVICE), torch.ones(512, device=DEVICE)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = fused.masked_linear_cross_entropy(hidden, weight, y, c).loss
    loss.backward()
    assert loss.dtype == weight.grad.dtype == torch.float32
    rounded = [part.detach().bfloat16().double().requires_grad_() for part in (hidden, weight)]
    expected = torch.nn.functional.cross_entropy(rounded[0] @ rounded[1].t(), y, reduction="sum")
    expected.backward()
    assert error(loss.detach(), expected.detach()) < 1e-6
    assert error(weight.grad, rounded[1].grad) < 1e-2


@pytest.mark.parametrize(("seed", "step", "sites"), [(0, 0, 1), (2**63 - 1, 10**9, 601), (-(2**63), 7, 512)])
def test_uniforms_are_the_same_to_the_bit(seed: int, step: int, sites: int) -> None:
    from ggm_lightning.core import noise, noise_kernels

    row = torch.tensor([0, 1, 2**40, 7])
    expected = noise.uniform("mask", seed=seed, step=step, row=row, num_sites=sites)
    found = noise_kernels.uniform(noise.key_of("mask", seed, step), row.to(DEVICE), sites)
    assert torch.equal(found.cpu(), expected)
    other = noise_kernels.uniform(noise.key_of("time", seed, step), row.to(DEVICE), sites)
    assert not torch.equal(other.cpu(), expected)  # control


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softplus_loss(dtype: torch.dtype) -> None:
    from ggm_lightning.core import kernels

    g = torch.Generator().manual_seed(0)
    raw = 20 * torch.randn(3, 1409, generator=g)
    x0 = torch.randint(0, 256, (3, 1409), generator=g)
    xt = (x0 * torch.rand(3, 1409, generator=g)).long()
    raw[0, :4] = torch.tensor([-1e30, -200.0, 90.0, -15.0])
    raw, x0, xt, scale = (part.to(DEVICE) for part in (raw.to(dtype), x0, xt, torch.tensor([1.0, 3e-7, 0.4])))
    gradient = torch.full_like(raw, NAN)
    nats = kernels.softplus_rows(raw, x0, xt, scale, gradient)
    exact = torch.full_like(raw, NAN, dtype=torch.float64)
    expected = softplus_loss._in_pytorch(raw.double(), x0, xt, scale.double(), exact)
    assert error(nats, expected) < 1e-6
    assert error(gradient, exact) < (1e-6 if dtype == torch.float32 else 1e-2)
    assert torch.equal(kernels.softplus_rows(raw, x0, xt, scale, None), nats)


@pytest.mark.parametrize("top_p", [1.0, 0.9, 1e-6])
def test_draws_are_those_of_the_float64_inverse(top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from ggm_lightning.core import draw_kernels

    monkeypatch.setattr(draw_kernels, "COLUMN_BLOCK", 512)
    g = torch.Generator().manual_seed(1)
    k, v = (4, 613) if INTERPRETED else (997, 50_257)
    padded = torch.full((k, -(-v // 64) * 64), NAN)
    padded[:, :v] = 3 * torch.randn(k, v, generator=g)
    padded[0, : v // 2] = -math.inf
    u = torch.rand(k, generator=g, dtype=torch.float64)
    u[1], u[2] = 1 - 2.0**-53, 2.0**-60
    padded, u = padded.to(DEVICE), u.to(DEVICE)
    found = draw_kernels.draw(padded[:, :v], u, 0.7, top_p)
    p = categorical.unnormalised(padded[:, :v], Sharpening(0.7, top_p))
    assert bool((p.gather(1, found[:, None]) > 0).all())
    expected = categorical._first_above(p.cumsum(-1), u)
    # float32 exponentials move the borders of a class by 1e-7
    assert float((found == expected).double().mean()) > 0.998
    alone = draw_kernels.draw(padded[3:4, :v].contiguous(), u[3:4], 0.7, top_p)  # rows that are not padded
    assert int(alone) == int(found[3])


def test_ties_at_the_threshold_all_stay() -> None:
    from ggm_lightning.core import draw_kernels

    p = torch.tensor([[0.4, 0.3, 0.1, 0.1, 0.06, 0.04]]).log().to(DEVICE)
    u = torch.tensor([(i + 0.5) / 9 for i in range(9)], dtype=torch.float64, device=DEVICE)
    drawn = draw_kernels.draw(p.expand(9, 6).contiguous(), u, 1.0, 0.75)
    assert drawn.bincount(minlength=6).tolist() == [4, 3, 1, 1, 0, 0]


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_rows_that_are_no_law_are_not_drawn_from(top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minus the code of core/watch.py; a legal class before."""
    from ggm_lightning.core import draw_kernels

    monkeypatch.setattr(draw_kernels, "COLUMN_BLOCK", 128)
    logits = torch.randn(7, 150, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    logits[1, 149], logits[2, 70], logits[3], logits[5, :149] = math.nan, math.inf, -math.inf, -math.inf
    logits[6, 0], logits[6, 1] = math.inf, math.nan
    u = torch.full((7,), 0.5, dtype=torch.float64, device=DEVICE)
    drawn = draw_kernels.draw(logits, u, 0.7, top_p).cpu()
    assert drawn[[1, 2, 3, 6]].tolist() == [-1, -2, -3, -1]
    assert (-watch.faults_of(logits)).cpu().clamp(max=0).tolist() == drawn.clamp(max=0).tolist()
    assert int(drawn[5]) == 149  # control: classes of -inf beside a possible one
    assert drawn[[0, 4]].tolist() == categorical.draw(logits[[0, 4]].double(), u[:2], Sharpening(0.7, top_p)).tolist()


def test_thinning_follows_the_binomial_law() -> None:
    from ggm_lightning.core import draw_kernels

    n, b, count = (2000, 4, 37) if INTERPRETED else (100_003, 4, 255)
    p = torch.tensor([0.23, 1.0, 0.0, 1 - 3e-7], dtype=torch.float64)
    x0 = torch.full((b, n), count)
    x0[0, :5] = torch.arange(5)
    row, middle = torch.tensor([11, 5, 7, 3]), torch.tensor([1.5, 0.0, 2.0, 3.0], dtype=torch.float64)
    x0, p, row, middle = (part.to(DEVICE) for part in (x0, p, row, middle))
    xt, centred = draw_kernels.thin(x0, p, middle, row, 12345, torch.float32)
    assert bool(((xt >= 0) & (xt <= x0)).all())
    assert torch.equal(xt[1], x0[1])
    assert not bool(xt[2].any())
    torch.testing.assert_close(centred, xt - middle.float()[:, None])
    assert statistic(xt[0, 5:], count, 0.23) < 1
    assert statistic(xt[0, 5:], count, 0.3) > 10  # control: another law
    alone = draw_kernels.thin(x0[:1], p[:1], middle[:1], row[:1], 12345, torch.float32)[0]
    assert torch.equal(alone[0], xt[0])
    again = draw_kernels.thin(x0[:1], p[:1], middle[:1], row[:1] + 1, 12345, torch.float32)[0]
    assert not torch.equal(again[0], xt[0])


def statistic(x: Tensor, count: int, p: float) -> float:
    """Chi-square of the counts against Binomial(count, p), divided by its 1 - 1e-6 quantile."""
    expected = len(x) * torch.from_numpy(binom.pmf(range(count + 1), count, p))
    found = x.cpu().bincount(minlength=count + 1)
    often = expected > 5
    value = float(((found - expected)[often] ** 2 / expected[often]).sum())
    return value / float(chi2.ppf(1 - 1e-6, int(often.sum()) - 1))
