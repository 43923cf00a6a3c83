"""Seeded faults: each is put into a family or sampler of the package, found by prove, and called by the right name.

The families themselves hold in the same equations (the controls).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import categorical
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.schedules import Linear
from ggm_lightning.exact import Disproved, JointLaw, prove
from ggm_lightning.exact.networks import Equal
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.markov import MarkovDiffusion, StateLaw
from ggm_lightning.models.md4 import MD4
from ggm_lightning.sampling.plan import Ancestral, Sites
from ggm_lightning.sampling.remasking import Remasking
from ggm_lightning.sampling.sampler import Run
from tests.extend import pages

V, N = 3, 3
PI = [0.5, 0.3, 0.2]


def md4(kind: type[MD4] = MD4, **options: Any) -> MD4:
    return kind(Equal(V), V, (N,), **options)


def ggm(kind: type[GGM] = GGM, **options: Any) -> GGM:
    return kind(Equal(V), V, (N,), noise_law=PI, num_sweeps=3, **options)


def order_agnostic(wrong: bool) -> Any:
    """The family of docs/extend/family.md; wrong: 1/k in the place of n/k."""
    text = pages.files_of("family.md")["agnostic.py"]
    if wrong:
        assert "weight = self.num_sites / k" in text
        text = text.replace("weight = self.num_sites / k", "weight = 1 / k")
    space: dict[str, Any] = {"__name__": "agnostic"}
    exec(text, space)
    return space["OrderAgnostic"](Equal(V), V, (N,))


class WrongSign(MD4):
    def weight(self, t: Tensor) -> Tensor:
        return -super().weight(t)


class WrongSignOfPrior(MarkovDiffusion):
    def prior(self, x: Tensor) -> Tensor:
        return super().prior(x) - 20.0


class WithoutItsSteps(GGM):
    """The mean over the visits in the place of their sum: 1/T of it."""

    def terms(self, *args: Any, **more: Any) -> Tensor:
        return super().terms(*args, **more) / self.sweeps.num_steps


class Ends(Linear):
    """Ends at seven tenths: three sites of ten are clean where sampling begins with none."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self.masked_fraction(t)

    def masked_fraction(self, t: Tensor) -> Tensor:
        return 0.7 * t

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -0.7)

    def inverse(self, u: Tensor) -> Tensor:
        return u / 0.7


class Bare(GGM):
    """eq. (3) without log pi."""

    def log_conditional(self, logits: Tensor, a: Tensor) -> Tensor:
        return logits.double().log_softmax(-1)


class NextSweep(GGM):
    """The network is asked about sweep r + 1."""

    def _inputs(self, x: Tensor, r: Tensor, visited: Tensor, sites: Tensor) -> dict[str, Any]:
        return super()._inputs(x, (r + 1).clamp(max=self.sweeps.num_sweeps - 1), visited, sites)


class ShowsItsToken(GGM):
    """The asked site is not hidden."""

    def _inputs(self, x: Tensor, r: Tensor, visited: Tensor, sites: Tensor) -> dict[str, Any]:
        return super()._inputs(x, r, visited, sites) | {"zt": x}


