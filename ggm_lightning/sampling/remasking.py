"""Remasking: masked diffusion in which what was revealed may be hidden again, and so corrected.

    a free site is hidden with probability sigma
    a masked site is revealed with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)                  (1)
    sigma <= min(1, (1 - alpha_s) / alpha_t), beyond which (1) is no probability                                (2)

(1) makes up for what is hidden: a site is clean at s with probability alpha_s, whatever sigma. Known sites are never
hidden, and masked ones of the others are revealed as if nothing were known.

Source: ReMDM, Wang et al., arXiv 2503.00307. Its settings of sigma are cap, rescale and loop,
which hide as much in a small step as in a large one, and so gain little or nothing from more steps; `rate` does not.
`forward_backward` is the corrector of Campbell et al., arXiv 2205.14987, and `psi` the mixture of reverse process and
renewed noise of the psi-samplers, arXiv 2602.21185 (their kappa is 1 - eta).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from ggm_lightning.core import categorical
from ggm_lightning.core.arguments import shown
from ggm_lightning.sampling.plan import Plan, Sites
from ggm_lightning.sampling.sampler import Run

RULES = ("cap", "rescale", "loop", "rate", "forward_backward", "psi")
LEFTOVERS = ("draw", "argmax")


class Remasking(Plan):
    """num_steps on the grid; sigma by `rule`, never beyond eq. (2):

        cap               eta
        rescale           eta times the most that eq. (2) allows
        rate              eta (t - s): as many are hidden in a time, whatever the number of steps
        forward_backward  eta (alpha_s - alpha_t) / alpha_t: one step back and one forth, at eta 1
        psi               eta (1 - alpha_s): every site is noised anew, at eta 1
        loop              eta while t_off < t <= t_on, in which alpha stands still; before and after it the schedule is
                          run through in what is left of the time

    Law: eta 0 is `ancestral` (loop: with other times). The error of rate and forward_backward falls as 1/num_steps,
    that of cap, rescale and psi slowly; loop has a floor. Which of them are better with a network that is not exact is
    another question.

    Args:
        rule: of sigma.
        eta: its size; in [0, 1], and for rate any number of at least 0, hidden sites per unit of time.
        t_on, t_off: of loop, where it begins and ends; times run from 1 to 0.
        alpha_on: of loop, the share of clean sites that it holds.
        leftover: what is still masked at t = 0 is drawn ("draw", and as the model says) or takes its mode ("argmax").
    """

    def __init__(
        self,
        rule: str = "rate",
        eta: float = 1.0,
        t_on: float = 0.55,
        t_off: float = 0.05,
        alpha_on: float = 0.9,
        leftover: str = "draw",
    ) -> None:
        if rule not in RULES:
            raise ValueError(f"remasking: rule is {shown(rule)}; choose {' or '.join(RULES)}")
        most = math.inf if rule == "rate" else 1.0
        if not 0 <= eta <= most or eta == math.inf:
            legal = "at least 0 and finite" if rule == "rate" else "in [0, 1]"
            raise ValueError(f"remasking: eta is {eta}; with rule {rule} it must be {legal}")
        if not 0 < t_off < t_on < 1:
            raise ValueError(f"remasking: t_on is {t_on} and t_off {t_off}; give 0 < t_off < t_on < 1")
        if not 0 < alpha_on < 1:
            raise ValueError(f"remasking: alpha_on is {alpha_on}; it must lie inside (0, 1)")
        if leftover not in LEFTOVERS:
            raise ValueError(f"remasking: leftover is {shown(leftover)}; choose {' or '.join(LEFTOVERS)}")
        self.rule, self.eta, self.leftover = rule, eta, leftover
        self.t_on, self.t_off, self.alpha_on = t_on, t_off, alpha_on

    def choose(self, run: Run) -> Sites:
        sigma = self._sigma(run)
        alpha_t = run.model.schedule.alpha(run.t)
        u_t = run.model.schedule.masked_fraction(run.t)
        # eq. (1) as the reverse process's own probability and what makes up for the hidden ones
        more = torch.where(u_t > 0, sigma * alpha_t / u_t, 0.0)
        reveal = run.reveal_probability() + more[:, None]
        u = run.uniform("site")
        return Sites(categorical.choose_sites(reveal, u), hide=categorical.choose_sites(sigma[:, None].expand_as(u), u))

    def _sigma(self, run: Run) -> Float64[Tensor, " b"]:
        """Of this step; with rule loop the run's times become the schedule's."""
        looping = (run.t > self.t_off) & (run.t <= self.t_on)
        length = run.t - run.s
        if self.rule == "loop":
            hold = run.model.schedule.inverse(torch.full_like(run.t, 1 - self.alpha_on))
            run.t, run.s = (self._warped(when, hold) for when in (run.t, run.s))
        schedule = run.model.schedule
        alpha_t, alpha_s, u_s = schedule.alpha(run.t), schedule.alpha(run.s), schedule.masked_fraction(run.s)
        most = torch.where(alpha_t > 0, u_s / alpha_t, 1.0).clamp(max=1.0)
        if self.rule == "cap":
            wanted = torch.full_like(most, self.eta)
        elif self.rule == "rescale":
            wanted = self.eta * most
        elif self.rule == "rate":
            wanted = self.eta * length
        elif self.rule == "forward_backward":
            wanted = self.eta * torch.where(alpha_t > 0, (alpha_s - alpha_t) / alpha_t, 1.0)
        elif self.rule == "psi":
            wanted = self.eta * u_s
        else:
            wanted = torch.where(looping, self.eta, 0.0)
        return torch.minimum(wanted, most)

    def _warped(self, when: Tensor, hold: Tensor) -> Tensor:
        """The schedule's time of a time of rule loop: 1 to `hold`, a stand, and on to 0."""
        before = 1 - (1 - when) * (1 - hold) / (1 - self.t_on)
        behind = when * hold / self.t_off
        warped = torch.where(when >= self.t_on, before, hold)
        return torch.where(when <= self.t_off, behind, warped)

    def finish(self, run: Run) -> Tensor:
        if self.leftover == "draw":
            return super().finish(run)
        request = run.request
        return run.model.finish(run.shaped(run.z), request.label, None, request.sharpening, run.denoiser)
