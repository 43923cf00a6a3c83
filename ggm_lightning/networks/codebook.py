"""The codebook of Di-LADD (arXiv 2510.18114, later versions): vectors on a sphere, moved by averages, not by gradients.

    c(e) = argmax_k cos(e, v_k)                                                                                   (1)
    N_k <- a N_k + (1 - a) n_k,  M_k <- a M_k + (1 - a) sum of the e/|e| with code k,  v_k = M_k / |M_k|          (2)

n_k counts the latents of a step whose code is k. A code whose average N_k has fallen below `dead_below` gets the latent
of a random place of the step. As released: a = .95, dead below 2.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from ggm_lightning.core import noise

_STATISTICS = ("counts", "sums", "pending_counts", "pending_sums", "candidates")


def _added_up(x: Tensor) -> Tensor:
    """The sum over all ranks."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x)
    return x


class Codebook(nn.Module):
    """K unit vectors of d numbers. `begin` a step, `observe` each of its micro-batches; what was observed moves the
    vectors when the next step begins, or at `settle`. So a step's micro-batches and ranks all meet the same vectors.

    Args:
        num_codes: K.
        latent_dim: d.
        decay: a of eq. (2).
        dead_below: average count, latents per step, below which a code is replaced.
    """

    def __init__(self, num_codes: int, latent_dim: int, decay: float = 0.95, dead_below: float = 2.0) -> None:
        super().__init__()
        if num_codes < 1:
            raise ValueError(f"num_codes is {num_codes}; a codebook has at least 1 code")
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it is the share of an average that is kept: give a number in [0, 1)")
        if not dead_below >= 0:
            raise ValueError(f"dead_below is {dead_below}; it must be at least 0, 2 is published")
        self.num_codes, self.decay, self.dead_below = num_codes, decay, dead_below
        self.vectors: Tensor
        self.counts: Tensor
        self.sums: Tensor
        self.pending_counts: Tensor
        self.pending_sums: Tensor
        self.candidates: Tensor
        self.pending_step: Tensor
        self.register_buffer("vectors", F.normalize(torch.randn(num_codes, latent_dim), dim=-1))
        for name in _STATISTICS:
            shape = (num_codes,) if name.endswith("counts") else (num_codes, latent_dim)
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("pending_step", torch.tensor(-1))
        self._step = -1  # the same on the host, so that no step has to ask the device

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[arg-type]
        if f"{prefix}pending_step" in state_dict:
            self._step = int(state_dict[f"{prefix}pending_step"])

    # ------------------------------------------------------------------ codes

    def codes(self, unit: Float[Tensor, "*b d"]) -> Int64[Tensor, "*b"]:
        """Eq. (1); the first of equally near ones."""
        return (unit.to(self.vectors.dtype) @ self.vectors.T).argmax(-1)

    def entries(self, codes: Int64[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        """The vectors of these codes, sqrt(d) long, so that a coordinate has the size 1."""
        return self.vectors[codes] * self.vectors.shape[1] ** 0.5

    # ------------------------------------------------------------------ how they move

    def begin(self, step: int) -> None:
        """Of an optimiser step: what the one before has observed moves the vectors now."""
        if step != self._step:
            self.settle()
            self._step = step
            self.pending_step.fill_(step)

    @torch.no_grad()
    def observe(
        self,
        unit: Float[Tensor, "b s d"],
        codes: Int64[Tensor, "b s"],
        *,
        seed: int,
        row: Int64[Tensor, " b"],
        total: int,
    ) -> None:
        """A micro-batch of this step: the rows with these numbers, of `total` in the step."""
        unit, flat, s = unit.to(self.sums.dtype), codes.flatten(), codes.shape[1]
        number = torch.zeros_like(self.counts).index_add(0, flat, torch.ones_like(flat, dtype=self.counts.dtype))
        part = torch.zeros_like(self.sums).index_add(0, flat, unit.flatten(0, 1))
        every = torch.arange(self.num_codes, device=flat.device)
        u = noise.uniform("dead code", seed=seed, step=self._step, row=every, num_sites=2)
        wanted, slot = (u * torch.tensor([total, s], device=u.device)).long().unbind(-1)
        here = wanted[:, None] == row
        at = here.int().argmax(1)
        found = torch.where(here.any(1)[:, None], unit[at, slot], 0.0)
        added = _added_up(torch.cat([number[:, None], part, found], 1))
        d = self.sums.shape[1]
        self.pending_counts += added[:, 0]
        self.pending_sums += added[:, 1 : 1 + d]
        self.candidates += added[:, 1 + d :]

    @torch.no_grad()
    def settle(self) -> None:
        """Eq. (2) with all that was observed since the last time; nothing, if nothing was."""
        if self._step < 0:
            return
        self.counts.lerp_(self.pending_counts, 1 - self.decay)
        self.sums.lerp_(self.pending_sums, 1 - self.decay)
        dead = (self.counts < self.dead_below) & self.candidates.any(1)
        # as if it had been used as often as others, so that it is not replaced again at once
        usual = self.pending_counts.mean().clamp(min=self.dead_below)
        self.counts.copy_(torch.where(dead, usual, self.counts))
        self.sums.copy_(torch.where(dead[:, None], self.candidates * usual, self.sums))
        moved = F.normalize(self.sums, dim=-1)
        self.vectors.copy_(torch.where(moved.any(1)[:, None], moved, self.vectors))
        for pending in (self.pending_counts, self.pending_sums, self.candidates):
            pending.zero_()
        self._step = -1
        self.pending_step.fill_(-1)

    @torch.no_grad()
    def fit(self, units: Float[Tensor, "m d"], rounds: int = 10) -> None:
        """Lloyd's algorithm from the vectors as they are: each becomes the direction of the sum of those nearest to it.
        One that nothing is nearest to becomes one of those that are farthest from their own."""
        units = units.to(self.sums.dtype)
        for _ in range(rounds):
            cosine, codes = (units @ self.vectors.T).max(-1)
            sums = torch.zeros_like(self.sums).index_add(0, codes, units)
            empty = torch.bincount(codes, minlength=self.num_codes) == 0
            far = units[cosine.argsort(stable=True)]  # the farthest first
            rank = (empty.cumsum(0) - 1).clamp(0, len(far) - 1)
            self.vectors.copy_(torch.where(empty[:, None], far[rank], F.normalize(sums, dim=-1)))
