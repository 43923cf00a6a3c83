"""The fused losses against the formulas of core/losses.py in float64: values, every gradient, edges, modes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ggm_lightning.core import death, fused, losses, products
from ggm_lightning.core.softplus_loss import softplus_loss

N, D, V = 37, 11, 131
THREE_CHUNKS = 13 * 192 * 4  # bytes of 13 rows of logits


def inputs(dtype: torch.dtype = torch.float32, seed: int = 0, rows: int = N) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    return {
        "hidden": normal(rows, D).requires_grad_(),
        "weight": normal(V, D).requires_grad_(),
        "targets": torch.randint(0, V, (rows,), generator=g),
        "row_weight": torch.rand(rows, generator=g) + 0.1,
        "mask": torch.rand(rows, generator=g) < 0.5,
        "bias": normal(V).requires_grad_(),
        "class_weight": (normal(V).abs() + 0.5).requires_grad_(),
    }


def formula(given: dict[str, Tensor]) -> Tensor:
    """The same sum from all logits, in the precision of the inputs."""
    logits = functional.linear(given["hidden"], given["weight"], given.get("bias"))
    w = given.get("class_weight")
    y = given["targets"]
    nats = losses.cross_entropy(logits, y) if w is None else losses.rate_divergence(logits, y, w)
    c = given["row_weight"].to(nats.dtype)
    return torch.where(given["mask"], c * nats, 0.0).sum()


def exactly(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs in float64, with gradients of their own."""
    out = {}
    for key, value in given.items():
        out[key] = value.detach().double() if value.is_floating_point() else value
        out[key].requires_grad_(value.requires_grad)
    return out


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def check(given: dict[str, Tensor], value_tolerance: float, gradient_tolerance: float, **options: int) -> None:
    """Loss and gradients, the incoming gradient not being 1."""
    reference = exactly(given)
    expected = formula(reference)
    (0.3 * expected).backward()
    found = fused.masked_linear_cross_entropy(**given, **{"min_classes": 0, **options})
    (0.3 * found.loss).backward()
    assert error(found.loss.detach(), expected.detach()) < value_tolerance
    for key, value in given.items():
        if value.requires_grad:
            assert error(value.grad, reference[key].grad) < gradient_tolerance, key


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that is not written to is no number."""
    torch.use_deterministic_algorithms(True)  # in which mode torch fills what it makes with NaN
    assert torch.empty(1000).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("without", [(), ("bias",), ("class_weight",), ("bias", "class_weight")])
@pytest.mark.parametrize("max_bytes", [THREE_CHUNKS, None])
def test_loss_and_every_gradient(dtype: torch.dtype, without: tuple[str, ...], max_bytes: int | None) -> None:
    given = {key: value for key, value in inputs(dtype).items() if key not in without}
    value, gradient = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (1e-6, 1e-2), torch.float64: (1e-13, 1e-12)}[dtype]
    check(given, value, gradient, max_bytes=max_bytes)


@pytest.mark.parametrize("class_weight", [False, True])
def test_control_a_gradient_without_the_row_weights_fails(class_weight: bool) -> None:
    given = inputs()
    if not class_weight:
        del given["class_weight"]
    reference = exactly(given)
    formula(reference).backward()
    fused.masked_linear_cross_entropy(**{**given, "row_weight": torch.ones(N)}, min_classes=0).loss.backward()
    assert error(given["weight"].grad, reference["weight"].grad) > 1e-1


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", ["none masked", "all masked", "one row", "one of many", "no row"])
def test_edges(case: str) -> None:
    given = inputs(rows={"one row": 1, "no row": 0}.get(case, N))
    given["mask"] = torch.full_like(given["mask"], case in ("all masked", "one row"))
    if case == "one of many":
        given["mask"][5] = True
    found = fused.masked_linear_cross_entropy(**given, min_classes=0, max_bytes=THREE_CHUNKS)
    found.loss.backward()
    reference = exactly(given)
    formula(reference).backward()
    for key in ("hidden", "weight", "bias", "class_weight"):
        torch.testing.assert_close(given[key].grad.double(), reference[key].grad, rtol=1e-4, atol=1e-5)
    assert bool((found.nats[~given["mask"]] == 0).all())


def test_unmasked_rows_are_not_looked_at() -> None:
    given = inputs()
    with torch.no_grad():
        given["hidden"][~given["mask"]] = float("nan")
    given["row_weight"][~given["mask"]] = float("inf")
    given["targets"][~given["mask"]] = -(10**9)
    found = fused.masked_linear_cross_entropy(**given, min_classes=0)
    found.loss.backward()
    assert bool(found.loss.isfinite())
    assert all(bool(given[key].grad.isfinite().all()) for key in ("hidden", "weight", "bias", "class_weight"))


def test_nats_per_site_need_no_second_pass() -> None:
    given = inputs()
    shape = {
        key: given[key].reshape(1, N, *given[key].shape[1:]) for key in ("hidden", "targets", "row_weight", "mask")
    }
    for min_classes in (0, V + 1):  # fused, and the formula on the masked rows
        found = fused.masked_linear_cross_entropy(**{**given, **shape}, min_classes=min_classes)
        assert found.nats.shape == (1, N)
        assert not found.nats.requires_grad
        weighted = (given["row_weight"] * found.nats[0]).sum()
        torch.testing.assert_close(weighted, found.loss.detach())


def test_below_the_threshold_it_is_the_formula_itself() -> None:
    given = inputs()
    del given["class_weight"]
    y, rows = given["targets"][given["mask"]], given["mask"]
    nats = losses.cross_entropy(functional.linear(given["hidden"][rows], given["weight"], given["bias"]), y)
    found = fused.masked_linear_cross_entropy(**given)
    assert torch.equal(found.loss, (given["row_weight"][rows] * nats).sum())


def test_gradcheck_of_the_formula_and_of_the_fused_loss() -> None:
    given = inputs(torch.float64, rows=3)
    given["mask"] = torch.tensor([True, False, True])
    given["row_weight"] = given["row_weight"].double().requires_grad_()
    keys = ["hidden", "weight", "bias", "class_weight", "row_weight"]

    def of(function):
        return lambda *values: function({**given, **dict(zip(keys, values, strict=True))})

    values = tuple(given[key] for key in keys)
    assert torch.autograd.gradcheck(of(formula), values, fast_mode=True)
    assert torch.autograd.gradcheck(
        of(lambda g: fused.masked_linear_cross_entropy(**g, min_classes=0, max_bytes=192 * 8).loss),
        values,
        fast_mode=True,
    )


def test_gradients_of_several_uses_add_up() -> None:
    """Gradient accumulation, and one backward pass through two uses of the same weight."""
    first, second = inputs(seed=1), inputs(seed=2)
    second["weight"] = first["weight"]
    total = sum(fused.masked_linear_cross_entropy(**g, min_classes=0).loss for g in (first, second))
    total.backward(retain_graph=True)
    together = first["weight"].grad.clone()
    first["weight"].grad = None
    for given in (first, second):
        fused.masked_linear_cross_entropy(**given, min_classes=0).loss.backward()
    torch.testing.assert_close(first["weight"].grad, together)
    total.backward()  # what was kept for the first pass is still whole
    torch.testing.assert_close(first["weight"].grad, 2 * together)


def test_a_graph_that_is_kept_gives_the_same_gradients_again() -> None:
    """Of a scaled loss; what .grad took over from the first pass is not written to by the second."""
    given = inputs()
    leaves = [given["hidden"], given["weight"]]
    loss = fused.masked_linear_cross_entropy(**given, min_classes=0).loss / 3
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    copies = [g.clone() for g in first]
    loss.backward(retain_graph=True)
    taken = [leaf.grad for leaf in leaves]
    last = torch.autograd.grad(loss, leaves)  # scaled in place
    for all_three in zip(copies, first, taken, last, strict=True):
        for gradient in all_three[1:]:
            torch.testing.assert_close(gradient, all_three[0], rtol=0, atol=0)


def test_the_last_pass_through_a_graph_makes_no_second_gradient_of_the_weight() -> None:
    given = inputs()
    loss = fused.masked_linear_cross_entropy(**given, min_classes=0).loss / 3
    saved = loss.grad_fn.next_functions[0][0].saved_tensors
    place = {tuple(s.shape): s.data_ptr() for s in saved}[tuple(given["weight"].shape)]
    del saved
    loss.backward()
    assert given["weight"].grad.data_ptr() == place


def test_without_gradients_nothing_is_made_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(products, "add_product", lambda *a: calls.append(a))
    given = inputs()
    with torch.no_grad():
        found = fused.masked_linear_cross_entropy(**given, min_classes=0)
    assert not calls
    assert not found.loss.requires_grad
    given["weight"].requires_grad_(False)  # a frozen head
    fused.masked_linear_cross_entropy(**given, min_classes=0).loss.backward()
    assert not calls
    assert given["weight"].grad is None


def test_a_second_derivative_is_refused() -> None:
    given = inputs()
    loss = fused.masked_linear_cross_entropy(**given, min_classes=0).loss
    with pytest.raises(RuntimeError, match="no second derivative: use"):
        torch.autograd.grad(loss, given["hidden"], create_graph=True)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    given = inputs()
    with pytest.raises((ValueError, TypeError)):  # TypeError: the shapes are checked in the tests
        fused.masked_linear_cross_entropy(**{**given, "row_weight": given["row_weight"][:-1]})


def test_autocast_changes_nothing_on_a_cpu() -> None:
    given = inputs()
    expected = fused.masked_linear_cross_entropy(**given, min_classes=0).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fused.masked_linear_cross_entropy(**given, min_classes=0).loss
    assert torch.equal(found, expected)


COMPILED = """
import torch
from ggm_lightning.core import fused