class ShowsX(MD4):
    """The first site is never masked in what the network sees."""

    def terms(self, x: Tensor, zt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        masked = zt == self.mask_id
        shown = torch.cat([x[:, :1], zt[:, 1:]], 1)
        nats = self.readout(shown, t, label).terms(x, masked, lambda nats: nats).rows()
        return self.weight(t) * nats


class TellsXByTheTime(MD4):
    """The state is right; the time is another for each x."""

    def _terms(self, x: Tensor, zt: Tensor, t: Tensor, label: Tensor | None, weight: Tensor) -> Any:
        return super()._terms(x, zt, t * (1 + x.flatten(1).sum(1)), label, weight)


class TellsXByAKeyword(GGM):
    """What is told of the visits is another for each x."""

    first_token: Any = -1

    def terms(self, x: Tensor, *args: Any, **more: Any) -> Tensor:
        self.first_token = x[:, :1]
        return super().terms(x, *args, **more)

    def _inputs(self, x: Tensor, r: Tensor, visited: Tensor, sites: Tensor) -> dict[str, Any]:
        return super()._inputs(x, r, visited ^ torch.as_tensor(self.first_token == 0), sites)


class Redraws(Ancestral):
    """Known sites are drawn with all others."""

    def start(self, run: Run) -> Tensor:
        return torch.full_like(super().start(run), run.model.mask_id)

    def move(self, run: Run) -> None:
        sites = self.choose(run)
        run.z = self._revealed(run, sites.reveal & run.masked)


class LastDrawnAnew(Ancestral):
    """The last site has another value at the end where it is known."""

    def finish(self, run: Run) -> Tensor:
        x = super().finish(run).clone()
        if run.request.clamp is not None:
            known = run.request.clamp[1].flatten(1)[:, -1]
            x[known, -1] = (x[known, -1] + 1) % run.model.num_classes
        return x


class Uncompensated(Remasking):
    """Sites are hidden, and as many revealed as if they were not."""

    def choose(self, run: Run) -> Sites:
        sites = super().choose(run)
        return Sites(categorical.choose_sites(run.reveal_probability(), run.uniform("site")), sites.hide)


class Blind(MarkovDiffusion):
    """In infilling the network is shown other values at the known sites: each has its own path, and nobody sees it."""

    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
        known: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        right = super().reverse_law(zt, t, s, label, sharpening, known)
        if known is None:
            return right
        others = super().reverse_law(torch.where(known[1], (zt + 1) % V, zt), t, s, label, sharpening)
        return StateLaw(torch.where(known[1][..., None], right.log_p, others.log_p))


class BlindInSweeps(GGM):
    """The same, of GGM."""

    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
        sampler: str | None = None,
        known: Tensor | None = None,
        order: Tensor | None = None,
    ) -> Any:
        right = super().reverse_law(zt, t, s, label, sharpening, sampler, known, order)
        if known is not None:
            other = torch.where(known, (zt + 1) % V, zt)
            right.log_p = super().reverse_law(other, t, s, label, sharpening, sampler, known, order).log_p
        return right


