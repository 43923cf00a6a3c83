"""A schedule of one's own, of which alpha alone is given: what follows from it, its ends, and what is refused."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import masking, schedule_checks
from ggm_lightning.core.gaussian import LatentLeads, Sqrt, SquaredCosine
from ggm_lightning.core.schedules import Cosine, Floored, Geometric, Linear, Polynomial, Schedule


class Cubic(Schedule):
    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**3


class Careful(Cubic):
    def masked_fraction(self, t: Tensor) -> Tensor:
        return t**3


class Late(Schedule):
    """Nothing happens before t = 1/4, and all is masked from 3/4 on."""

    def alpha(self, t: Tensor) -> Tensor:
        return (1.5 - 2 * t).clamp(0, 1)


class Logarithmic(Schedule):
    """1 - t^2 by logarithms, whose slope autograd finds at t = 0 as 0 * inf."""

    def alpha(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * torch.log(t))


class Root(Schedule):
    """Steep at both ends: -inf is the slope at t = 0 and at t = 1."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - 2 / math.pi * torch.asin(torch.sqrt(t))


class Public(Schedule):
    """alpha of another schedule, and nothing else."""

    def __init__(self, other: Schedule) -> None:
        self.other, self.floor = other, other.floor

    def alpha(self, t: Tensor) -> Tensor:
        return self.other.alpha(t)


OWN = [Cubic(), Careful(), Late(), Logarithmic(), Root()]
PUBLISHED = [Linear(), Linear(0.0), Cosine(), Polynomial(2.0), Polynomial(0.5), Geometric(), Sqrt(), SquaredCosine()]
PUBLISHED += [LatentLeads(2.0), Polynomial(1000.0), Polynomial(1e-3), Geometric(1e-100, 1e100), LatentLeads(0.3)]
T = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)


def kind(schedule: Schedule) -> str:
    return type(schedule).__name__


@pytest.mark.parametrize("schedule", [*OWN, *PUBLISHED], ids=kind)
def test_it_is_taken_as_it_is(schedule: Schedule) -> None:
    assert schedule_checks.checked(schedule) is schedule
    assert schedule_checks.latent(schedule) is schedule


@pytest.mark.parametrize(
    "schedule", [Linear(0.0), Cosine(), Polynomial(2.0), Polynomial(0.5), Geometric(), Sqrt()], ids=kind
)
def test_what_follows_from_alpha_is_what_the_published_ones_write_by_hand(schedule: Schedule) -> None:
    """Slope by autograd, inverse by bisection. Control: those of another schedule."""
    own, other = Public(schedule), Polynomial(3.0)
    for method in ("masked_fraction", "dalpha", "weight", "log_snr"):
        expected = getattr(schedule, method)(T)
        torch.testing.assert_close(getattr(own, method)(T), expected, rtol=1e-10, atol=1e-12)
        assert (getattr(other, method)(T) - expected).abs().max() > 1e-3
    s = T - 0.015
    torch.testing.assert_close(own.reveal_probability(T, s), schedule.reveal_probability(T, s), rtol=1e-10, atol=0)
    torch.testing.assert_close(own.inverse(schedule.masked_fraction(T)), T, rtol=1e-12, atol=1e-12)


