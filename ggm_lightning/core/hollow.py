"""All sites of a Glauber chain in one call of a hollow network, where the order of the visits is random.

Source: GGM, arXiv 2405.17035, for the process and its loss; the estimator is derived here (docs: core/glauber.py for
pi, Pi_r(phi), beta_r, a_r, m and the equations (1) to (8)). Equation numbers go on from there.

The order is drawn afresh for each row and each sweep. Within sweep r the set S of sites that it has visited before has
|S| uniform on 0..n-1, is uniform given its size, and the next site i is uniform on the complement. What a hollow
network returns at site i depends on no token and no bit of site i: one call with (r, S) gives the answers for the
visits (r, S \\ {i}, i) of *every* i, those in S too.

    visits    u ~ U(0, 1), bits of S iid Bernoulli(u), so that |S| is uniform on 0..n; X_j at survival a_{r+1} for j in
              S, else a_r. Then mean over all i of loss(r, S \\ {i}, i) is unbiased for the mean over the visits:
              (k'+1 = |S|) 1/(n (n+1) C(n,k')) (1 + (k'+1)/(n-k')) = 1/(n C(n,k') (n-k'))                          (9)
    label     X_{t,i}, Z_t and a fresh token, drawn at level a_r whatever the input holds at i, and summed out: with
              m = a_r delta_{x0} + (1 - a_r) pi the expectation of the paper's loss given everything else is
              Pi_r(phi) sum_x m(x) softplus(-s_x) + beta_r sum_x pi(x) softplus(s_x)                              (10)
    classes   the sums over pi may be means over K classes drawn from pi: unbiased                                (11)
    bound     sum_t E KL(...) of (8), mean over orders, = R E_{r,S} sum_i step_nats(r, S \\ {i}, i); a random order is a
              mixture of orders, so by convexity it lies above -log of the mixture                                (12)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import softplus

from ggm_lightning.core import categorical, glauber, products
from ggm_lightning.core.losses import at_least_float32


def draw_visits(
    u: Float64[Tensor, " b"], num_sweeps: int, bits: Float64[Tensor, "b n"]
) -> tuple[Int64[Tensor, " b"], Bool[Tensor, "b n"]]:
    """(r, S) of eq. (9): u in [0, 1) says the sweep and, by what is left, the rate at which `bits` put sites into S."""
    scaled = u * num_sweeps
    r = scaled.long().clamp(max=num_sweeps - 1)
    return r, bits < (scaled - r)[:, None]


def first_in_order(order: Int64[Tensor, "b n"], count: Int64[Tensor, " b"]) -> Bool[Tensor, "b n"]:
    """The first `count` sites of each row's order."""
    return order.argsort(1) < count[:, None]


def label_nats(
    s: Float[Tensor, "k c"],
    weight: Float[Tensor, " c"],
    s_x0: Float[Tensor, " k"],
    a: Float[Tensor, " k"],
    keep: Float[Tensor, " k"],
) -> Float[Tensor, " k"]:
    """Eq. (10), nats: the paper's loss with its label summed out.

    Args:
        s: the signal's logits at some classes. weight: all V of them with pi, or K drawn from pi with 1/K, eq. (11).
        s_x0: the logit at the clean token.
        a: a_r. keep: Pi_r(phi).
    """
    s, s_x0 = at_least_float32(s), at_least_float32(s_x0)
    weight, a, keep = (part.to(s.dtype) for part in (weight, a, keep))
    replaced = (keep * (1 - a))[:, None]
    signal = torch.where(replaced > 0, replaced * softplus(-s), 0.0)  # in sweep 0 it is 0, also where s = -inf
    noise = (1 - keep)[:, None] * softplus(s)
    return keep * a * softplus(-s_x0) + products.exactly(signal + noise, weight)


def draw_labels(
    x0: Int64[Tensor, "b n"],
    a: Float64[Tensor, " b"],
    keep: Float64[Tensor, " b"],
    pi: Float64[Tensor, " v"],
    uniform: Callable[[str], Float64[Tensor, "b n"]],
) -> tuple[Int64[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """(observed token X_{t+1,i}, signal Z_t = phi) of a visit of each site, independent of the input's own token."""
    before = glauber.corrupt(x0, a[:, None].expand(x0.shape), pi, lambda stream: uniform(f"own {stream}"))
    signal = uniform("change") < keep[:, None]
    fresh = categorical.draw_common(pi, uniform("fresh"))
    return torch.where(signal, before, fresh), signal


def draw_classes(pi: Float64[Tensor, " v"], u: Float64[Tensor, " k"]) -> Int64[Tensor, " k"]:
    """K classes of law pi, one out of each K-th of its mass: means over them are unbiased, and vary less than iid."""
    stratum = torch.arange(len(u), dtype=torch.float64, device=u.device)
    return categorical.draw_common(pi, (stratum + u) / len(u))


_ROUNDING = 1e-4  # of what other sites move by: less is no leak but sums in another order


def another_token(z: Int64[Tensor, "b n"], num_classes: int) -> tuple[Int64[Tensor, " b"], Int64[Tensor, "b n"]]:
    """(a site of each row, in which a network is looked at; z with another token there). The sites are spread over all
    n. See `moved`."""
    b, n = z.shape
    row = torch.arange(b, device=z.device)
    site = row * max(1, n // b) % n
    changed = z.clone()
    changed[row, site] = (changed[row, site] + 1) % num_classes
    return site, changed


def moved(
    base: Float[Tensor, "b n d"], other: Float[Tensor, "b n d"], site: Int64[Tensor, " b"]
) -> tuple[int | None, bool]:
    """What a network returned before and after the token at `site` was changed: (a site that moved with its own token,
    which a hollow network's do not, or None; whether any other site moved)."""
    by = torch.where(other == base, 0.0, (other - base).abs()).amax(-1)  # -inf stays -inf: that is no movement
    row = torch.arange(len(site), device=site.device)
    own = by[row, site]
    by[row, site] = 0.0
    others = bool((by > 0).any())
    if bool((own > _ROUNDING * by.max()).any()):
        return int(site[own.argmax()]), others
    return None, others