class Doubled(Blackout):
    def terms(self, x: Tensor, zt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return super().terms(x, zt, t, label) / (self.num_sites * math.log(2))


class WithoutItsBirths(Blackout):
    """The rate of a site is taken to be a tenth of what the network says."""

    def deaths(self, *args: Any) -> tuple[Tensor, Tensor]:
        y, log_y = super().deaths(*args)
        return y / 10, log_y - math.log(10)


class WithoutTheRate(WithoutItsBirths):
    """In the bound alone."""

    def _law(self, *args: Any) -> Any:
        law, log_y = super()._law(*args)
        law.y = law.y * 10
        return law, log_y


def blackout(kind: type[Blackout]) -> Blackout:
    return kind(Equal(V), V, (2,), num_timesteps=20)


def ends_early() -> MD4:
    model = md4()
    model.schedule = Ends(0.0)  # the constructor would refuse it
    return model


LAW = JointLaw.random(N, V, seed=1)
# name -> (the right model, the wrong one, the equations to look at, the one that fails first, what the message says)
FAULTS: dict[str, tuple[Callable[[], Any], Callable[[], Any], tuple[str, ...], str, str]] = {
    "sign of a term": (md4, lambda: md4(WrongSign), ("terms",), "terms", "times what they should be: the sign"),
    "sign of an end": (
        lambda: MarkovDiffusion(Equal(V), V, (N,), num_timesteps=4),
        lambda: WrongSignOfPrior(Equal(V), V, (N,), num_timesteps=4),
        ("bound",),
        "bound",
        "an end of the schedule is missing or negative",
    ),
    "missing 1/n": (
        lambda: order_agnostic(False),
        lambda: order_agnostic(True),
        ("bound",),
        "bound",
        "a factor n too little",
    ),
    "missing T": (ggm, lambda: ggm(WithoutItsSteps), ("terms",), "terms", "all are 0.1111 times what they should be"),
    "bits for nats": (
        lambda: blackout(Blackout),
        lambda: blackout(Doubled),
        ("terms",),
        "terms",
        "times what they should be: a factor",
    ),
    "wrong end of the schedule": (
        md4,
        ends_early,
        ("start",),
        "start",
        "the schedule does not end where sampling begins",
    ),
    "missing log pi": (ggm, lambda: ggm(Bare), ("reverse_law",), "reverse_law", "log pi is missing in the softmax"),
    "off-by-one sweep": (
        ggm,
        lambda: ggm(NextSweep),
        ("reverse_law",),
        "reverse_law",
        "the survival of another sweep is taken",
    ),
    "own token shown": (ggm, lambda: ggm(ShowsItsToken), ("hidden",), "hidden", "is not hidden from the network"),
    "x shown": (md4, lambda: md4(ShowsX), ("shown",), "shown", "it then learns to copy"),
    "x told by the time": (md4, lambda: md4(TellsXByTheTime), ("shown",), "shown", "it then learns to copy"),
    "x told by a keyword": (ggm, lambda: ggm(TellsXByAKeyword), ("shown",), "shown", "it then learns to copy"),
}
SAMPLERS = {
    "known sites redrawn": (Ancestral, Redraws, "known", "known sites are drawn anew"),
    "last site redrawn": (Ancestral, LastDrawnAnew, "known", "known sites are drawn anew"),
    "reveal not compensated": (Remasking, Uncompensated, "levels", "what is hidden again is not made up for"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_family_is_found_and_named(fault: str) -> None:
    right, wrong, only, name, said = FAULTS[fault]
    law = JointLaw.random(2, V) if "bits" in fault else LAW
    assert prove(right(), law, only=only, num_samples=5_000).passed
    with pytest.raises(Disproved) as found:
        prove(wrong(), law, only=only, num_samples=5_000)
    message = str(found.value)
    assert found.value.proof.failed[0].name == name
    assert said in message
    assert f"{name}: " in message
    assert " at " in message  # where the largest deviation is
    assert "\n" not in message


def test_a_wrong_rate_of_births_is_found_with_five_classes() -> None:
    only = ("terms", "reverse_law")
    assert prove(Blackout(Equal(5), 5, (2,)), only=only).passed
    failed = prove(WithoutItsBirths(Equal(5), 5, (2,)), report=True, only=only).failed
    assert [check.name for check in failed] == ["reverse_law"]  # both sides of `terms` are wrong alike
    failed = prove(WithoutTheRate(Equal(5), 5, (2,)), report=True, only=only).failed
    assert [check.name for check in failed] == ["terms"]


@pytest.mark.parametrize("fault", SAMPLERS)
def test_a_fault_of_a_sampler_is_found_and_named(fault: str) -> None:
    right, wrong, name, said = SAMPLERS[fault]
    model = md4(schedule=Linear(0.0))
    model.samplers = {"ancestral": Ancestral}  # the other plans are looked at elsewhere
    options = {"rule": "rate", "eta": 4.0} if right is Remasking else {}
    proof = prove(model, LAW, only=(name,), samplers=[right(**options)], num_samples=5_000)
    assert proof[f"sampler {right.__name__}: {name}"].passed
    with pytest.raises(Disproved, match=said) as found:
        prove(model, LAW, only=(name,), samplers=[wrong(**options)], num_samples=5_000)
    assert [check.name for check in found.value.proof.failed] == [f"sampler {wrong.__name__}: {name}"]


def test_infilling_is_compared_with_the_law_of_noised_known_sites() -> None:
    """Not with p(x | known), from which a right sampler is .2 away."""
    options = {"num_timesteps": 4, "num_classes": V, "shape": (2,)}
    only, law = ("infilling",), JointLaw.random(2, V, seed=1)
    assert len(list(prove(MarkovDiffusion(Equal(V), **options), law, only=only, num_samples=2_000))) == 2
    with pytest.raises(Disproved, match="the unknown sites do not see the known ones") as found:
        prove(Blind(Equal(V), **options), law, only=only, num_samples=2_000)
    failed = found.value.proof.failed
    assert [check.name for check in failed] == ["sampler ancestral: infilling"]
    assert failed[0].deviation > 10 * failed[0].tolerance


@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_infilling_of_ggm_is_compared_with_its_own_law_by_bayes_rule(zeros: float) -> None:
    """Not with p(x | known), from which a right sampler is .5 away where the law has zeros."""
    law = JointLaw.random(N, V, 1, zeros)
    proof = prove(GGM(Equal(V), V, (N,)), law, only=("infilling",), num_samples=4_000)
    assert len(list(proof)) == 4
    failed = prove(BlindInSweeps(Equal(V), V, (N,)), law, True, ("infilling",), num_samples=4_000).failed
    assert [check.name for check in failed] == ["sampler heat_bath: infilling", "sampler gated: infilling"]


def test_a_fault_shows_in_other_equations_too_and_all_are_named() -> None:
    """The first one is in the message with its place; the others are listed, and in the table."""
    with pytest.raises(Disproved, match=r"also fail: .*bound") as found:
        prove(md4(WrongSign), LAW, only=("terms", "bound", "estimator"), num_samples=5_000)
    table = str(found.value.proof)
    assert "FAILS  terms" in table
    assert "ok     estimator" in table  # nelbo is the mean of these terms: wrong together
