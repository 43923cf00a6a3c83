"""Exact denoisers as networks: what a perfectly trained network would say, by Bayes' rule over all states of a law.

    P(x_n = v | z_t) = sum over x with x_n = v of p(x) q(z_t | x) / sum over x of p(x) q(z_t | x)

One class for each way in which the families ask: Masked (MD4, and all with a mask and one schedule), TimedMasked
(GenMD4), Reached (any finite Markov process), Deaths (Blackout). Those of GGM are in exact/glauber.py, those of LDDM in
exact/latent.py, AutoregressiveModel's is Causal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.states import all_states, distinct, index


class Exact(nn.Module):
    """Told times in float64, because its parameter is; what it knows beside its input is `law`."""

    def __init__(self, law: JointLaw) -> None:
        super().__init__()
        self.law = law
        self.precision = nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)


class Equal(nn.Module):
    """The network that knows nothing: equal logits, whatever else it is given. It stands where any network will do."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, z: Tensor, t: Tensor | None = None, label: Tensor | None = None, **inputs: Tensor) -> Tensor:
        return torch.zeros(*z.shape, self.num_classes, dtype=torch.float64)


def seen(z: Tensor, num_classes: int, masked: Tensor | float = 1.0) -> Tensor:
    """P(z_n | x_n = v) Float64[b, n, V] of masked states: a visible site is what it shows; a masked one (id V) has the
    factor `masked`."""
    hidden = (z == num_classes)[..., None]
    shown = nn.functional.one_hot(torch.where(z == num_classes, 0, z), num_classes).double()
    return torch.where(hidden, masked, shown)


class Masked(Exact):
    """log P(x_n = v | visible sites), for any time: of noise with a mask (id V) and one schedule for all classes.

    Attributes:
        states: Int64[(V+1)^n, n]. log_posterior: Float64[(V+1)^n, n, V], the answer to each.
    """

    def __init__(self, law: JointLaw) -> None:
        super().__init__(law)
        self.states = all_states(law.num_classes + 1, law.num_sites)
        self.log_posterior = law.posterior(seen(self.states, law.num_classes)).log()

    def forward(self, z: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return self.log_posterior[index(z.flatten(1), self.law.num_classes + 1)]


class HollowMasked(Masked):
    """The same, hollow: at each site given all others, whatever stands at the site."""

    def __init__(self, law: JointLaw) -> None:
        super().__init__(law)
        self.log_posterior = law.posterior(seen(self.states, law.num_classes), own=False).log()


class TimedMasked(Exact):
    """GenMD4's: that a site is masked at t tells of its value, by t^{w_v}.

    Args:
        exponents: w Float64[V].
    """

    def __init__(self, law: JointLaw, exponents: Tensor) -> None:
        super().__init__(law)
        self.exponents = exponents

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        first, back = distinct(t, z.flatten(1))
        masked = (t[first, None].double() ** self.exponents)[:, None]
        return self.law.posterior(seen(z.flatten(1)[first], self.law.num_classes, masked)).log()[back]


class Reached(Exact):
    """Of any process that moves every site by itself: MarkovDiffusion's, or that of a family of one's own.

    Args:
        transition: t Float64[b] -> P(z_t = a | x = o), Float64[b, states, V] [a, o].
        own: whether the answer counts the noisy value of the asked site itself: True where the family reads
            softmax(logits) as P(x_n | z_t), False where it multiplies P(z_n | x_n) in.
    """

    def __init__(self, law: JointLaw, transition: Callable[[Tensor], Tensor], own: bool = True) -> None:
        super().__init__(law)
        self.transition, self.own = transition, own

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        first, back = distinct(t, z.flatten(1))
        K = self.transition(t[first])  # [b, z, x]
        reach = K.gather(1, z.flatten(1)[first][..., None].expand(-1, -1, self.law.num_classes))
        return self.law.posterior(reach, own=self.own).log()[back]


class Deaths(Exact):
    """Blackout's. The network is given f = logit p (time_input: logit) and returns what `output` says:

        deaths           E[x_0 - x_t | x_t] of every site
        softplus, scaled the raw value of which these are made, as published
        distribution     logits of x_0; own: see Reached

    Args:
        counts: True where the model's network_input is counts; else centred values come.
    """

    def __init__(self, law: JointLaw, output: str = "deaths", own: bool = True, counts: bool = False) -> None:
        super().__init__(law)
        self.output, self.own, self.counts = output, own, counts
        self.cap = law.num_classes - 1
        x_0 = torch.arange(self.cap + 1, dtype=torch.float64)
        self.gone = (x_0 - x_0[:, None]).clamp(min=0)  # [x_t, x_0]
        self.log_choose = torch.lgamma(x_0 + 1) - torch.lgamma(x_0 + 1)[:, None] - torch.lgamma(self.gone + 1)
        self.possible = x_0 >= x_0[:, None]

    def reach(self, x: Tensor, f: Tensor) -> Tensor:
        """P(x_t | x_0) Float64[b, n, V] of x_t Int64[b, n] at p = sigmoid(f), f Float64[b]."""
        f = f.double()[:, None, None]
        log_p, log_q = nn.functional.logsigmoid(f), nn.functional.logsigmoid(-f)
        log_reach = self.log_choose[x] + x[..., None].double() * log_p + self.gone[x] * log_q
        return torch.where(self.possible[x], log_reach.exp(), 0.0)

    def forward(self, z: Tensor, f: Tensor, label: Tensor | None = None) -> Tensor:
        z = z.flatten(1)
        x = z if self.counts else torch.round(z + self.cap / 2 * torch.sigmoid(f)[:, None]).long()
        first, back = distinct(f, x)
        return self.answer(x[first], f[first])[back]

    def answer(self, x: Tensor, f: Tensor) -> Tensor:
        """Of counts x Int64[b, n]."""
        reach = self.reach(x, f)
        if self.output == "distribution":
            law = self.law.posterior(reach, own=self.own)
            # a kernel that draws sites independently may come to counts that no x_0 of a law with zeros explains
            explained = (law * (reach > 0)).sum(-1, keepdim=True) > 0
            return torch.where(explained, law, 1 / self.law.num_classes).log()
        counts = torch.arange(self.cap + 1, dtype=torch.float64)
        y = (self.law.posterior(reach) @ counts - x).clamp(min=0)
        if self.output == "deaths":
            return y
        gone = torch.sigmoid(-f)[:, None] if self.output == "scaled" else 1.0
        y = y.clamp(min=1e-290) / gone
        return torch.where(y > 20, y, torch.log(torch.expm1(y)))  # the inverse of torch's softplus


class Causal(Exact):
    """AutoregressiveModel's: log p(x_i | x_0 .. x_{i-1}) at site i, from z whose site i holds x_{i-1}, site 0 the id V.

    What stands behind a site is not looked at.
    """

    def forward(self, z: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        law, z = self.law, z.flatten(1)
        answers = []
        for site in range(z.shape[1]):
            before = z[:, 1 : site + 1]
            weight = (law.x[:, :site] == before[:, None]).all(-1) * law.p
            answers.append(law.marginals(weight)[:, site])
        return torch.stack(answers, 1).log()
