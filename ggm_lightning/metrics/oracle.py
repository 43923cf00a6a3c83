"""Samples against the law that the data are drawn from, where it is known (core/known_law.py).

With q the law of the samples and p that of the data,

    -E_q log p(x) - H(p) = KL(q || p) + ( H(q) - H(p) )                                                         eq. (1)

The left side is what samples tell exactly, up to their number: `excess`. Its two parts cancel in bad samples: a sampler
that repeats what is likely has a small excess, for its entropy is small. They cannot be told apart without q. But for
any law r, H(q) <= -E_q log r(x) (Gibbs), so that

    H(q) - H(p) <= `gap` = -E_q log r(x) - H(p),     KL(q || p) >= `divergence` = E_q log r(x) - E_q log p(x)   eq. (2)

The better r fits the samples, the nearer both are. Tried are: models of order 0 to 3 counted on one half of the samples
and applied to the other; p itself, which gives 0 <= KL; and the model, if it says -log p of the samples or a bound on
it. The one with the smallest mean is taken and named. Of a source of order k and r of order k, the divergence is that
of all runs of k + 1 symbols, in the mean; what the samples lack at a longer range is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ggm_lightning.core.known_law import KnownLaw
from ggm_lightning.metrics.order_k import OrderK

ORDERS = (0, 1, 2, 3)
_LARGEST = 2**62  # see OrderK
_COLUMNS = {  # what is known of a figure is in the name of its column
    "gap": "gap_at_most",
    "gap_stderr": "gap_at_most_stderr",
    "divergence": "kl_at_least",
    "divergence_stderr": "kl_at_least_stderr",
}


@dataclass(frozen=True)
class AgainstLaw:
    """Figures in nats per row, each with its standard error; see the module.

    Attributes:
        rows: samples.
        excluded: the share of them that the law excludes (p = 0), which are left out of all else: with them the
            divergence is infinite. With fewer than 4 others nothing else is known: nan.
        entropy: H(p); its error is 0 where it is exact.
        excess: the left side of eq. (1). gap: the most that H(q) - H(p) is. divergence: the least that KL(q || p) is.
        by: whose law r is: "order k", "model" or "law".
    """

    rows: int
    excluded: float
    entropy: float
    entropy_stderr: float
    excess: float
    excess_stderr: float
    gap: float
    gap_stderr: float
    divergence: float
    divergence_stderr: float
    by: str


def against(
    law: KnownLaw, x: Int64[Tensor, "b n"], minus_log_model: Float64[Tensor, " b"] | None = None, batch_size: int = 256
) -> AgainstLaw:
    """The samples x against the law.

    Args:
        minus_log_model: of each sample -log of what the model says of it, or a bound above it, nats.

    Raises ValueError for fewer than 4 samples.
    """
    if len(x) < 4:
        raise ValueError(f"there are {len(x)} samples; at least 4 are needed, two to count on and two to measure")
    x = x.cpu()
    surprise = -torch.cat([law.log_prob(part) for part in x.split(batch_size)])
    possible = torch.isfinite(surprise)
    entropy, entropy_error = law.entropy()
    excluded = 1 - float(possible.double().mean())
    if int(possible.sum()) < 4:
        nan = math.nan
        return AgainstLaw(len(x), excluded, entropy, entropy_error, nan, nan, nan, nan, nan, nan, "law")
    surprise = surprise[possible]
    others = counted(x[possible], law.num_classes) | {"law": surprise}
    if minus_log_model is not None:
        others["model"] = minus_log_model.cpu().double()[possible]
    by = min(others, key=lambda name: float(others[name].mean()))
    excess, gap, divergence = surprise - entropy, others[by] - entropy, surprise - others[by]
    return AgainstLaw(
        len(x),
        excluded,
        entropy,
        entropy_error,
        float(excess.mean()),
        math.hypot(_stderr(excess), entropy_error),
        float(gap.mean()),
        math.hypot(_stderr(gap), entropy_error),
        float(divergence.mean()),
        _stderr(divergence),
        by,
    )


def counted(x: Int64[Tensor, "b n"], num_classes: int) -> dict[str, Float64[Tensor, " b"]]:
    """-log r(x) of each row, nats, by models of some orders counted on the rows of even number for those of odd number
    and the other way round: no row has a part in what it is measured by."""
    rows = x.numpy()
    found = {}
    for order in ORDERS:
        if num_classes ** (order + 1) >= _LARGEST:
            break
        nats = torch.zeros(len(x), dtype=torch.float64)
        for own in (0, 1):
            bits = OrderK(rows[1 - own :: 2], num_classes, order).bits(rows[own::2])
            nats[own::2] = torch.from_numpy(bits.sum(1)) * math.log(2)
        found[f"order {order}"] = nats
    return found


def named(figures: AgainstLaw) -> Mapping[str, float | str]:
    """As columns of a table."""
    return {f"oracle_{_COLUMNS.get(name, name)}": value for name, value in vars(figures).items()}


def _stderr(values: Float64[Tensor, " b"]) -> float:
    return float(values.std()) / math.sqrt(len(values))
