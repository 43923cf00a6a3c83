"""Latents from a frozen language model, as in LDDM's experiments on text (arXiv 2510.18114): hidden states over the
clean tokens, pooled into S vectors, of which the first d coordinates are kept.

Published: Qwen3-Embedding-0.6B, d = 32 and S = 64 (OpenWebText, chunks_eos) or 128 (LM1B), normalise: unit. Model and
tokens share one vocabulary: give the model's folder as the data's tokenizer, too. Qwen's has 151,669 entries, and its
shards are uint32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ggm_lightning.networks.latent_encoder import CoordinateNorm, sphere

_POOLINGS = ("chunks", "chunks_eos", "tokens")
_NORMALISATIONS = ("unit", "sphere", "coordinate", "none")


def chunk_means(states: Float[Tensor, "b n d"], num_chunks: int) -> Float[Tensor, "b s d"]:
    """Means over contiguous chunks, position i belonging to chunk floor(i s / n). Raises ValueError if n < s."""
    n = states.shape[1]
    if n < num_chunks:
        raise ValueError(f"{n} tokens do not fill {num_chunks} chunks; set num_latents to {n} or less")
    chunk = torch.arange(n, device=states.device) * num_chunks // n
    member = F.one_hot(chunk, num_chunks).to(states.dtype)
    return torch.einsum("bnd,ns->bsd", states, member / member.sum(0))


def load_transformers(source: str) -> nn.Module:
    """The headless model of a local folder or of a name on the hub. Raises ImportError or OSError in one line."""
    try:
        from transformers import AutoModel
    except ImportError:
        raise ModuleNotFoundError(
            f"encoder.source: {source} needs transformers, which is not installed; pip install 'ggm-lightning[eval]'"
        ) from None
    try:
        model = AutoModel.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"encoder.source: {source} cannot be loaded ({reason}); give a model's folder or name") from None
    model.config.use_cache = False  # keys and values of every layer, which nothing here asks for again
    return model


class PretrainedEncoder(nn.Module):
    """The latent z_0 of clean tokens from a frozen model: `encoder(x, hidden=None)` -> Float[b, S, d].

    The foreign model follows this module to its device, and is otherwise no part of it: neither in parameters() nor in
    state_dict() nor in averages; it stays in eval mode, without gradients, and is loaded when first needed, so that
    sampling never loads it.

    Args:
        source: folder or name of a `transformers` model, or a module (frozen here) that maps Int[b, n] to states
            Float[b, n, D] or to something with such a `last_hidden_state`.
        num_latents: S.
        latent_dim: d, at most D.
        pooling: chunks: means over S contiguous chunks. chunks_eos: over S-1, then the state of the last position.
            tokens: the state of each token, S = n.
        normalise: unit: z / |z| per latent, as published. sphere: sqrt(d) z / |z|, coordinates of size 1, which at
            d = 32 is 15 dB more SNR with the same schedule. coordinate: to mean 0 and variance 1 with the statistics
            that `set_statistics` was given. none: as it comes.
        eos: an id to append to every row; the last position of chunks_eos is then its own. Chunks never hold it.
        num_classes: V, to refuse a model with a smaller vocabulary; None: not checked.
    """

    foreign = True

    def __init__(
        self,
        source: str | nn.Module,
        num_latents: int,
        latent_dim: int,
        pooling: str = "chunks",
        normalise: str = "unit",
        eos: int | None = None,
        num_classes: int | None = None,
    ):
        super().__init__()
        least = 2 if pooling == "chunks_eos" else 1
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling is {pooling!r}; choose one of {', '.join(_POOLINGS)}")
        if normalise not in _NORMALISATIONS:
            raise ValueError(f"normalise is {normalise!r}; choose one of {', '.join(_NORMALISATIONS)}")
        if num_latents < least or latent_dim < 1:
            raise ValueError(
                f"num_latents is {num_latents} and latent_dim {latent_dim}; pooling {pooling} needs at least {least} "
                f"and 1"
            )
        self.source, self.num_latents, self.latent_dim = (
            source if isinstance(source, str) else "",
            num_latents,
            latent_dim,
        )
        self.pooling, self.normalise, self.eos, self.num_classes = pooling, normalise, eos, num_classes
        self.norm = CoordinateNorm(num_latents, latent_dim) if normalise == "coordinate" else None
        # In a tuple, where nn.Module does not look for submodules.
        self._foreign: tuple[nn.Module, ...] = ()
        if isinstance(source, nn.Module):
            self._adopt(source)

    def _adopt(self, model: nn.Module) -> None:
        self._foreign = (model.eval().requires_grad_(False),)
        known = self._embedding()
        if known is not None and self.num_classes is not None and known.num_embeddings < self.num_classes:
            raise ValueError(
                f"the encoder knows {known.num_embeddings} tokens, the data has {self.num_classes}; give the data the "
                f"encoder's tokenizer"
            )

    def load(self, device: torch.device | str | None = None) -> nn.Module:
        """The foreign model, read from `source` the first time. Raises ImportError, OSError or ValueError."""
        if not self._foreign:
            self._adopt(load_transformers(self.source).to(device))
        return self._foreign[0]

    def _embedding(self) -> nn.Embedding | None:
        """The foreign model's table of tokens, as far as it can be told from other tables."""
        model = self._foreign[0]
        if hasattr(model, "get_input_embeddings"):
            return model.get_input_embeddings()
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        return tables[0] if len(tables) == 1 else None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> PretrainedEncoder:
        super()._apply(fn, recurse)
        for model in self._foreign:
            model._apply(fn)
        return self

    def train(self, mode: bool = True) -> PretrainedEncoder:
        """Always in eval mode: a frozen latent depends neither on dropout nor on its batch."""
        return super().train(False)

    def identity(self) -> str:
        """16 digits for this encoder (data/latents.py), of its settings and its source: of a folder the names and sizes
        of its files, wherever it lies, of a module its weights. Nothing is loaded for it."""
        settings: list[Any] = [self.num_latents, self.latent_dim, self.pooling, self.normalise, self.eos]
        folder = Path(self.source)
        if self.source and folder.is_dir():
            settings += sorted([file.name, file.stat().st_size] for file in folder.iterdir() if file.is_file())
        else:
            settings.append(self.source)
        digest = hashlib.sha256(json.dumps(settings).encode())
        if not self.source:
            for name, value in sorted(self._foreign[0].state_dict().items()):
                digest.update(name.encode() + value.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def set_statistics(self, mean: Float[Tensor, "s c"], std: Float[Tensor, "s c"]) -> None:
        """Mean and deviation of `raw` over the data. Raises ValueError unless normalise is coordinate."""
        if self.norm is None:
            raise ValueError(f"normalise is {self.normalise!r}, which has no statistics; set normalise: coordinate")
        self.norm.set_statistics(mean, std)

    def forward(self, x: Int[Tensor, "b n"], hidden: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b s c"]:
        """The normalised latent. `hidden` says where the embedding of the input is zero; with pooling: tokens the
        latent is zero there, too. Raises ValueError for sizes that the model cannot give."""
        latent = self.raw(x, hidden)
        if self.norm is not None:
            latent = self.norm(latent)
        elif self.normalise != "none":
            latent = F.normalize(latent, dim=-1) if self.normalise == "unit" else sphere(latent)
        if hidden is not None and self.pooling == "tokens":
            latent = latent.masked_fill(hidden.flatten(1)[..., None], 0.0)
        return latent

    @torch.no_grad()
    def raw(self, x: Int[Tensor, "b n"], hidden: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b s c"]:
        """The pooled and clipped states in float32 (float64 if the model computes in it), not normalised."""
        model, ids, n = self.load(x.device), x.flatten(1), x[0].numel()
        if self.eos is not None:
            ids = F.pad(ids, (0, 1), value=self.eos)
        with self._hiding(hidden):
            out = model(ids)
        states = getattr(out, "last_hidden_state", out)
        if states.shape[-1] < self.latent_dim:
            raise ValueError(
                f"the encoder's states have {states.shape[-1]} coordinates; set latent_dim to that or less, not "
                f"{self.latent_dim}"
            )
        states = states[..., : self.latent_dim].to(torch.promote_types(states.dtype, torch.float32))
        if self.pooling == "chunks":
            return chunk_means(states[:, :n], self.num_latents)
        if self.pooling == "chunks_eos":
            return torch.cat([chunk_means(states[:, :n], self.num_latents - 1), states[:, -1:]], dim=1)
        if n != self.num_latents:
            raise ValueError(f"pooling: tokens gives {n} latents for {n} tokens; set num_latents to {n}")
        return states[:, :n]

    @contextmanager
    def _hiding(self, hidden: Tensor | None) -> Iterator[None]:
        """Zeroes what the table of tokens answers at the hidden positions; an appended id is never hidden."""
        if hidden is None:
            yield
            return
        table = self._embedding()
        if table is None:
            raise ValueError("the encoder has several embeddings, or none; give its class get_input_embeddings()")
        where = F.pad(hidden.flatten(1), (0, int(self.eos is not None)))[..., None]
        handle = table.register_forward_hook(lambda module, inputs, states: states.masked_fill(where, 0.0))
        try:
            yield
        finally:
            handle.remove()
