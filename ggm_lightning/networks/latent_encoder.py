"""From clean tokens to the latent of LDDM (arXiv 2510.18114): a small transformer, normalised.

The published trained encoder reads the outputs of the last S token positions and leaves them as they are; the frozen
ones are aligned with the text, a latent per token or per chunk of it. Without a scale the latent's size is a free
parameter that the diffusion's noise levels do not know. On text, learned queries stayed useless where aligned latents
did not (one token step from the latents of held-out rows of 32 characters: 14 and 31 % right after 20 s).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ggm_lightning.networks import initialise
from ggm_lightning.networks.attention import RotaryAttention, rotary_tables
from ggm_lightning.networks.blocks import BlockNetwork, Compiling, Stack, check_sizes
from ggm_lightning.networks.latent import MLPS, feed_forward
from ggm_lightning.networks.transformer import Block

_NORM_EPS = 1e-5
_VARIANCE_EPS = 1e-5
_MOMENTUM = 0.1  # share of a new batch in the running statistics
_NORMALISATIONS = ("coordinate", "sphere", "none")


def _all_reduce(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


class _SumOverRanks(torch.autograd.Function):
    """y = sum over ranks of x. Each rank's loss depends on y, so x receives the sum over ranks of dloss/dy."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # type: ignore[override]
        return _all_reduce(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _all_reduce(gradient)


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _mean_over_rows(x: Float[Tensor, "b s c"]) -> tuple[Float[Tensor, "s c"], Tensor | int]:
    """(mean over the rows of all ranks, differentiable; how many rows there are)."""
    if not _several_ranks():
        return x.mean(0), x.shape[0]
    total = _SumOverRanks.apply(torch.cat([x.sum(0).flatten(), x.new_tensor([float(x.shape[0])])]))
    return (total[:-1] / total[-1]).reshape(x.shape[1:]), total[-1].detach()


def sphere(x: Float[Tensor, "b s c"]) -> Float[Tensor, "b s c"]:
    """sqrt(c) x / |x| for each latent: coordinates of root mean square 1.

    The published code uses x / |x|, whose coordinates are smaller by sqrt(c): at c = 32 that is 15 dB less SNR at the
    same schedule.
    """
    return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5


class CoordinateNorm(nn.Module):
    """(x - mean) / sqrt(variance + 1e-5), for each of the S * d coordinates by itself.

    In training mode with the batch's own statistics (biased variance), summed over all ranks with gradients; a
    SyncBatchNorm would refuse to work on CPUs. Running averages of them (unbiased variance) serve eval mode. After
    `set_statistics` both modes use what it was given.
    """

    def __init__(self, num_latents: int, latent_dim: int):
        super().__init__()
        self.mean: Tensor
        self.variance: Tensor
        self.fixed: Tensor
        self.register_buffer("mean", torch.zeros(num_latents, latent_dim))
        self.register_buffer("variance", torch.ones(num_latents, latent_dim))
        self.register_buffer("fixed", torch.tensor(False))
        self.is_fixed = False  # the same on the host, so that no step has to ask the device

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[arg-type]
        if f"{prefix}fixed" in state_dict:
            self.is_fixed = bool(state_dict[f"{prefix}fixed"])

    @torch.no_grad()
    def set_statistics(self, mean: Float[Tensor, "s c"], std: Float[Tensor, "s c"]) -> None:
        """From now on these serve both modes. Raises ValueError for a wrong shape or value."""
        for name, given in (("mean", mean), ("std", std)):
            if given.shape != self.mean.shape:
                raise ValueError(
                    f"{name} has shape {list(given.shape)}, the latent {list(self.mean.shape)}; measure it over rows"
                )
            if not torch.isfinite(given).all() or (name == "std" and (given < 0).any()):
                raise ValueError(f"{name} has values that are not finite or negative; check the encoder's weights")
        self.mean.copy_(mean)
        self.variance.copy_(std**2)
        self.fixed.fill_(True)
        self.is_fixed = True

    def forward(self, x: Float[Tensor, "b s c"]) -> Float[Tensor, "b s c"]:
        """Raises ValueError for a single row in training mode, which has no variance."""
        mean, variance = self.mean, self.variance
        if self.training and not self.is_fixed:
            mean, variance = self._measure(x)
        return (x - mean.to(x.dtype)) * torch.rsqrt(variance.to(x.dtype) + _VARIANCE_EPS)

    def _measure(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[0] < 2 and not _several_ranks():
            raise ValueError(
                "the latent of a single row cannot be normalised by its batch; train the encoder with micro-batches of "
                "2 rows or more, or with normalise: sphere"
            )
        mean, rows = _mean_over_rows(x)
        variance, _ = _mean_over_rows((x - mean) ** 2)
        with torch.no_grad():
            self.mean.lerp_(mean.to(self.mean.dtype), _MOMENTUM)
            self.variance.lerp_((variance * rows / (rows - 1)).to(self.variance.dtype), _MOMENTUM)
        return mean, variance


class LatentEncoder(BlockNetwork):
    """The latent z_0 of clean tokens: `encoder(x, hidden=None)` -> Float[b, S, d].

    [embeddings of x; S learned queries] -> blocks without a time -> the queries' outputs, in d numbers each,
    normalised. With `chunk` c there are no queries: latent s is one linear map of the outputs at the positions
    s c .. (s + 1) c - 1, side by side. `raw` gives them before normalisation.

    Args:
        num_classes: V; x holds ids 0..V-1.
        feature_dim: features per head; even.
        num_heads: attention heads; the width is feature_dim * num_heads.
        num_layers: blocks. 0, with a chunk: a latent knows nothing of what stands outside its chunk.
        num_latents: S, latents per example.
        latent_dim: d, numbers per latent.
        chunk: positions that a latent reads, n/S for rows of n; None: learned queries, for rows of any length, whose
            latents stand at no place of the text. Goes with latent_positions: aligned of JointDenoiser.
        normalise: coordinate: each of the S d coordinates to mean 0 and variance 1 (CoordinateNorm). sphere: each
            latent to length sqrt(d). none: as it comes.
        mlp: gelu (as published), or gated: glu, swiglu, geglu.
        dropout: one rate for the attention probabilities, the channels of both branches and the embedding.
        checkpoint_activations: recompute each block in the backward pass: less memory, about a third more time.
        compile_blocks: compile each block; None: on a GPU; "graphs": all of them as one CUDA graph, for small networks.
    """

    compiled = (Block,)
    begins_alike = ("queries",)

    def __init__(
        self,
        num_classes: int,
        feature_dim: int = 64,
        num_heads: int = 4,
        num_layers: int = 4,
        num_latents: int = 16,
        latent_dim: int = 32,
        normalise: str = "coordinate",
        mlp: str = "gelu",
        dropout: float = 0.0,
        checkpoint_activations: bool = False,
        compile_blocks: Compiling = None,
        chunk: int | None = None,
    ):
        super().__init__()
        sizes = {"num_heads": num_heads, "num_layers": num_layers, "num_latents": num_latents, "latent_dim": latent_dim}
        if chunk is not None:
            sizes["chunk"] = chunk
            if num_layers == 0:
                del sizes["num_layers"]
        check_sizes(feature_dim, dropout, mlp, MLPS, num_classes=num_classes, **sizes)
        if normalise not in _NORMALISATIONS:
            raise ValueError(f"normalise is {normalise!r}; choose one of {', '.join(_NORMALISATIONS)}")
        self.num_classes, self.num_latents, self.latent_dim = num_classes, num_latents, latent_dim
        self.feature_dim, self.width, self.normalise = feature_dim, feature_dim * num_heads, normalise
        self.dropout, self.compile_blocks, self.chunk = dropout, compile_blocks, chunk
        self.embedding = nn.Embedding(num_classes, self.width)
        self.queries = nn.Parameter(torch.empty(num_latents, self.width)) if chunk is None else None

        def block() -> Block:
            inner = feed_forward(self.width, mlp, 2 / num_layers)
            return Block(RotaryAttention(self.width, num_heads, dropout), inner, None, dropout)

        self.blocks = Stack([block() for _ in range(num_layers)], checkpoint_activations)
        self.final_norm = nn.RMSNorm(self.width, eps=_NORM_EPS)
        self.project = nn.Linear(self.width * (chunk or 1), latent_dim, bias=False)
        self.norm = CoordinateNorm(num_latents, latent_dim) if normalise == "coordinate" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The parts that are this module's own; every submodule has drawn its kernels itself."""
        initialise.embedding_(self.embedding)
        if self.queries is not None:
            nn.init.normal_(self.queries, std=self.width**-0.5)
        nn.init.xavier_uniform_(self.project.weight)

    def set_statistics(self, mean: Float[Tensor, "s c"], std: Float[Tensor, "s c"]) -> None:
        """Mean and deviation of `raw` over the data, to be used from now on instead of a batch's own: the latent of a
        frozen encoder does not depend on its batch. Raises ValueError unless normalise is coordinate."""
        if self.norm is None:
            raise ValueError(f"normalise is {self.normalise!r}, which has no statistics; set normalise: coordinate")
        self.norm.set_statistics(mean, std)

    def forward(self, x: Int[Tensor, " b *s"], hidden: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b s c"]:
        """The normalised latent. `hidden` says where the embedding of the input is zero."""
        raw = self.raw(x, hidden)
        if self.norm is not None:
            return self.norm(raw)
        return sphere(raw) if self.normalise == "sphere" else raw

    def raw(self, x: Int[Tensor, " b *s"], hidden: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b s c"]:
        """The latent before normalisation, in the precision of the weights. Raises ValueError for rows that are not S
        chunks long."""
        n = x[0].numel() if len(x) else 0
        if self.chunk is not None and len(x) and n != self.num_latents * self.chunk:
            raise ValueError(
                f"the encoder reads {self.num_latents} chunks of {self.chunk} positions, the rows have {n}; set "
                f"num_latents and chunk so that their product is {n} (model.encoder.num_latents, and as many in "
                "model.network.num_latents)"
            )
        tokens = self.embedding(x.flatten(1))
        if hidden is not None:
            tokens = tokens.masked_fill(hidden.flatten(1)[..., None], 0.0)
        tokens = F.dropout(tokens, self.dropout, self.training)
        h = tokens if self.queries is None else torch.cat([tokens, self.queries.expand(len(x), -1, -1)], dim=1)
        cos, sin = rotary_tables(h.shape[1], self.feature_dim, torch.promote_types(h.dtype, torch.float32), h.device)
        (h,) = self.blocks((h,), None, cos, sin)
        read = h[:, -self.num_latents :] if self.chunk is None else h
        return self.project(self.final_norm(read).reshape(len(x), self.num_latents, -1)).to(h.dtype)
