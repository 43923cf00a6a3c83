"""VQGAN: the codebook on which GGM and MD4 can draw pictures of many pixels (arXiv 2012.09841).

It is no discrete diffusion but what stands before one: pictures -> codes -> a family of this package -> codes ->
pictures (vqgan/codes.py). Training minimises, eq. (4) and (5),

    |x - x_hat|                                                         reconstruction
    + w mean |sg[z] - e|^2 + w beta mean |z - sg[e]|^2                  codebook and commitment

and, where a discriminator is given, the hinge losses of a game against it from step `game_from` on:

    - lambda mean D(x_hat)  for the autoencoder,     mean relu(1 - D(x)) + mean relu(1 + D(x_hat))  for D.

What is left out: the perceptual distance of the paper (a pretrained VGG would have to be downloaded; small pictures do
without) and its adaptive lambda (here a number).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ggm_lightning.metrics.codebook import Reconstruction, perplexity
from ggm_lightning.models.trained import Optimizer, Trained


class VQGAN(Trained):
    """Trains an autoencoder with a codebook on any data module of pictures (levels 0..V-1).

    Args:
        network: vqgan/network.py's Autoencoder, or whatever is called as network(x) -> (x_hat, loss, codes) and has
            `num_codes`, `latents(x)` and the codebook `quantize.embedding`.
        num_classes: V, levels of a pixel.
        shape: (channels, side, side).
        optimizer: learning rate and its schedule.
        distance: l1 (as published) or l2, between picture and reconstruction.
        codebook_weight: w.
        first_codes: the codebook starts as so many randomly chosen latents of training pictures (True), or near zero as
            published, where small codebooks often stay for most entries (False).
        discriminator: called as discriminator(x) -> logits of any shape, high for real; None: no game.
        game_weight: lambda. game_from: first step of the game.
        seed: of the first codes.
    """

    loss_name = "train/objective"
    best_by = "val/mse"
    measure = ("mse", "mean squared error, of values in -1..1")  # on the learning curve
    results = (("mse", "mean squared error", ".4f"), ("psnr", "dB", ".2f"), ("code_perplexity", "codes in use", ".1f"))

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        shape: tuple[int, ...],
        optimizer: Optimizer = Optimizer(),
        distance: str = "l1",
        codebook_weight: float = 1.0,
        first_codes: bool = True,
        discriminator: nn.Module | None = None,
        game_weight: float = 0.1,
        game_from: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if distance not in ("l1", "l2"):
            raise ValueError(f"distance is '{distance}'; choose l1 or l2")
        for name, value in (("codebook_weight", codebook_weight), ("game_weight", game_weight)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be at least 0 and finite")
        if game_from < 0:
            raise ValueError(f"game_from is {game_from}; it is a step: give 0 or more")
        self.network: Any = network
        self.num_classes, self.shape = num_classes, tuple(shape)
        self.optimizer, self.distance, self.codebook_weight = optimizer, distance, codebook_weight
        self.first_codes, self.seed = first_codes, seed
        self.discriminator, self.game_weight, self.game_from = discriminator, game_weight, game_from
        num_codes: Any = network.num_codes
        self.scores = nn.ModuleDict({split: Reconstruction(num_codes) for split in ("val", "test")})

    def values(self, x: Tensor) -> Tensor:
        """Levels 0..V-1 as -1..1, rounded to bytes first: what a picture file of them holds."""
        return torch.round(x * (255 / (self.num_classes - 1))) / 127.5 - 1

    def loss(self, x: Tensor, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """(the scalar to minimise, its parts by name) of levels x Int[b, c, h, w]."""
        values = self.values(x)
        restored, quantisation, codes = self.network(values)
        difference = values - restored
        mse = difference.square().mean()
        distance = difference.abs().mean() if self.distance == "l1" else mse
        counts = torch.bincount(codes.reshape(-1), minlength=self.network.num_codes)
        parts = {"mse": mse, "quantisation": quantisation, "code_perplexity": perplexity(counts).float()}
        total = distance + self.codebook_weight * quantisation  # eq. (4)
        if self.discriminator is not None and step >= self.game_from:
            deceived, told = self._game(values, restored)
            parts |= {"deceived": deceived, "discriminator": told}
            total = total + self.game_weight * deceived + told  # eq. (5)
        return total, {name: value.detach() for name, value in parts.items()}

    def _game(self, values: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
        """(the autoencoder's loss, the discriminator's): each moves its own side alone, both in one backward pass."""
        assert self.discriminator is not None
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        deceived = -torch.func.functional_call(self.discriminator, frozen, (restored,)).mean()
        real, false = self.discriminator(values), self.discriminator(restored.detach())
        return deceived, torch.relu(1 - real).mean() + torch.relu(1 + false).mean()

    @torch.no_grad()
    def start_codebook(self, x: Tensor) -> None:
        """Entries = latents of x at random places; ones that have to be taken twice differ by a little noise."""
        z = self.network.latents(self.values(x)).movedim(1, -1).flatten(0, -2)
        table = self.network.quantize.embedding.weight
        draws = torch.Generator(device="cpu").manual_seed(self.seed)
        order = torch.cat([torch.randperm(len(z), generator=draws) for _ in range(-(-len(table) // len(z)))])
        chosen = z[order[: len(table)].to(z.device)]
        noise = torch.randn(table.shape, generator=draws).to(z)
        table.copy_(chosen + 0.01 * z.std() * noise)

    def reconstruct(self, x: Tensor) -> Tensor:
        """x Int[b, c, h, w] through the codebook and back, as levels again."""
        was_training = self.training
        self.eval()
        with torch.no_grad():
            restored = self.network(self.values(x))[0].clamp(-1, 1)
        self.train(was_training)
        return torch.round((restored + 1) * ((self.num_classes - 1) / 2)).long()

    # ------------------------------------------------------------------ Lightning

    def on_train_start(self) -> None:
        if self.first_codes and self.global_step == 0 and self.started_from is None:
            rows = self.trainer.datamodule.rows("train")  # type: ignore[attr-defined]
            self.start_codebook(rows[range(min(256, len(rows)))]["x"].to(self.device))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.divides(len(batch["x"]))
        loss, parts = self.loss(batch["x"], self.global_step)
        self.collect({self.loss_name: loss, **{f"train/{name}": value for name, value in parts.items()}})
        return self.weighed(loss)

    def _score(self, split: str, batch: dict[str, Tensor]) -> None:
        values = self.values(batch["x"])
        restored, _, codes = self.network(values)
        self.scores[split].update(values, restored.clamp(-1, 1), codes)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._score("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._score("test", batch)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        raise ValueError("predict: a VQGAN is no model of likelihoods; `lightning validate` measures its error")

    def on_validation_epoch_end(self) -> None:
        self._log_score("val")

    def on_test_epoch_end(self) -> None:
        self._log_score("test")

    def _log_score(self, split: str) -> None:
        found = self.scores[split].compute()
        self.log_dict({f"{split}/{name}": value for name, value in found.items()}, sync_dist=True)
        self.scores[split].reset()
