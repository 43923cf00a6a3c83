"""Times at which the tests sum a latent's term, apart from exact/integral.py, which they check."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def half_intervals(nodes: int = 40) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]: Gauss-Legendre in v of t = v^2 / 2 and of t = 1 - v^2 / 2.

    In t itself the rule would be off by thousandths of a nat: the SNR of gaussian.Sqrt falls to 0 as a root does, and
    its slope, which the latent's term has as a factor, has no end at t = 1.
    """
    x, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(nodes))
    v, w = (x + 1) / 2, w / 2
    return torch.cat([v**2 / 2, 1 - v**2 / 2]), torch.cat([w * v, w * v])
