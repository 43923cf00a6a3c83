"""No row that is no law becomes a token: found on the device, reported with its place, at once or at the next look."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import births, categorical, death, gaussian, watch
from ggm_lightning.core.categorical import Sharpening
from ggm_lightning.core.glauber import SiteLaw
from ggm_lightning.core.masking import MaskedLaw
from ggm_lightning.core.vector_masking import VectorMaskedLaw

B, N, V = 2, 5, 7
BROKEN = {"NaN": math.nan, r"\+inf": math.inf, "all -inf": -math.inf}


def uniforms(k: int = 11) -> Tensor:
    return torch.rand(k, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def broken_logits(kind: str, v: int, row: int = 3, k: int = 11, dtype: torch.dtype = torch.float32) -> Tensor:
    logits = torch.randn(k, v, generator=torch.Generator().manual_seed(1)).to(dtype)
    logits[row, slice(None) if kind == "all -inf" else v // 2] = BROKEN[kind]
    return logits


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("v", [7, 1031])  # both ways of searching
@pytest.mark.parametrize("sharper", [{}, {"temperature": 0.7}, {"top_p": 0.9}, {"temperature": 1.3, "top_p": 0.4}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_row_that_is_no_law_is_never_drawn(kind: str, v: int, sharper: dict[str, float], dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"^row 3: the network's logits are {kind}") as caught:
        categorical.draw(broken_logits(kind, v, dtype=dtype), uniforms(), Sharpening(**sharper))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("v", [7, 1031])
def test_single_impossible_classes_are_laws(v: int) -> None:
    """Control: -inf for all classes but one, and enormous finite logits, are drawn from."""
    logits = torch.full((11, v), -math.inf)
    logits[torch.arange(11), torch.arange(11) % v] = 0.0
    assert categorical.draw(logits, uniforms()).tolist() == [k % v for k in range(11)]
    high = torch.full((11, v), -3e38)
    high[:, 5] = 3e38
    assert categorical.draw(high, uniforms()).tolist() == [5] * 11


def masked_law(logits: Tensor) -> MaskedLaw:
    zt = torch.full((B, N), V)
    return MaskedLaw(zt, torch.ones(B, N, dtype=torch.float64), lambda sites: logits[sites], V)


def vector_law(logits: Tensor) -> VectorMaskedLaw:
    zt, ratio = torch.full((B, N), V), torch.full((B,), -0.7, dtype=torch.float64)
    return VectorMaskedLaw(zt, ratio, torch.linspace(0.5, 2, V).double(), lambda sites: logits[sites], V)


def site_law(logits: Tensor, gated: bool) -> SiteLaw:
    row, site = torch.arange(B).repeat_interleave(N), torch.arange(N).repeat(B)
    log_p = torch.log_softmax(logits.double().flatten(0, 1), -1)
    log_pi = torch.full((V,), -math.log(V), dtype=torch.float64)
    return SiteLaw(torch.zeros(B, N, dtype=torch.int64), row, site, log_p, log_pi, torch.zeros(B * N).double(), gated)


LAWS: dict[str, Callable[[Tensor], object]] = {
    "masked": masked_law,
    "one exponent per class": vector_law,
    "heat bath": lambda logits: site_law(logits, gated=False),
    "gated": lambda logits: site_law(logits, gated=True),
}


def of_step(stream: str) -> Tensor:
    return uniforms(B * N).reshape(B, N)


def in_step_three(law: object) -> None:
    with watch.watching(torch.tensor([11, 13])):
        watch.at(3)
        law.draw(of_step)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("kind", BROKEN)
def test_every_law_names_the_place(name: str, kind: str) -> None:
    logits = torch.randn(B, N, V, generator=torch.Generator().manual_seed(2))
    logits[1, 3, slice(None) if kind == "all -inf" else 2] = BROKEN[kind]
    said = "NaN" if name in ("heat bath", "gated") else kind  # their law is made of the logits before
    with pytest.raises(ValueError, match=f"^step 3, row 13, site 3: the network's logits are {said}"):
        in_step_three(LAWS[name](logits))
    whole = logits.clone()
    whole[1, 3] = 0.0
    drawn = LAWS[name](whole).draw(of_step)  # type: ignore[attr-defined]
    assert int(drawn.max()) <= V  # control: the same law with that row mended


@pytest.mark.parametrize("kernel", births.KERNELS)
@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN"), (-0.5, "negative"), (math.inf, "infinite")])
def test_expected_deaths_that_are_none_bear_nobody(kernel: str, value: float, said: str) -> None:
    y = torch.full((B, N), 1.5, dtype=torch.float64)
    y[1, 2] = value
    pi, zt = torch.full((B,), 0.3, dtype=torch.float64), torch.ones(B, N, dtype=torch.int64)
    posterior = torch.ones(B, N, V, dtype=torch.float64)
    posterior[..., 0] = 0
    law = births.BirthLaw(zt, y, pi, V - 1, kernel, posterior)
    with pytest.raises(ValueError, match=f"^row 1, site 2: the expected number of deaths is {said}"):
        law.draw(of_step)
    y = torch.where(torch.isfinite(y) & (y >= 0), y, 0.0)
    assert int(births.BirthLaw(zt, y, pi, V - 1, kernel, posterior).draw(of_step).min()) >= 1  # control


def test_a_latent_that_is_not_finite_is_named() -> None:
    mean = torch.zeros(B, 3, 11, dtype=torch.float64)
    law = gaussian.GaussianLaw(mean, torch.ones(B, dtype=torch.float64))
    assert torch.isfinite(law.draw(torch.ones_like(mean))).all()  # control
    mean[1, 2, 7] = math.nan
    with pytest.raises(ValueError, match=r"^row 1, latent 2: the denoised latent is NaN or infinite"):
        law.draw(torch.ones_like(mean))


# ------------------------------------------------------------------ where the host does not look at once


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps in which the host has looked."""
    seen: list[int] = []
    look = watch.Watch.look
    monkeypatch.setattr(watch.Watch, "look", lambda self: (seen.append(self._step), look(self)))
    return seen


