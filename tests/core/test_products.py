"""Products with rows of zeros behind the weight: the same numbers for any V, and none of the padding in what comes out.

The padded path is a GPU's; here it is taken on a CPU, by which nothing in it is another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core import fused, products
from ggm_lightning.models.readout import Readout
from tests.core.test_fused import THREE_CHUNKS, check, error, inputs

ROWS, D = 7, 5
VOCABULARIES = (4_097, 50_257, 50_258, 50_304, 65_537)


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "pays", lambda weight: True)


def case(v: int, rates: bool) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(v)
    given = {
        "hidden": torch.randn(ROWS, D, generator=g).requires_grad_(),
        "weight": torch.randn(v, D, generator=g).requires_grad_(),
        "targets": torch.randint(0, v, (ROWS,), generator=g),
        "row_weight": torch.rand(ROWS, generator=g) + 0.1,
        "mask": torch.tensor([True, False, True, True, False, True, True]),
        "bias": torch.randn(v, generator=g).requires_grad_(),
    }
    given["targets"][0] = v - 1  # the last class stands next to the padding
    if rates:
        given["class_weight"] = (torch.rand(v, generator=g) + 0.5).requires_grad_()
    return given


def outcome(given: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    for value in given.values():
        value.grad = None
    found = fused.masked_linear_cross_entropy(**given, **options)
    (0.3 * found.loss).backward()
    of = {key: value.grad for key, value in given.items() if value.requires_grad}
    return {"loss": found.loss.detach(), "nats": found.nats, **of}


@pytest.mark.parametrize("rates", [False, True])
@pytest.mark.parametrize("v", VOCABULARIES)
def test_padded_and_unpadded_are_equal(v: int, rates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(v, rates)
    plain = outcome(given, max_bytes=2 * 4 * products.padded(v))  # three chunks
    monkeypatch.setattr(products, "pays", lambda weight: True)
    wide = outcome(given, max_bytes=2 * 4 * products.padded(v))
    for key, value in plain.items():
        assert wide[key].shape == value.shape
        assert error(wide[key], value) < 1e-6, key


def test_control_padding_counted_as_classes_is_seen() -> None:
    given = case(4_097, rates=False)
    plain = fused.masked_linear_cross_entropy(**given).nats
    more = products.padded(4_097) - 4_097
    given["weight"] = nn.functional.pad(given["weight"].detach(), (0, 0, 0, more))
    given["bias"] = nn.functional.pad(given["bias"].detach(), (0, more))
    assert error(fused.masked_linear_cross_entropy(**given).nats, plain) > 1e-5


@pytest.mark.usefixtures("padded")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_padded_against_the_formula(dtype: torch.dtype) -> None:
    """In a padded product of few classes, all memory that is not written to being no number."""
    value, gradient = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (1e-6, 1e-2), torch.float64: (1e-13, 1e-12)}[dtype]
    torch.use_deterministic_algorithms(True)
    try:
        check(inputs(dtype), value, gradient, max_bytes=THREE_CHUNKS)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("padded")
def test_the_gradient_is_as_large_as_the_weight_and_nobody_elses() -> None:
    given = inputs()
    outcome(given, min_classes=0)
    weight = given["weight"]
    assert weight.grad.shape == weight.shape
    assert weight.grad.is_contiguous()
    assert not weight.grad._is_view()  # else autograd would copy it
    assert weight.grad.untyped_storage().nbytes() <= products.padded(len(weight)) * weight.shape[1] * 4


def test_a_copy_only_where_something_changes() -> None:
    aligned, odd = torch.randn(128, D), torch.randn(131, D)
    assert products.with_zero_rows(aligned, torch.float32) is aligned
    wide = products.with_zero_rows(odd, torch.bfloat16)
    assert wide.shape == (192, D)
    assert torch.equal(wide[:131], odd.bfloat16())
    assert not wide[131:].any()


@pytest.mark.parametrize("bias", [False, True])
def test_logits_of_a_padded_head(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What GGM takes its sums over, and what samplers draw from."""
    head = nn.Linear(D, 131, bias=bias)
    values = torch.randn(3, 400, D, requires_grad=True)
    plain = Readout(values, head, False)()
    of_plain = torch.autograd.grad(plain.square().sum(), [values, *head.parameters()])
    monkeypatch.setattr(products, "pays", lambda weight: True)
    wide = Readout(values, head, False)()
    assert wide.shape == plain.shape
    assert wide.stride() == (192, 1)  # it went the other way
    torch.testing.assert_close(wide, plain)
    for a, b in zip(torch.autograd.grad(wide.square().sum(), [values, *head.parameters()]), of_plain, strict=True):
        torch.testing.assert_close(a, b)
    assert Readout(values[:, :5], head, False)().stride() == (131, 1)  # few rows: no copy of the weight


def test_a_head_of_another_class_is_called() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    head, values = Doubled(D, 131), torch.randn(2000, D)
    assert torch.equal(products.head_logits(head, values), head(values))
