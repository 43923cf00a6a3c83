"""The two stages of LDDM (arXiv 2510.18114) in one fit: what happens to the encoder, and when.

Stage 1, optimiser steps 0 .. stage1_steps - 1: encoder and token denoiser learn, the latent loss is off. Before step
stage1_steps the encoder takes its averaged weights, its normalisation is measured, and it never changes again.

A latent loss that reaches the encoder makes it constant, which is cheapest to predict; the freeze is what prevents it.
Frozen means requires_grad False and grad None: a gradient of zero would still let Adam's momentum and the weight decay
move the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from ggm_lightning.models import contract, declared
from ggm_lightning.models.trained import Averages

LOSSES = ("elbo", "plain")
STAGE1_LATENTS = ("clean", "all_levels")
# p_cfg and p_r_given of the released code where it takes a frozen language model's states (LM1B, OWT)
_PUBLISHED_P_CFG, _PUBLISHED_P_R = 0.15, 0.9


class TrainingTimes(NamedTuple):
    """Times of the rows of a step, Float64[b] each.

    Attributes:
        tokens: of x_t.
        shown: of the latent with which the tokens are denoised.
        predicted: of the latent that is to be denoised itself.
        weight: of its squared error in the bound.
    """

    tokens: Tensor
    shown: Tensor
    predicted: Tensor
    weight: Tensor


_CHUNK = 256  # rows encoded at once when statistics are measured


@dataclass(frozen=True)
class Recipe:
    """How an LDDM is trained.

    Released code is darioShar/LADD at b2c0e87: of its recipes, that of the sawtooth trains its encoder, those of LM1B
    and OpenWebText have the frozen one of a language model (networks/pretrained.py).

    Attributes:
        stage1_steps: optimiser steps in which the encoder learns; 0 where it is given.
        stage1_latent: what the tokens see of the latent in stage 1. clean: its cleanest level. all_levels: the level of
            the times that are drawn. None: as released, clean for SEQ, whose tokens never see anything else, and
            all_levels for FUJI. On text an encoder learns little through noise (docs/results.md).
        token_loss: elbo (weight w'/w, bits per dimension) or plain (unweighted, nats per token; published for text).
        latent_loss: elbo (weight -SNR'/2, bits per dimension) or plain (mean squared error; published).
        c_z: weight of the latent loss.
        p_r: in stage 1, the chance that the encoder does not see the sites that are masked in x_t, drawn per example
            from U[0, p_r]: such a latent cannot copy what is asked. 0, as in the released recipe that trains one.
        p_r_given: the same once the encoder is fixed. None: 0.9 where it is foreign (declared.Encoder), as released,
            and 0 where it is not. The latents that a sampler draws are then those of partly hidden examples, too.
        p_cfg: share of training examples whose latent is replaced by zeros. None, as released: 0 where the encoder is
            trained (stage1_steps above 0), and 0.15 where it is given.
        statistics_rows: training rows on which the normalisation of the encoder is measured.
    """

    stage1_steps: int = 0
    token_loss: str = "elbo"
    latent_loss: str = "plain"
    c_z: float = 1.0
    p_r: float = 0.0
    p_r_given: float | None = None
    p_cfg: float | None = None
    statistics_rows: int = 4096
    stage1_latent: str | None = None

    def __post_init__(self) -> None:
        for name in ("p_r", "p_r_given", "p_cfg"):
            value = getattr(self, name)
            if value is None and name != "p_r":
                continue
            if value is None or not 0 <= value <= 1:
                raise ValueError(f"recipe.{name} is {value}; it is a probability: give a number in [0, 1]")
        for name, least in (("stage1_steps", 0), ("statistics_rows", 2), ("c_z", 0)):
            value = getattr(self, name)
            if value is None or not least <= value < math.inf:
                raise ValueError(f"recipe.{name} is {value}; it must be at least {least} and finite")
        for name in ("token_loss", "latent_loss"):
            if getattr(self, name) not in LOSSES:
                raise ValueError(f"recipe.{name} is '{getattr(self, name)}'; choose {' or '.join(LOSSES)}")
        if self.stage1_latent is not None and self.stage1_latent not in STAGE1_LATENTS:
            raise ValueError(
                f"recipe.stage1_latent is '{self.stage1_latent}'; choose {' or '.join(STAGE1_LATENTS)}, or null for "
                "what was released"
            )

    def of(self, encoder: nn.Module, stage1_latent: str) -> Recipe:
        """With what is None settled for this encoder; `stage1_latent` is the family's."""
        p_cfg, p_r_given = self.p_cfg, self.p_r_given
        if p_cfg is None:
            p_cfg = 0.0 if self.stage1_steps else _PUBLISHED_P_CFG
        if p_r_given is None:
            p_r_given = _PUBLISHED_P_R if declared.by(encoder).foreign else 0.0
        chosen = self.stage1_latent or stage1_latent
        return replace(self, p_cfg=p_cfg, p_r_given=p_r_given, stage1_latent=chosen)


def latent_shape(encoder: nn.Module, **networks: nn.Module | None) -> tuple[int, int]:
    """(S, d) of the encoder. Raises ValueError where it does not say, or a network says otherwise."""
    own = declared.by(encoder)
    if own.num_latents is None or own.latent_dim is None:
        raise ValueError(
            f"the encoder {type(encoder).__name__} does not say how large its latent is; give it the attributes "
            "num_latents and latent_dim"
        )
    declared.check("LDDM", "encoder", encoder)
    contract.check_call("LDDM", "encoder", encoder, "forward", 2, ())
    latent_network = networks.get("latent_network")
    if latent_network is not None:
        declared.check("LDDM", "latent_network", latent_network)
        contract.check_call("LDDM", "latent_network", latent_network, "forward", 3, ())
    s, d = own.num_latents, own.latent_dim
    for name, network in networks.items():
        theirs = declared.by(network)
        their_s = s if theirs.num_latents is None else theirs.num_latents
        their_d = d if theirs.latent_dim is None else theirs.latent_dim
        if (their_s, their_d) != (s, d):
            raise ValueError(
                f"latent mismatch: the encoder gives {s} latents of {d} numbers, {name} takes {their_s} of {their_d}; "
                "give both the same num_latents and latent_dim"
            )
    return s, d


def freeze(encoder: nn.Module) -> None:
    """No gradients, no dropout from now on."""
    encoder.requires_grad_(False)
    for parameter in encoder.parameters():
        parameter.grad = None
    encoder.eval()


def has_statistics(encoder: nn.Module) -> bool:
    """Whether its normalisation is measured (coordinates), and not given by construction (sphere, none)."""
    return declared.has(encoder, "set_statistics") and declared.by(encoder).normalise == "coordinate"


@torch.no_grad()
def measure(encoder: nn.Module, parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """(mean, std) of `encoder.raw` over the rows of all parts, each Float64[S, d]; the encoder in eval mode."""
    rows, total, squares = 0, torch.zeros(()), torch.zeros(())
    for x in parts:
        raw = encoder.raw(x, None).double()  # type: ignore[operator]
        if rows == 0:
            total, squares = torch.zeros_like(raw[0]), torch.zeros_like(raw[0])
            shift = raw[0]  # differences from any one row: no cancellation where the mean is large
        rows += raw.shape[0]
        total += (raw - shift).sum(0)
        squares += (raw - shift).square().sum(0)
    if rows < 2:
        raise ValueError(f"the latent's statistics need at least 2 training rows, there are {rows}; give more data")
    mean = total / rows
    return shift + mean, (squares / rows - mean.square()).clamp(min=0).sqrt()


def training_rows(trainer: Trainer, count: int, device: torch.device) -> Iterator[Tensor]:
    """`count` rows of the training split, evenly spread over it: the same on every rank and at every resume."""
    rows = getattr(getattr(trainer, "datamodule", None), "rows", None)
    if rows is None:
        raise ValueError(
            "the encoder's statistics are measured on trainer.datamodule.rows('train'); fit with a data module of "
            "ggm_lightning.data, or call model.freeze_encoder(batches of x) before"
        )
    source = rows("train")
    count = min(count, len(source))
    for start in range(0, count, _CHUNK):
        index = [i * len(source) // count for i in range(start, min(start + _CHUNK, count))]
        yield source[index]["x"].to(device)


def say_if_untrained(recipe: Recipe, is_fixed: bool) -> None:
    if recipe.stage1_steps and not is_fixed:
        rank_zero_warn(
            "the latent's denoiser is untrained: this is a model of stage 1, whose samples say little; "
            f"sample it after step {recipe.stage1_steps} (recipe.stage1_steps)"
        )


def collapsed(recipe: Recipe, latent_mi: Tensor, latent_std: Tensor) -> str:
    """One line that says so, and what helps."""
    remedy = (
        "train the encoder longer alone (recipe.stage1_steps) with normalise: coordinate, lower recipe.p_r, or take an "
        "encoder that is aligned with the text (its chunk, and latent_positions: aligned)"
    )
    if recipe.stage1_steps == 0:
        remedy = "if training has just begun, wait; else lower recipe.p_r_given and p_cfg, or take another encoder"
    return (
        f"the latent is of no use to the tokens (val/latent_mi {float(latent_mi):.4f} nats per example, val/latent_std "
        f"{float(latent_std):.2g}); {remedy}"
    )


@torch.no_grad()
def take_average(trainer: Trainer, encoder: nn.Module) -> None:
    """The encoder's raw weights become the averaged ones, if they are averaged."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Averages):
            callback.put_average()
            averaged = [parameter.detach().clone() for parameter in encoder.parameters()]
            callback.put_raw()
            for parameter, average in zip(encoder.parameters(), averaged, strict=True):
                parameter.copy_(average)