def run(steps: int, bad: int, at_once: bool) -> None:
    """Steps that draw 10 rows each, of which one is no law from step `bad` on."""
    with watch.watching(torch.tensor([11, 13])):
        watch._watch.get().at_once = at_once
        for i in range(steps):
            watch.at(i)
            logits = torch.zeros(B * N, V)
            if i >= bad:
                logits[7, 2] = math.nan
            drawn = categorical.draw(logits, uniforms(B * N))
            assert int(drawn.min()) >= 0
            assert int(drawn.max()) < V  # also where the fault is not reported yet: the network's next call has to run


def test_a_gpu_is_asked_every_kth_step_and_at_the_end(looks: list[int]) -> None:
    run(70, bad=70, at_once=False)
    assert looks == [0, 31, 63, 69]  # before the steps 0, 32, 64, and behind the last
    run(7, bad=7, at_once=True)
    assert len(looks) > 4 + 7  # control: a CPU is asked whenever something was drawn


@pytest.mark.parametrize(("bad", "seen_in"), [(0, 31), (40, 63), (69, 69)])
def test_the_first_fault_is_the_one_that_is_named(looks: list[int], bad: int, seen_in: int) -> None:
    with pytest.raises(ValueError, match=f"^step {bad}, row 13, site 2: the network's logits are NaN"):
        run(70, bad, at_once=False)
    assert looks[-1] == seen_in
    assert watch._watch.get() is None  # the watch of a run that failed is gone


def test_a_cpu_is_asked_at_once(looks: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^step 2, row 13, site 2: the network's logits are NaN"):
        run(70, bad=2, at_once=True)
    assert looks[-1] == 2


def test_births_are_those_of_before() -> None:
    """Looking changes no draw."""
    t = torch.tensor([1.0, 0.4], dtype=torch.float64)
    y, pi = uniforms(B * N).reshape(B, N) * 3, death.bridge_probability(t, t / 2)
    law = births.BirthLaw(torch.ones(B, N, dtype=torch.int64), y, pi, V - 1)
    assert torch.equal(law.draw(of_step), law.draw(of_step))
    assert torch.equal(watch.deaths(y), y)
