"""The autoencoder of VQGAN (Esser, Rombach, Ommer 2021, arXiv 2012.09841), of taming-transformers' own modules.

    z = E(x)                                    Float[b, code_dim, h, w]
    k_ij = argmin_k |z_ij - e_k|^2              eq. (2): the codes, Int64[b, h, w]
    x_hat = G(e_k)                              eq. (1)

Only three classes are taken from taming-transformers: Encoder, Decoder and VectorQuantizer2. They need nothing but
torch, numpy and einops; the package's declared dependencies (its training code) are not installed.
"""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

PIP_LINE = "pip install --no-deps taming-transformers-rom1504==0.0.6"
_GROUPS = 32  # of taming's group norms: every width is a multiple of it


def taming() -> tuple[Any, Any, Any]:
    """(Encoder, Decoder, VectorQuantizer2). ModuleNotFoundError with the pip line where they are not installed."""
    try:
        from taming.modules.diffusionmodules.model import Decoder, Encoder
        from taming.modules.vqvae.quantize import VectorQuantizer2
    except ImportError as error:
        raise ModuleNotFoundError(
            f"VQGAN is built of taming-transformers' modules, which cannot be imported ({error}); {PIP_LINE}"
        ) from None
    return Encoder, Decoder, VectorQuantizer2


def scaled(pixels: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Bytes to -1..1, as all released VQGANs were trained."""
    return pixels.float() / 127.5 - 1


def pixels(x: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """-1..1 to bytes, to the nearest; what lies outside is cut off. Undoes `scaled`."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class Autoencoder(nn.Module):
    """Encoder, codebook and decoder; parameters have the names that the released checkpoints use.

    Args:
        shape: (channels, side, side) of a picture.
        num_codes: entries of the codebook.
        code_dim: of an entry.
        width: channels at full resolution; times each of `multipliers` at the lower ones, which halve the side: f = 2
            to the power of their number minus one.
        num_blocks: residual blocks of the encoder at each resolution, of the decoder one more; 0 goes with multipliers
            of 1 alone.
        attention_at: sides at which blocks are followed by attention; the lowest has one in its middle anyway.
        latent_dim: channels between encoder and codebook.
        dropout: in the residual blocks.
        beta: of the commitment loss.

    The defaults are those of the two released ImageNet models with f = 16, but for the number of codes.

    The loss of `quantised` is mean |sg[z] - e|^2 + beta mean |z - sg[e]|^2 (eq. 4; the second term is the commitment).
    taming's own default (`legacy`) has beta at the first term, by a mistake that its authors kept for old runs: a
    codebook that learns at a quarter of the speed, and an encoder bound too tightly. It plays no part in codes and
    pictures.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_codes: int,
        code_dim: int = 256,
        width: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        num_blocks: int = 2,
        attention_at: tuple[int, ...] = (16,),
        latent_dim: int = 256,
        dropout: float = 0.0,
        beta: float = 0.25,
    ) -> None:
        super().__init__()
        self.shape, self.num_codes = tuple(shape), num_codes
        _check(self.shape, num_codes, width, multipliers, num_blocks)
        encoder, decoder, quantizer = taming()
        sizes: dict[str, Any] = {"ch": width, "ch_mult": tuple(multipliers), "num_res_blocks": num_blocks}
        sizes |= {"attn_resolutions": tuple(attention_at), "resolution": self.shape[1], "dropout": dropout}
        sizes |= {"in_channels": self.shape[0], "out_ch": self.shape[0], "z_channels": latent_dim, "double_z": False}
        with contextlib.redirect_stdout(io.StringIO()):  # the decoder prints its sizes
            self.encoder, self.decoder = encoder(**sizes), decoder(**sizes)
        self.quantize = quantizer(num_codes, code_dim, beta=beta, sane_index_shape=True, legacy=False)
        self.quant_conv = nn.Conv2d(latent_dim, code_dim, 1)
        self.post_quant_conv = nn.Conv2d(code_dim, latent_dim, 1)
        side = self.shape[1] // 2 ** (len(multipliers) - 1)
        self.grid = (side, side)

    def latents(self, x: Float[Tensor, "b c side side"]) -> Float[Tensor, "b code_dim h w"]:
        """z: what the codebook is compared with."""
        return self.quant_conv(self.encoder(x))

    def quantised(
        self, x: Float[Tensor, "b c side side"]
    ) -> tuple[Float[Tensor, "b code_dim h w"], Float[Tensor, ""], Int64[Tensor, "b h w"]]:
        """(entries with the gradient passed straight through to z, codebook and commitment loss, codes)."""
        entries, loss, (_, _, codes) = self.quantize(self.latents(x))
        return entries, loss, codes

    def codes(self, x: Float[Tensor, "b c side side"]) -> Int64[Tensor, "b h w"]:
        return self.quantised(x)[2]

    def decode_entries(self, entries: Float[Tensor, "b code_dim h w"]) -> Float[Tensor, "b c side side"]:
        return self.decoder(self.post_quant_conv(entries))

    def decode(
        self, codes: Int64[Tensor, "b h w"], masked: Bool[Tensor, "b h w"] | None = None
    ) -> Float[Tensor, "b c side side"]:
        """Pictures from codes; at `masked` places the mean of the codebook stands, which says least."""
        table = self.quantize.embedding.weight
        entries = table[codes]
        if masked is not None:
            entries = torch.where(masked[..., None], table.mean(0), entries)
        return self.decode_entries(entries.permute(0, 3, 1, 2).contiguous())

    def forward(
        self, x: Float[Tensor, "b c side side"]
    ) -> tuple[Float[Tensor, "b c side side"], Float[Tensor, ""], Int64[Tensor, "b h w"]]:
        """(reconstruction, codebook and commitment loss, codes)."""
        entries, loss, codes = self.quantised(x)
        return self.decode_entries(entries), loss, codes


def _check(shape: tuple[int, ...], num_codes: int, width: int, multipliers: tuple[int, ...], num_blocks: int) -> None:
    if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        raise ValueError(f"VQGAN: pictures of shape {list(shape)}; they must be square, with 1 or 3 channels")
    if num_codes < 2:
        raise ValueError(f"VQGAN: num_codes is {num_codes}; a codebook has at least 2 entries")
    wrong = [width * m for m in multipliers if m < 1 or width < 1 or width * m % _GROUPS]
    if wrong or not multipliers:
        raise ValueError(
            f"VQGAN: width {width} times multipliers {list(multipliers)}; each must be a multiple of {_GROUPS}, the "
            f"number of groups of the norms"
        )
    if num_blocks < 0 or (num_blocks == 0 and set(multipliers) != {1}):
        raise ValueError(
            f"VQGAN: num_blocks is {num_blocks}; give at least 1, or 0 with multipliers of 1 alone, as only blocks "
            f"change the width"
        )
    factor = 2 ** (len(multipliers) - 1)
    if shape[1] % factor:
        raise ValueError(
            f"VQGAN: {len(multipliers)} multipliers make the side {factor} times smaller, and {shape[1]} is no "
            f"multiple of it; give fewer"
        )


def num_parameters(network: nn.Module) -> int:
    return sum(math.prod(p.shape) for p in network.parameters())
