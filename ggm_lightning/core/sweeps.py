"""Round-robin sweeps over the sites, and how much of the data survives them: the clock of the Glauber chain.

Source: GGM, arXiv 2405.17035. The chain makes T = R n forward steps, R sweeps over n sites in a fixed order sigma. Step
t = r n + k, from X_t to X_{t+1}, visits site i_t = sigma_k; before it the sites sigma_0..sigma_{k-1} have been visited
r + 1 times, the others r times.

    a_r        probability that no visit of r sweeps has replaced a token; a_0 = 1, strictly decreasing, a_R > 0
    Pi_r(phi)  = a_{r+1} / a_r, the probability that a visit of sweep r leaves the token alone; beta_r = 1 - Pi_r(phi)

phi is the outcome "no change" of a visit, never a token. Both Pi_r(phi) and beta_r must be positive: else one of the
two classes that the model tells apart never occurs. The published schedule is not known to us; both here are choices.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from ggm_lightning.core import noise

SCHEDULES = ("linear", "geometric")
ORDERS = ("raster", "permuted", "random")


def default_last_survival(num_sites: int) -> float:
    """a_R = min(0.01, 0.1 / n): the prior differs from the law of X_T by at most 1 - (1 - a_R)^n < 0.1."""
    return min(1e-2, 0.1 / num_sites)


def survival(num_sweeps: int, last: float, schedule: str = "linear") -> Float64[Tensor, " r"]:
    """a_0..a_R. linear: 1 - (1 - a_R) r/R. geometric: a_R^(r/R), the same Pi(phi) in every sweep."""
    if num_sweeps < 1:
        raise ValueError(f"num_sweeps is {num_sweeps}; the chain needs at least one sweep")
    if not 0 < last < 1:
        raise ValueError(
            f"last_survival is {last}; it must lie strictly between 0 and 1: at 0 the last sweep has no signal to find"
        )
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule '{schedule}' is unknown; choose {' or '.join(SCHEDULES)}")
    r = torch.arange(num_sweeps + 1, dtype=torch.float64) / num_sweeps
    return 1 - (1 - last) * r if schedule == "linear" else torch.tensor(last, dtype=torch.float64) ** r


def site_order(num_sites: int, kind: str = "raster", seed: int = 0) -> Int64[Tensor, " n"]:
    """sigma: the sites in the order in which a forward sweep visits them; 'permuted' is one fixed permutation. A
    'random' one, new in every sweep, is drawn where it is used (core/hollow.py): here the sites as they stand."""
    if kind not in ORDERS:
        raise ValueError(f"order '{kind}' is unknown; choose {' or '.join(ORDERS)}")
    if kind != "permuted":
        return torch.arange(num_sites)
    return noise.uniform("order", seed=seed, step=0, row=torch.zeros(1).long(), num_sites=num_sites)[0].argsort()


class Sweeps:
    """R sweeps over n sites.

    Args:
        order: sigma, a permutation of 0..n-1.
        survival: a_0..a_R.

    Attributes:
        num_sites, num_sweeps, num_steps: n, R, T = R n.
        order: Int64[n]. rank: Int64[n], rank[order[k]] = k.
        survival: Float64[R + 1]. keep: Pi_r(phi), Float64[R]. beta: 1 - keep. log_odds: log(keep / beta).
    """

    def __init__(self, order: Int64[Tensor, " n"], survival: Float64[Tensor, " r"]) -> None:
        if not torch.equal(order.sort().values, torch.arange(len(order), device=order.device)):
            raise ValueError(f"order holds {order.tolist()[:8]}...; it must name each site 0..n-1 once")
        if survival[0] != 1 or not bool((survival[1:] < survival[:-1]).all()) or not bool(survival[-1] > 0):
            raise ValueError(f"survival is {survival.tolist()[:8]}; it must fall strictly from 1 to a number above 0")
        self.order, self.survival = order, survival
        self.num_sites, self.num_sweeps = len(order), len(survival) - 1
        self.num_steps = self.num_sites * self.num_sweeps
        self.rank = order.argsort()
        self.keep = survival[1:] / survival[:-1]
        self.beta = (survival[:-1] - survival[1:]) / survival[:-1]
        self.log_odds = torch.log(self.keep) - torch.log(self.beta)

    def to(self, device: torch.device) -> Sweeps:
        """The same sweeps there, not checked again: a look at values would wait for the device."""
        if self.order.device == device:
            return self
        moved = copy.copy(self)
        for name in ("order", "survival", "rank", "keep", "beta", "log_odds"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def visits(self, t: Int64[Tensor, " b"]) -> Int64[Tensor, "b n"]:
        """n_i(t), how often each site has been visited before step t, t in 0..T."""
        n = self.num_sites
        return (t // n)[:, None] + (self.rank < (t % n)[:, None])

    def survival_at(self, t: Int64[Tensor, " b"]) -> Float64[Tensor, "b n"]:
        """a_i(t): no visit before t has replaced the token of site i."""
        return self.survival[self.visits(t)]

    def visited_in_sweep(self, s: Int64[Tensor, " b"], num_visits: int = 0) -> Bool[Tensor, "b n"]:
        """The sites that the sweep of step s has visited before step s + num_visits, all in one sweep."""
        return self.rank < (s % self.num_sites + num_visits)[:, None]

    def block_sites(self, s: Int64[Tensor, " b"], size: int) -> tuple[Int64[Tensor, "b m"], Bool[Tensor, "b m"]]:
        """The sites of steps s..s+size-1, and which of these steps still belong to the sweep of s. Behind its end the
        sweep's last site is repeated."""
        k = (s % self.num_sites)[:, None] + torch.arange(size, device=s.device)
        return self.order[k.clamp(max=self.num_sites - 1)], k < self.num_sites

    def step_size(self, s: Int64[Tensor, " b"], t: Int64[Tensor, " b"], simultaneous: bool) -> int:
        """t - s, the number of visits that a reverse step undoes; more than one only if they may be `simultaneous`."""
        n, size = self.num_sites, int((t - s)[0])
        if size < 1 or bool((t - s != size).any()) or bool((s % n + size > n).any()):
            raise ValueError(
                f"reverse_law: no step from t {t.tolist()[:4]} to s {s.tolist()[:4]}; stay in one sweep of {n}"
            )
        if size > 1 and not simultaneous:
            raise ValueError(f"reverse_law: {size} sites at once are drawn by sampler 'parallel' only; let t - s be 1")
        return size

    def num_blocks(self, size: int) -> int:
        """Blocks of a sweep that is cut into runs of `size` sites, the last one possibly shorter."""
        return -(-self.num_sites // size)

    def block_start(self, u: Float64[Tensor, " b"], size: int) -> Int64[Tensor, " b"]:
        """The first step s of the block, out of the R num_blocks(size) ones, that u in [0, 1) falls on."""
        blocks = self.num_blocks(size)
        j = (u * (self.num_sweeps * blocks)).long()
        return j // blocks * self.num_sites + j % blocks * size

    def grid(self, size: int = 1, first_sweeps: int | None = None) -> list[int]:
        """Decreasing times at which a sampler stops: all ends of blocks, from T (or the end of `first_sweeps`) to 0."""
        sweeps = self.num_sweeps if first_sweeps is None else first_sweeps
        n = self.num_sites
        starts = [r * n + k for r in range(sweeps) for k in range(0, n, size)]
        return [*starts, sweeps * n][::-1]
