"""Order by how sure the network is: the surest masked sites of a row are revealed first.

A score is a number of the law at a site, and knows nothing of the value that will be drawn there:

    confidence  the largest probability (MaskGIT, arXiv 2202.04200)
    margin      the largest less the second (arXiv 2502.06768)
    entropy     minus the entropy

With one site at a time every such order is the chain rule, so that the samples have the network's own law. With more,
sites revealed together are drawn as if they were independent: at most sum of their entropies less the largest of
these, in nats, is lost by that, which is what gamma bounds (EB-sampler, arXiv 2505.24857).

Order by the probability of the value that was *drawn* (LLaDA, arXiv 2502.09992; MaskGIT's own code) prefers sites
where a likely value came up: the rare ones lose, whatever the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ggm_lightning.core import categorical, watch
from ggm_lightning.core.arguments import shown, whole_number
from ggm_lightning.sampling.plan import Plan, Sites
from ggm_lightning.sampling.sampler import Run, Step

SCORES = ("confidence", "margin", "entropy")
DRAWN = (
    "it orders by the probability of the value that was drawn, which is biased whatever the network: with an exact one "
    "and k = 1, on a law of 3 sites of 3 classes, total variation .40 and 1.21 of 2.38 nats of entropy; take score: "
    "confidence, margin or entropy, or set biased: true to reproduce others' figures"
)


class Ordered(Plan):
    """k sites of a row in each step, or as many as gamma allows; without both num_sites / num_steps, rounded up.

    The network is told the time at which as many sites are masked, and is asked about all masked sites. Scores are of
    its own law, before temperature and nucleus; ties go to the first site. The family's grid is not used.

    Law: exact with k = 1 and any score but `drawn`. With more the error stays, whatever the number of steps (on a law
    of 3 sites of 3 classes .09 with k = 2), and gamma bounds what a step adds to it.

    Args:
        score: confidence, margin or entropy; drawn is refused unless `biased`.
        k: sites of a row in a step.
        gamma: nats that are lost in a step at most; 0 is k = 1, but that sites without entropy come along.
        biased: take score `drawn`.
    """

    def __init__(
        self, score: str = "confidence", k: int | None = None, gamma: float | None = None, biased: bool = False
    ) -> None:
        if score == "drawn" and not biased:
            raise ValueError(f"ordered: score 'drawn' is refused: {DRAWN}")
        if score not in (*SCORES, "drawn"):
            raise ValueError(f"ordered: score is {shown(score)}; choose {' or '.join(SCORES)}")
        if biased and score != "drawn":
            raise ValueError(f"ordered: biased is set, but score '{score}' is not biased; leave it out")
        if k is not None:
            whole_number("ordered: k", k, 1)
        if gamma is not None and not 0 <= gamma < torch.inf:
            raise ValueError(f"ordered: gamma is {gamma}; it must be at least 0 nats and finite")
        if k is not None and gamma is not None:
            raise ValueError(f"ordered: k is {k} and gamma {gamma}; give one of both")
        self.score, self.k, self.gamma = score, k, gamma
        self.takes_num_steps = k is None and gamma is None

    def steps(self, run: Run) -> Sequence[Step]:
        """The times are each row's own, see `choose`."""
        self._size = 1  # the least that a step reveals in a row with masked sites
        if self.gamma is None:
            # by all sites of the model or window: those that are unknown in other rows of a batch must not count
            num_sites = run.model.num_sites if run.window is None else int(run.window.sum())
            self._size = self.k or -(-num_sites // run.request.num_steps)
        most = int(run.masked.sum(1).max())
        return [(1.0, 0.0)] * -(-most // self._size)

    def choose(self, run: Run) -> Sites:
        masked = run.masked
        rows = torch.nonzero(masked.any(1))[:, 0]
        if not len(rows):
            return Sites(masked)
        run.t = run.time_of_masked()
        logits = run.logits(masked)
        p = categorical.probabilities(logits)
        score = torch.full(masked.shape, -torch.inf, dtype=torch.float64, device=masked.device)
        score = score.masked_scatter(masked, self._scores(run, rows, logits, p))
        order = score.argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(1)
        if self.gamma is None:
            return Sites(masked & (rank < self._size))
        nats = torch.zeros_like(score).masked_scatter(masked, entropies(p))
        first = prefix(nats.gather(1, order), self.gamma)
        return Sites(masked & first.gather(1, rank))

    def _scores(
        self, run: Run, rows: Tensor, logits: Float[Tensor, "k v"], p: Float64[Tensor, "k v"]
    ) -> Float64[Tensor, " k"]:
        if self.score == "confidence":
            return p.amax(1)
        if self.score == "margin":
            largest = p.topk(2, 1).values
            return largest[:, 0] - largest[:, 1]
        if self.score == "entropy":
            return -entropies(p)
        # the very values that will be put there: the same uniforms
        watch.narrow(rows)
        u = run.uniform("value")[run.masked]
        values = run.request.sharpening.draw(logits, u, run.masked[rows])
        return p.gather(1, values[:, None])[:, 0]


def entropies(p: Float64[Tensor, "k v"]) -> Float64[Tensor, " k"]:
    """Nats. By cumulative sums, which give a row the same bits alone and in a batch."""
    return -torch.special.xlogy(p, p).cumsum(1)[:, -1]


def prefix(nats: Float64[Tensor, "b n"], gamma: float) -> Bool[Tensor, "b n"]:
    """The longest beginning whose sum of entropies less their largest is at most gamma, and at least one site."""
    lost = nats.cumsum(1) - nats.cummax(1).values
    taken = (lost <= gamma).long().cumprod(1).bool()
    taken[:, 0] = True
    return taken