g = torch.Generator().manual_seed(0)
hidden, weight = (torch.randn(n, 11, generator=g, requires_grad=True) for n in (37, 131))
targets, mask = torch.randint(0, 131, (37,), generator=g), torch.rand(37, generator=g) < 0.5

def loss(hidden, weight):
    return 3 * fused.masked_linear_cross_entropy(2 * hidden, weight, targets, mask + 0.5, mask, min_classes=0).loss

expected = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)  # any break of the graph is an error
for a, b in zip(torch.autograd.grad(compiled(hidden, weight), (hidden, weight)), expected, strict=True):
    torch.testing.assert_close(a, b)
"""


@pytest.mark.slow
def test_torch_compile_sees_one_node() -> None:
    """In a process of its own: the checks of shapes that the tests install cannot be traced."""
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


def test_the_operator_keeps_torchs_rules() -> None:
    given = inputs()
    h, w = given["hidden"], given["weight"]
    args = (h, w, given["targets"], given["row_weight"], given["mask"], None, None, [True, True, False, False])
    torch.library.opcheck(fused._linear_cross_entropy, (*args, torch.float32, 5, -1))


@pytest.mark.parametrize("bias", [False, True])
def test_one_logit_per_row_is_the_one_of_all_logits(bias: bool) -> None:
    given = inputs()
    b = given["bias"] if bias else None
    found = fused.token_logits(given["hidden"], given["weight"], given["targets"], b)
    rows = functional.linear(given["hidden"], given["weight"], b)
    torch.testing.assert_close(found, rows.gather(1, given["targets"][:, None])[:, 0])
    chosen = rows.gather(1, given["targets"][:, None])[:, 0]
    for key in ("hidden", "weight"):
        a, b = (torch.autograd.grad(z.square().sum(), given[key], retain_graph=True)[0] for z in (found, chosen))
        torch.testing.assert_close(a, b)
    assert fused.token_logits(given["hidden"].bfloat16(), given["weight"].bfloat16(), given["targets"]).dtype == (
        torch.float32
    )


def counts(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    raw = (20 * torch.randn(3, n, generator=g, dtype=torch.float64)).to(dtype)
    x0 = torch.randint(0, 256, (3, n), generator=g)
    xt = (x0 * torch.rand(3, n, generator=g)).long()
    raw[0, :4] = torch.tensor([-1e30, -200.0, 90.0, -15.0])
    return raw, x0, xt, torch.tensor([1.0, 3e-7, 0.4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_softplus_loss_against_the_published_formula(dtype: torch.dtype) -> None:
    raw, x0, xt, scale = counts(1009, dtype)
    raw.requires_grad_()
    reference = raw.detach().double().requires_grad_()
    y = scale.double()[:, None] * functional.softplus(reference, threshold=1e9)
    log_y = scale.double()[:, None].log() + death.log_softplus(reference)
    expected = death.published_loss(y, log_y, (x0 - xt).double()).sum(1)
    found = softplus_loss(raw, x0, xt, scale)
    weights = torch.tensor([0.3, 2.0, 1.0], dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert error(found.detach(), expected.detach()) < 1e-6
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    assert error(raw.grad, reference.grad) < tolerance
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(softplus_loss(raw, x0, xt, scale).sum(), raw, create_graph=True)


def test_control_the_plain_logarithm_loses_the_low_end() -> None:
    """log(1 + e^o) in float32, which is 0 below -17: what the stable form is for."""
    raw = torch.tensor([-30.0], requires_grad=True)
    (torch.log1p(raw.exp()) - 3 * torch.log(1 + raw.exp())).sum().backward()
    assert not bool(raw.grad.isfinite()) or abs(float(raw.grad) + 3) > 1e-1
