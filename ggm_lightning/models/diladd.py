"""Di-LADD: codes beside tokens, arXiv 2510.18114 (v2 and v3, "Latent-Augmented Discrete Diffusion"). Codes come first:

    c = (c_1, .., c_S),  c_s = argmax_k cos(e_s(x), v_k)     an encoder and a codebook (networks/codebook.py)       (1)
    p(c)      any family of this package over S sites of K classes: MD4, GGM, an autoregressive model               (2)
    p(x | c)  masked diffusion by a network that sees the vectors v_{c_s}                                           (3)

The encoder is deterministic, so that p(x) >= p(c(x)) p(x | c(x)), and the bound is the sum of both families' own:

    -log p(x) <= -log p(c(x)) - log p(x | c(x)) <= bound of (2) at c(x) + bound of (3) at x given c(x)              (4)

The first of both signs is an equality where other codes never give x. The two stages of LDDM (models/lddm_stages.py):
first encoder, codebook and (3), its loss with a commitment; then, these codes fixed, (2) and (3). Read
models/lddm_base.py along with this file. What is published was read in the released code (darioShar/LADD at b2c0e87).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ggm_lightning.core import noise, times
from ggm_lightning.core.arguments import shown, whole_number
from ggm_lightning.core.categorical import PLAIN
from ggm_lightning.core.gaussian import LatentClock
from ggm_lightning.core.noise import StepNoise
from ggm_lightning.core.schedules import Schedule
from ggm_lightning.metrics.codebook import CodeUse
from ggm_lightning.models import contract, declared
from ggm_lightning.models import lddm_stages as stages
from ggm_lightning.models.base import Family
from ggm_lightning.models.lddm_base import LatentFamily
from ggm_lightning.models.lddm_stages import Recipe, TrainingTimes
from ggm_lightning.networks.codebook import Codebook
from ggm_lightning.sampling import arguments, guidance
from ggm_lightning.sampling import latent as latent_first
from ggm_lightning.sampling.contract import Denoiser
from ggm_lightning.sampling.naming import Maker
from ggm_lightning.sampling.plan import Ancestral
from ggm_lightning.sampling.plans import GIVEN_LATENT
from ggm_lightning.sampling.request import Request


def _sampler_name(name: str, value: Any) -> Any:
    """Whether the prior has it is the prior's own affair."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}; give the name of a sampler of the prior")
    return value


def _check_labels(network: nn.Module, of_prior: nn.Module) -> None:
    """A network that does not say how many it knows is given labels as they come."""
    own, known = declared.by(network).num_labels, declared.by(of_prior).num_labels
    if known and own is not None and known != own:
        raise ValueError(
            f"DiLADD: the prior's network has num_labels {known}, the tokens' network {own}; give both num_labels: "
            f"{own or known}, or the prior's network 0"
        )


