"""Schedules against the official code's numbers (float64 columns, 1e-10), their inverses and their ends."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ggm_lightning.core.schedules import Cosine, Geometric, Linear, Polynomial, Schedule

ALL: dict[str, Schedule] = {
    "linear": Linear(),
    "cosine": Cosine(),
    "poly0.5": Polynomial(0.5),
    "poly1.5": Polynomial(1.5),
    "poly2": Polynomial(2.0),
    "poly3": Polynomial(3.0),
}


@pytest.fixture(scope="module")
def arrays(oracles: Path) -> np.lib.npyio.NpzFile:
    return np.load(oracles / "md4_oracle.npz")


@pytest.mark.parametrize("name", ALL)
def test_oracle(arrays: np.lib.npyio.NpzFile, name: str) -> None:
    t = torch.from_numpy(arrays["sched__t"]).double()
    schedule = ALL[name]
    for quantity in ("alpha", "dalpha", "weight", "logsnr"):
        ours = getattr(schedule, {"logsnr": "log_snr"}.get(quantity, quantity))(t).numpy()
        np.testing.assert_allclose(ours, arrays[f"sched__{name}__{quantity}_f64"], rtol=1e-10)


def test_geometric_oracle_and_printed_weight(arrays: np.lib.npyio.NpzFile) -> None:
    t = torch.from_numpy(arrays["sched__t"]).double()
    schedule = Geometric(1e-5, 20.0)
    for quantity in ("alpha", "dalpha", "weight"):
        expected = arrays[f"der_sched__geometric__{quantity}_f64"]
        np.testing.assert_allclose(getattr(schedule, quantity)(t).numpy(), expected, rtol=1e-9)
    b = 1e-5 ** (1 - t) * 20**t
    np.testing.assert_allclose(schedule.weight(t), -b * math.log(2e6) / torch.expm1(b), rtol=1e-10)


@pytest.mark.parametrize("schedule", [*ALL.values(), Geometric()], ids=[*ALL, "geometric"])
def test_derivative_inverse_and_complement(schedule: Schedule) -> None:
    t = torch.linspace(0.02, 0.98, 97, dtype=torch.float64, requires_grad=True)
    alpha = schedule.alpha(t)
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    torch.testing.assert_close(schedule.dalpha(t), slope, rtol=1e-10, atol=1e-12)
    t = t.detach()
    torch.testing.assert_close(schedule.inverse(schedule.masked_fraction(t)), t, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(schedule.alpha(t) + schedule.masked_fraction(t), torch.ones_like(t), rtol=0, atol=1e-14)
    ends = schedule.inverse(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("schedule", "tiny"), [(Linear(0.0), 1e-18), (Cosine(0.0), 1e-18), (Polynomial(2.0, 0.0), 1e-9)]
)
def test_small_masked_fractions_keep_their_digits(schedule: Schedule, tiny: float) -> None:
    t = torch.tensor([tiny], dtype=torch.float64)
    exact = {Linear: tiny, Cosine: math.sin(math.pi / 2 * tiny), Polynomial: tiny**2}[type(schedule)]
    assert schedule.masked_fraction(t).item() == pytest.approx(exact, rel=1e-12, abs=0)
    assert (1 - schedule.alpha(t)).item() != pytest.approx(exact, rel=1e-3, abs=0)  # what the stable form avoids


def test_users_errors_name_value_and_remedy() -> None:
    with pytest.raises(ValueError, match=r"eps is 0\.7.*published value is 1e-4"):
        Linear(0.7)
    with pytest.raises(ValueError, match="exponent is -1"):
        Polynomial(-1.0)
    with pytest.raises(ValueError, match="0 < b_min < b_max"):
        Geometric(2.0, 1.0)
