"""The heat-bath (Glauber) chain: its closed-form marginal, the reduction to classification, both reverse kernels.

Source: GGM, arXiv 2405.17035; equation numbers are this file's own. pi is the law of replaced tokens, Pi_t(x) = beta_t
pi(x) and Pi_t(phi) = 1 - beta_t the law of the visit's outcome Z_t, i = i_t its site, y everything but site i (the same
at t and t + 1), a = a_i(t) the survival of site i before the visit (core/sweeps.py).

    forward     X_{t+1} = X_t if Z_t = phi, else X_t with site i overwritten by Z_t ~ pi                            (1)
    marginal    P(X_{t,i} = x | X_0) = a_i(t) 1[x = X_{0,i}] + (1 - a_i(t)) pi(x), independently over sites         (2)
    reduction   s_t(x, y) = logit P(Z_t = phi | X_{t+1,i} = x, y) = log p_t(x|y) - log pi(x) + log(Pi_t(phi)/beta_t)
                p_t(x|y) = P(X_{t,i} = x | y) = softmax_x( s_t(x, y) + log pi(x) )                                  (3)
                at the optimum sum_x pi(x) exp(s_t(x, y)) = Pi_t(phi) / beta_t                                      (4)
    data        p_t = a p0 + (1 - a) pi with p0(x|y) = P(X_{0,i} = x | y)                                           (5)
    heat bath   X_{t,i} ~ p_t(.|y), whatever X_{t+1,i} is                                                           (6)
    gated       X_{t,i} = X_{t+1,i} with probability 1 - eta, else ~ p_t(.|y); eta = sigmoid(-s_t(X_{t+1,i}, y))    (7)
    bound       -log p(x0) <= KL(q(X_T|x0) || pi^n) + sum_t E KL( q(X_{t,i} | X_{t+1}, x0) || gated kernel )        (8)

Both kernels reproduce the marginals P_t exactly; only the gated one is the reversal of (1), has a useful bound, and may
update several sites at once (with an error of order 1/R, where each site's p_t is conditional on all the others).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import softplus

from ggm_lightning.core import categorical, logs, watch
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.losses import at_least_float32
from ggm_lightning.core.sweeps import Sweeps


def noise_law(given: str | list[float], num_classes: int) -> Float64[Tensor, " v"]:
    """pi: "uniform", the given positive probabilities, or for "unigram" uniform until it has been measured."""
    if isinstance(given, str):
        if given not in ("uniform", "unigram"):
            raise ValueError(f"noise_law is '{given}'; choose uniform, unigram or a list of probabilities")
        return torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    pi = torch.tensor(given, dtype=torch.float64)
    if len(pi) != num_classes or not bool((pi > 0).all()) or not math.isclose(float(pi.sum()), 1, abs_tol=1e-6):
        raise ValueError(
            f"noise_law has {len(pi)} numbers with sum {float(pi.sum()):.6f}; give {num_classes} positive ones, sum 1"
        )
    return pi / pi.sum()


def corrupt(
    x0: Int64[Tensor, "b n"],
    survival: Float64[Tensor, "b n"],
    pi: Float64[Tensor, " v"],
    uniform: Callable[[str], Float64[Tensor, "b n"]],
) -> Int64[Tensor, "b n"]:
    """X_t given x0 and the survival a_i(t) of each site, eq. (2), without simulating the chain."""
    return torch.where(uniform("keep") < survival, x0, categorical.draw_common(pi, uniform("noise")))


@dataclass
class Pair:
    """One visit of `sites`, simultaneous where there are several: what training is about.

    Attributes:
        x_t: the state before the visit. x_next: after it.
        sites: the visited sites, Int64[b, m].
        signal: Z_t = phi, Bool[b, m]: the label of the binary classification.
    """

    x_t: Int64[Tensor, "b n"]
    x_next: Int64[Tensor, "b n"]
    sites: Int64[Tensor, "b m"]
    signal: Bool[Tensor, "b m"]

    @property
    def before(self) -> Int64[Tensor, "b m"]:
        return self.x_t.gather(1, self.sites)

    @property
    def observed(self) -> Int64[Tensor, "b m"]:
        return self.x_next.gather(1, self.sites)


def draw_pair(
    x0: Int64[Tensor, "b n"],
    sweeps: Sweeps,
    r: Int64[Tensor, " b"],
    visited: Bool[Tensor, "b n"],
    sites: Int64[Tensor, "b m"],
    pi: Float64[Tensor, " v"],
    uniform: Callable[[str], Float64[Tensor, "b n"]],
) -> Pair:
    """(X_t, X_{t+1}, label) of a visit of `sites` in sweep r, in O(n), eqs. (1) and (2).

    visited: the sites that sweep r has visited already (not `sites` themselves).
    """
    x_t = corrupt(x0, sweeps.survival[r[:, None] + visited], pi, uniform)
    signal = uniform("change").gather(1, sites) < sweeps.keep[r][:, None]
    # a fresh token may equal the old one and is noise nevertheless
    fresh = categorical.draw_common(pi, uniform("fresh").gather(1, sites))
    x_next = x_t.scatter(1, sites, torch.where(signal, x_t.gather(1, sites), fresh))
    return Pair(x_t, x_next, sites, signal)


def signal_logit(
    log_p: Float[Tensor, "k v"], log_pi: Float[Tensor, " v"], log_odds: Float[Tensor, " k"]
) -> Float[Tensor, "k v"]:
    """s_t(x, y) for every x, eq. (3); log_odds = log(Pi_t(phi) / beta_t)."""
    return log_p - log_pi + log_odds[:, None]


def log_conditional(s: Float[Tensor, "k v"], log_pi: Float[Tensor, " v"]) -> Float[Tensor, "k v"]:
    """log p_t(x|y), eq. (3), from s known up to a constant per row."""
    return torch.log_softmax(s + log_pi, -1)


def log_mass(
    s: Float[Tensor, "k v"], log_pi: Float[Tensor, " v"], log_odds: Float[Tensor, " k"]
) -> Float[Tensor, " k"]:
    """log sum_x pi(x) e^{s_x} - log(Pi_t(phi)/beta_t): 0 for the true logits, eq. (4)."""
    return torch.logsumexp(s + log_pi, -1) - log_odds


def log_mixed(
    log_p0: Float[Tensor, "k v"], log_pi: Float[Tensor, " v"], a: Float[Tensor, " k"]
) -> Float[Tensor, "k v"]:
    """log(a p0 + (1 - a) pi), eq. (5); a = 1 gives p0."""
    return logs.log_add(a.log()[:, None] + log_p0, torch.log1p(-a)[:, None] + log_pi)


def unmixed(
    log_p: Float64[Tensor, "k v"], log_pi: Float64[Tensor, " v"], a: Float64[Tensor, " k"]
) -> Float64[Tensor, "k v"]:
    """p0 up to a factor per row, (p_t - (1 - a) pi)_+: eq. (5) solved for p0; a learnt p_t may lie below."""
    return (log_p.exp() - (1 - a)[:, None] * log_pi.exp()).clamp(min=0.0)


def sharpened(
    log_p: Float64[Tensor, "k v"],
    log_pi: Float64[Tensor, " v"],
    a: Float64[Tensor, " k"],
    sharpening: Sharpening,
) -> Float64[Tensor, "k v"]:
    """log p_t with the p0 in it sharpened: p_t itself holds the noise floor (1 - a) pi, which must stay. A plain one:
    log_p as it is."""
    if sharpening == PLAIN:
        return log_p
    p0 = sharpening.probabilities(unmixed(log_p, log_pi, a).log())
    return log_mixed(p0.log(), log_pi, a)


def signal_cross_entropy(s: Float[Tensor, "*k"], signal: Bool[Tensor, "*k"]) -> Float[Tensor, "*k"]:
    """-log sigmoid(s) for signal, -log sigmoid(-s) for noise, nats: the paper's binary classification."""
    s = at_least_float32(s)
    return softplus(torch.where(signal, -s, s))