class DiLADD(LatentFamily):
    """Codes c(x) first, by a family of their own, then the tokens given their vectors, eqs. (1) to (4).

    Calls of network and encoder: see LatentFamily; the network's latent is sqrt(d) v_{c_s}, Float[b, S, d], its time 0,
    and its own prediction of z_0 is not used. The encoder returns Float[b, S, d] of any length, normalise: none.

    Samplers: "ancestral" and the plans of masked diffusion for the tokens, in num_steps; before them the prior draws
    the codes, in `latent_steps` (default S) by its sampler `latent_sampler` (default its first). Infilling:
    infill_latents codes are drawn for each row, and one is chosen by how well it explains what is known; see SeqLDDM.
    temperature, top_p, top_k and nucleus sharpen codes and tokens alike; of several candidates the first alone where
    the mode is taken, as all were the same. guidance pulls codes, too, where the prior takes labels.

    Args:
        network, encoder, num_classes, shape, schedule, num_timesteps, recipe, infill_latents, family: see LatentFamily.
        prior: of the codes, built for num_classes = num_codes and shape = [S]. Its network takes no labels, or as many
            as the tokens' network. Its optimizer, label_dropout, seeds and eval_samples are not used.
        num_codes: K; 4,096 is published.
        decay, dead_below: of the codebook (networks/codebook.py).
        commitment: weight of the mean squared distance of the encoder's outputs from their vectors, per coordinate,
            both sqrt(d) long; 0.25 is published.
        encoder_hides: in stage 1 the encoder does not see a share of the sites that is drawn for each row between
            these two; [0.1, 0.6] is published.
    """

    samplers: Mapping[str, Maker] = MappingProxyType({"ancestral": Ancestral, **GIVEN_LATENT})
    denoiser_options = MappingProxyType(
        {"latent_sampler": _sampler_name, "latent_steps": partial(whole_number, least=1)}
    )
    grids = ("cosine", "uniform")
    settles = ("latent_schedule", "max_snr")  # arguments of a LatentFamily that codes have no use for
    uses_joint_latent = False
    stage1_latent = "clean"

    def __init__(
        self,
        network: nn.Module,
        encoder: nn.Module,
        prior: Family,
        num_classes: int,
        shape: tuple[int, ...],
        num_codes: int = 4096,
        decay: float = 0.95,
        dead_below: float = 2.0,
        commitment: float = 0.25,
        encoder_hides: tuple[float, float] = (0.1, 0.6),
        schedule: Schedule | None = None,
        num_timesteps: int | None = None,
        recipe: Recipe = Recipe(),
        infill_latents: int = 16,
        **family: Any,
    ) -> None:
        super().__init__(
            network,
            encoder,
            num_classes,
            shape,
            schedule,
            latent_schedule=None,
            max_snr=None,
            num_timesteps=num_timesteps,
            recipe=recipe,
            infill_latents=infill_latents,
            **family,
        )
        s, d = self.latent_shape
        if (prior.num_classes, prior.shape) != (num_codes, (s,)):
            raise ValueError(
                f"DiLADD: the prior is for {prior.num_classes} classes in shape {list(prior.shape)}, the codes are "
                f"{num_codes} in [{s}]; give the prior num_classes: {num_codes} and shape: [{s}]"
            )
        if stages.has_statistics(encoder):
            raise ValueError("DiLADD: the encoder's normalise is coordinate, but codes know directions; set it to none")
        if not 0 <= encoder_hides[0] <= encoder_hides[1] <= 1:
            raise ValueError(
                f"encoder_hides is {list(encoder_hides)}; give two shares in [0, 1], the smaller one first"
            )
        if not 0 <= commitment < math.inf:
            raise ValueError(f"commitment is {commitment}; it must be at least 0 and finite, 0.25 is published")
        _check_labels(network, prior.network)
        self.prior, self.num_codes = prior, num_codes
        prior.label_dropout = self.label_dropout  # it loses the labels that are lost here, see label_of_prior
        self.commitment, self.encoder_hides = commitment, tuple(encoder_hides)
        self.codebook = Codebook(num_codes, d, decay, dead_below)
        self.code_use = CodeUse(num_codes)
        self.clock = LatentClock(self.latent_schedule)

    # ------------------------------------------------------------------ codes

    def directions(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """e/|e|, Float[b, S, d]."""
        e = self.encoder(x, hidden)
        return F.normalize(contract.numbers(self, "encoder", e, ((len(x), *self.latent_shape),), "finite"), dim=-1)

    def codes(self, x: Tensor) -> Tensor:
        """c(x), Int64[b, S], eq. (1)."""
        return self.codebook.codes(self.directions(x))

    def encode(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """What the tokens see, Float[b, S, d]: the vectors of the codes."""
        return self.codebook.entries(self.codebook.codes(self.directions(x, hidden)))

    def label_of_prior(self, label: Tensor | None, b: int) -> Tensor | None:
        """Int64[b], what the prior is told wherever the tokens' network is told `label`: the same, and their null class
        where there is none; None where its network takes no labels."""
        if declared.by(self.prior.network).num_labels == 0:
            return None
        return self.network_label(label, b)

    @contextmanager
    def _latents_of(self, batch: dict[str, Tensor]) -> Iterator[None]:
        if "latent" in batch:
            raise ValueError("the data brings latents computed before, but DiLADD has codes; leave data.latents out")
        yield

    # ------------------------------------------------------------------ what a LatentFamily asks

    def noised(self, z0: Tensor, t: Tensor, stream: str, seed: int, step: int, row: Tensor) -> Tensor:
        """Codes are never noised."""
        return z0

    def decoder_time(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def training_times(self, step: int, row: Tensor, total: int) -> TrainingTimes:
        t = self.on_grid(times.stratified(seed=self.seed, step=step, row=row, total=total))
        return TrainingTimes(t, torch.zeros_like(t), torch.zeros_like(t), torch.ones_like(t))

    def predict_latent(
        self, zt: Tensor, t: Tensor, latent: Tensor, latent_time: Tensor, label: Tensor | None
    ) -> Tensor:
        raise ValueError("DiLADD: codes are drawn by model.prior, not denoised; ask it")

    def prior_nats(self, x: Tensor) -> Tensor:
        """Float64[b]: what the floor of the tokens' schedule leaves at both ends."""
        return torch.full((len(x),), self.constant_nats, dtype=torch.float64, device=x.device)

    # ------------------------------------------------------------------ loss and bound

    def training_loss(self, x: Tensor, label: Tensor | None, draws: StepNoise) -> Tensor:
        """Stage 1: token loss + commitment. Then token loss + c_z S/N x the prior's own loss, in bits per token where
        that is in bits per code."""
        encoder_learns, with_prior = self.learning(draws.step)
        t = self.training_times(draws.step, draws.row, draws.total).tokens
        zt = self.corrupt(x, t, draws.uniform("mask", self.num_sites))
        masked = self._masked(zt)
        if encoder_learns:
            latent, codes, commitment = self._learning_codes(x, draws)
        else:
            with torch.no_grad():
                codes = self.codes(x)
                latent = self.codebook.entries(codes)
        keep = (draws.uniform("latent dropout", 1) >= self.recipe.p_cfg)[:, :, None]
        answer, _ = self.predict(zt, t, latent * keep, torch.zeros_like(t), label)
        loss, _ = answer.terms(x.flatten(1), masked, partial(self._token_loss, t=t)).loss()
        total = loss.mean()
        self._parts = {"train/token_loss": total.detach()}
        if encoder_learns:
            self._parts["train/commitment"] = commitment.detach()
            total = total + self.commitment * commitment
        if with_prior:
            other = StepNoise(noise.integer_seed("codes", seed=draws.seed, step=0), draws.step, draws.row, draws.total)
            with contract.used_for(self.prior, "training"):
                told = self.prior.network_label(self.label_of_prior(label, len(x)), len(x))
                of_codes = self.prior.training_loss(codes, told, other)
            self._parts["train/latent_loss"] = of_codes.detach()
            total = total + self.recipe.c_z * of_codes * (self.latent_shape[0] / self.num_sites)
        return total

    def _learning_codes(self, x: Tensor, draws: StepNoise) -> tuple[Tensor, Tensor, Tensor]:
        """(vectors with the gradient passed straight through to the encoder, codes, commitment) in stage 1."""
        self.codebook.begin(draws.step)
        low, high = self.encoder_hides
        share = low + (high - low) * draws.uniform("encoder's share", 1)
        unit = self.directions(x, draws.uniform("encoder", self.num_sites) < share)
        codes = self.codebook.codes(unit.detach())
        self.codebook.observe(unit.detach(), codes, seed=draws.seed, row=draws.row, total=draws.total)
        entries, own = self.codebook.entries(codes), unit * unit.shape[-1] ** 0.5
        return own + (entries - own).detach(), codes, (own - entries).square().mean()

    def nelbo(
        self, x: Tensor, label: Tensor | None = None, num_samples: int = 1, seed: int = 0, row: Tensor | None = None
    ) -> Tensor:
        """Float64[b], nats, eq. (4): the tokens' bound given the row's own codes, at num_samples times stratified over
        the row's own samples, plus the prior's at these codes. Both parts are then in `parts_of_bound`."""
        x, label, row = arguments.of_bound(self, x, label, row, num_samples, seed)
        tokens = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        with self.evaluating():
            codes = self.codes(x)
            latent = self.codebook.entries(codes)
            for j, t in enumerate(times.stratified_per_row(seed=seed, row=row, num_samples=num_samples)):
                u, t = noise.uniform("eval mask", seed=seed, step=j, row=row, num_sites=self.num_sites), self.on_grid(t)
                tokens += self.token_terms(x, self.corrupt(x, t, u), t, latent, label).double()
        tokens = tokens / num_samples + self.constant_nats
        told = self.label_of_prior(label, len(x))
        of_codes = self.prior.nelbo(codes, told, num_samples, noise.integer_seed("codes", seed=seed, step=0), row)
        self.parts_of_bound = (tokens, of_codes.double())
        return tokens + of_codes.double()

    def terms(self, x: Tensor, zt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Float64[b], nats: the tokens' integrand at t given x_t = zt and the codes of x; its mean over t ~ U(0, 1) and
        q, `prior_nats` and the prior's bound at `codes` make eq. (4)."""
        arguments.check_terms(self, x, zt, t, label)
        return self.token_terms(x, zt, t, self.encode(x), label).double()

    # ------------------------------------------------------------------ sampling

    def denoiser(self, request: Request) -> Denoiser:
        """`given` codes that the prior draws now; with a clamp, one of several draws that explains what is known."""
        known = None if request.clamp is None else request.clamp[1].flatten(1)
        if known is None or not bool(known.any()):
            return self.given(self._drawn(request, 0))
        candidates = torch.stack([self._drawn(request, k) for k in range(self.infill_latents)], 1).flatten(0, 1)
        z = request.clamped(self.prior_sample(request.num_samples))
        return self.given(latent_first.explaining(self, request, candidates, z.flatten(1), known))

    def _drawn(self, request: Request, candidate: int) -> Tensor:
        """Vectors Float[b, S, d] of codes of the prior: a function of (seed, candidate, row). They are sharpened as the
        tokens are, and guided where the prior takes labels."""
        sharpening = request.sharpening
        if candidate > 0 and (sharpening.temperature == 0 or sharpening.top_k == 1):
            sharpening = PLAIN  # else all candidates were the mode, and none explained what is known
        has_labels = bool(declared.by(self.prior.network).num_labels)
        drawn = self.prior.sample(
            request.num_samples,
            request.options.get("latent_steps", self.latent_shape[0]),
            label=self.label_of_prior(request.label, request.num_samples),
            seed=noise.integer_seed("codes", seed=request.seed, step=candidate),
            sampler=request.options.get("latent_sampler"),
            row=request.row,
            guidance=request.guidance if has_labels else guidance.NONE,
            **asdict(sharpening),
        )
        self.other_calls["prior"] += drawn.network_calls
        return self.codebook.entries(drawn.x)

    # ------------------------------------------------------------------ the stages, Lightning

    def freeze_encoder(self, parts: Iterable[Tensor]) -> None:
        """End of stage 1: the codebook is fitted to what the encoder, as it is now, says of all rows x Int64[b, *shape]
        of `parts` (Codebook.fit; published code goes on with its averages), and both are fixed. `fit` calls it by
        itself."""
        super().freeze_encoder(())
        self.codebook.settle()
        with self.evaluating():
            units = [self.directions(x).flatten(0, 1) for x in parts]
            if units:
                self.codebook.fit(torch.cat(units))

    def configure_model(self) -> None:
        super().configure_model()
        self.compile_all(self.prior.network)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        with self.evaluating():
            self.code_use.update(self.codes(batch["x"]))

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log_dict({f"val/{name}": value for name, value in self.code_use.compute().items()}, sync_dist=True)
        self.code_use.reset()
