"""How well a VQGAN reconstructs, and how much of its codebook it uses (arXiv 2012.09841, section 3.1)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics import Metric


class CodeUse(Metric):
    """Sums over all batches and ranks, exact whatever their sizes.

        code_perplexity   exp(-sum_k p_k ln p_k), p_k the share of code k: how many codes seem to be in use
        codes_used        share of the codebook that occurs at all

    Args:
        num_codes: of the codebook.
    """

    full_state_update = False

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.counts: Tensor
        self.add_state("counts", torch.zeros(num_codes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, codes: Int64[Tensor, " b *g"]) -> None:
        self.counts += torch.bincount(codes.reshape(-1), minlength=self.num_codes)

    def compute(self) -> dict[str, Tensor]:
        return {"code_perplexity": perplexity(self.counts), "codes_used": (self.counts > 0).double().mean()}


class Reconstruction(CodeUse):
    """Beside the use of the codes, of pictures:

    mse               mean (x - x_hat)^2 over pixels and channels, of values in -1..1
    psnr              10 log10(4 / mse), decibels: 4 is the square of the range
    """

    higher_is_better = False

    def __init__(self, num_codes: int) -> None:
        super().__init__(num_codes)
        self.squares: Tensor
        self.values: Tensor
        self.add_state("squares", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("values", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(  # type: ignore[override]
        self, x: Float[Tensor, " b *s"], x_hat: Float[Tensor, " b *s"], codes: Int64[Tensor, " b *g"]
    ) -> None:
        super().update(codes)
        self.squares += (x - x_hat).double().square().sum()
        self.values += x.numel()

    def compute(self) -> dict[str, Tensor]:
        mse = self.squares / self.values
        return {"mse": mse, "psnr": 10 * torch.log10(4 / mse), **super().compute()}


def perplexity(counts: Int64[Tensor, " codes"]) -> Float[Tensor, ""]:
    """exp of the entropy (nats) of the frequencies: 1 for a single code, their number for equal ones."""
    share = counts.double() / counts.sum().clamp(min=1)
    return torch.exp(-torch.special.xlogy(share, share).sum())


def decibels(mse: float) -> float:
    return 10 * math.log10(4 / mse)