@dataclass
class SiteLaw:
    """The law of X_t given X_{t+1}: all sites stay but k of them, which follow a kernel each, independently.

    Attributes:
        x: X_{t+1}, Int64[b, n].
        row, site: Int64[k], where the k sites are; no place twice.
        log_p: log p_t(.|y) at each of them, normalised, Float64[k, V].
        log_pi: Float64[V]. log_odds: log(Pi_t(phi) / beta_t) of each of the k, Float64[k].
        gated: eq. (7), else the heat bath, eq. (6).
    """

    x: Int64[Tensor, "b n"]
    row: Int64[Tensor, " k"]
    site: Int64[Tensor, " k"]
    log_p: Float64[Tensor, "k v"]
    log_pi: Float64[Tensor, " v"]
    log_odds: Float64[Tensor, " k"]
    gated: bool

    @property
    def eta(self) -> Float64[Tensor, " k"]:
        """P(Z_t != phi | X_{t+1}), the probability that the gate opens; 1 for the heat bath."""
        if not self.gated:
            return torch.ones_like(self.log_odds)
        own = self.x[self.row, self.site]
        s = self.log_p.gather(1, own[:, None])[:, 0] - self.log_pi[own] + self.log_odds
        return torch.sigmoid(-s)

    def draw(self, uniform: Callable[[str], Float64[Tensor, "b n"]]) -> Int64[Tensor, "b n"]:
        """Choose the sites that are drawn anew, then a value for each of them."""
        watch.note(watch.faults_of(self.log_p), (self.row, self.site))  # a gate of probability NaN would stay shut
        eta = torch.zeros(self.x.shape, dtype=torch.float64, device=self.x.device)
        eta[self.row, self.site] = self.eta
        opened = categorical.choose_sites(eta, uniform("site"))[self.row, self.site]
        row, site = self.row[opened], self.site[opened]
        x = self.x.clone()
        x[row, site] = categorical.draw(self.log_p[opened], uniform("value")[row, site], at=(row, site))
        return x

    def probs(self) -> Float64[Tensor, "b n v"]:
        """The whole law, site by site; certain where nothing happens. For enumeration."""
        v = self.log_p.shape[-1]
        law = torch.nn.functional.one_hot(self.x, v).double()
        eta = self.eta[:, None]
        law[self.row, self.site] = (1 - eta) * law[self.row, self.site] + eta * self.log_p.exp()
        return law