def test_inverse_outside_at_the_ends_and_where_alpha_is_flat() -> None:
    u = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5], dtype=torch.float64)
    assert Cubic().inverse(u).tolist() == pytest.approx([0, 0, 0.5 ** (1 / 3), 1, 1], abs=1e-15)
    assert Late().inverse(u).tolist() == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-15)
    tiny = torch.tensor(1e-15, dtype=torch.float64)
    assert float(Careful().inverse(tiny)) == pytest.approx(1e-5, rel=1e-12)
    assert Careful().inverse(tiny).shape == ()
    assert Careful().inverse(tiny.expand(2, 5)).shape == (2, 5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_slope_is_found_wherever_a_bound_is_computed(mode: type) -> None:
    with mode():
        t = torch.tensor([0.5, 0.25], dtype=torch.float64)
        slope = Cubic().dalpha(t)
        assert slope.tolist() == pytest.approx([-0.75, -0.1875], rel=1e-14)
        assert not slope.requires_grad
        assert (slope * t).tolist() == pytest.approx([-0.375, -0.046875], rel=1e-14)


@pytest.mark.parametrize("schedule", OWN, ids=kind)
def test_the_ends(schedule: Schedule) -> None:
    """No NaN at t = 0 and t = 1, nor where nothing is masked: a term of weight NaN would spoil the whole batch."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert schedule.alpha(ends).tolist() == pytest.approx([1.0, 0.0], abs=1e-12)
    assert not schedule.dalpha(ends).isnan().any()
    weight = masking.continuous_weight(schedule, torch.tensor([0.0, 1e-9, 0.1, 1.0], dtype=torch.float64))
    assert not weight.isnan().any()
    assert float(weight[0]) == 0
    assert bool((weight[1:] >= 0).all())
    grid = torch.arange(1, 8, dtype=torch.float64) / 7
    finite = masking.discrete_weight(schedule, grid, 7) / 7
    assert bool(((finite >= 0) & (finite <= 1)).all())


def test_slopes_at_an_end_in_numbers() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert Logarithmic().dalpha(ends).tolist() == pytest.approx([0.0, -2.0], abs=1e-12)
    naive = ends.clone().requires_grad_()
    assert torch.autograd.grad(Logarithmic().alpha(naive).sum(), naive)[0].isnan().tolist() == [True, False]  # control
    assert Late().dalpha(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist() == [0, -2, 0]


def test_digits_of_a_small_masked_fraction() -> None:
    """As the docstring says, against 60 digits: eight are right at u = 1e-8, none at 1e-17; by a formula all are."""
    with localcontext() as context:
        context.prec = 60
        for t, lost in ((2.154e-3, 1e-8), (2e-6, 1.0)):
            exact = float(Decimal(t) ** 3)
            when = torch.tensor(t, dtype=torch.float64)
            assert abs(float(Careful().masked_fraction(when)) / exact - 1) < 1e-15
            assert 1e-3 * lost < abs(float(Cubic().masked_fraction(when)) / exact - 1) < 1.1 * lost


class Wrong(Cubic):
    """Cubic with one method replaced."""

    def __init__(self, **methods: object) -> None:
        for name, method in methods.items():
            setattr(self, name, method)


def masked_later(t: Tensor) -> Tensor:
    return t**4


class Detached(Cubic):
    def alpha(self, t: Tensor) -> Tensor:
        return torch.as_tensor(1 - t.detach().numpy() ** 3)


REFUSED = {
    "no schedule": (0.5, "schedule is 0.5; give an object of a class that is derived from"),
    "a class": (Cubic, "schedule is <class"),
    "a number": (Wrong(alpha=lambda t: 0.5), r"Wrong: alpha\(t\) returns 0.5; it must return a tensor"),
    "float32": (Wrong(alpha=lambda t: 1 - t.float() ** 3), r"alpha\(t\) returns float32 for a float64 t"),
    "another shape": (Wrong(alpha=lambda t: 1 - t[..., None] ** 3), r"returns the shape \[2049, 1\] for t of \[2049\]"),
    "one number for all": (Wrong(alpha=lambda t: 1 - t.mean() ** 3), r"returns the shape \[\] for t of \[2049\]"),
    "of its neighbours": (Wrong(alpha=lambda t: 1 - t**3 * (t / t.max())), "its own time alone"),
    "above 1": (Wrong(alpha=lambda t: 1.1 - 1.1 * t), r"alpha\(0\) is 1.1; it is a probability"),
    "below 0": (Wrong(alpha=lambda t: 1 - 1.5 * t), r"alpha\(0.667\) is -0.0004883; it is a probability"),
    "NaN at an end": (Wrong(alpha=lambda t: 1 - t * (1 - t.log())), r"alpha\(0\) is nan"),
    "rising": (Wrong(alpha=lambda t: t**3), "alpha rises from 0.9985.* at t = 0.9995 to 1 at 1"),
    "waves": (Wrong(alpha=lambda t: (1 - t) * (1 + 0.3 * t * torch.sin(9 * math.pi * t))), "alpha rises from"),
    "not 1 at 0": (Wrong(alpha=lambda t: 0.9 * (1 - t)), r"alpha\(0\) is 0.9; it must be 1, .*at most 0.001"),
    "not 0 at 1": (Wrong(alpha=lambda t: 1 - 0.9 * t), r"alpha\(1\) is 0.1; it must be 0"),
    "no slope": (Detached(), "Detached: autograd cannot see how alpha depends on t"),
    "a jump": (Wrong(alpha=lambda t: torch.where(t < 0.3, 1 - 0.1 * t, 0.9 - 0.9 * t)), "alpha jumps from 0.97"),
    "another fraction": (Wrong(masked_fraction=masked_later), "0.11 apart; they must be the same"),
    "another slope": (Wrong(dalpha=lambda t: -2 * t), r"dalpha\(.*\) is .*, and the slope of alpha there is"),
    "a slope upwards": (Wrong(dalpha=lambda t: 3 * t**2), r"dalpha\(0.\d+\) is .*must be 0 or below"),
    "a slope of NaN": (Wrong(dalpha=lambda t: -3 * t**3 / t), r"dalpha\(0\) is nan"),
    "a slope of another shape": (Wrong(dalpha=lambda t: -3 * t.sum()), r"dalpha\(t\) returns the shape \[\]"),
    "another inverse": (Wrong(inverse=lambda u: u), r"inverse\(.*\) is .*must be the time whose masked fraction is u"),
    "an inverse of NaN": (Wrong(inverse=lambda u: u * math.nan), "inverse"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_in_one_line(name: str) -> None:
    schedule, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        schedule_checks.checked(schedule)
    assert "\n" not in str(caught.value)
    assert schedule_checks.checked(Cubic())  # control


def test_rough_ends_are_a_matter_of_the_class() -> None:
    class Rough(Schedule):
        floor = 0.15

        def alpha(self, t: Tensor) -> Tensor:
            return 0.9 - 0.8 * t

    assert schedule_checks.checked(Rough())
    Rough.floor = 0.05
    for check in (schedule_checks.checked, schedule_checks.latent):
        with pytest.raises(ValueError, match=r"schedule Rough: alpha\(1\) is 0\.1"):
            check(Rough())
    clean_enough = Wrong(alpha=lambda t: 0.9 * (1 - t))
    assert schedule_checks.latent(clean_enough) is clean_enough  # a latent's path begins at max_snr


def test_the_published_ones_are_of_one_kind() -> None:
    assert all(isinstance(schedule, Floored) for schedule in PUBLISHED)
    with pytest.raises(TypeError, match="alpha"):
        type("Empty", (Schedule,), {})()