def step_nats(
    log_p: Float[Tensor, "k v"],
    x0: Int64[Tensor, " k"],
    log_pi: Float[Tensor, " v"],
    a: Float[Tensor, " k"],
    keep: Float[Tensor, " k"],
) -> Float[Tensor, " k"]:
    """E over X_{t+1,i} ~ q(.|x0) of KL( q(X_{t,i} | X_{t+1,i}, x0) || gated kernel ), nats: a term of eq. (8) with the
    own token summed out, which the network does not see anyway.

    With m = a delta_{x0} + (1 - a) pi both laws are posteriors of one channel f(x'|v) = Pi(phi) 1[x' = v] + beta pi(x')
    (the gated kernel is p_t(v|y) f(x'|v) / c(x')), so that by the chain rule of KL
        E KL = KL(m || p_t) - KL(m f || p_t f),   m f = Pi(phi) m + beta pi  >= 0.
    """
    pi, p = log_pi.exp(), log_p.exp()
    m = (1 - a)[:, None] * pi
    m = m.scatter_add(1, x0[:, None], a[:, None])
    keep = keep[:, None]
    after = torch.log(keep * p + (1 - keep) * pi)
    # log_p itself: a law may hold classes of probability e^-760, which is 0 among the p
    return logs.divergence(m, log_p) - logs.divergence(keep * m + (1 - keep) * pi, after)


def prior_nats(
    x0: Int64[Tensor, "b n"], log_pi: Float64[Tensor, " v"], a: Float64[Tensor, "b n"]
) -> Float64[Tensor, " b"]:
    """KL(q(X_T | x0) || pi^n), the first term of eq. (8); a = a_i(T)."""
    pi = log_pi.exp()[x0]
    own = a + (1 - a) * pi
    return (own * (own.log() - log_pi[x0]) + (1 - a) * (1 - pi) * torch.log1p(-a)).sum(-1)
