"""What both LDDM families share (arXiv 2510.18114): latent beside tokens, both losses and bounds, the stages.

Read models/lddm.py first: the equations stand there.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from ggm_lightning.core import gaussian, masking, noise, schedule_checks, times
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.gaussian import LatentClock
from ggm_lightning.core.masked_sites import MaskedSites
from ggm_lightning.core.masking import MaskedLaw
from ggm_lightning.core.noise import StepNoise
from ggm_lightning.core.schedules import Linear, Schedule
from ggm_lightning.models import contract, declared, lddm_probes
from ggm_lightning.models import lddm_stages as stages
from ggm_lightning.models.base import Family
from ggm_lightning.models.lddm_stages import Recipe, TrainingTimes
from ggm_lightning.models.readout import Readout
from ggm_lightning.sampling import arguments
from ggm_lightning.sampling import latent as latent_first
from ggm_lightning.sampling.contract import Denoiser
from ggm_lightning.sampling.request import Request, Samples
from ggm_lightning.sampling.sampler import Sampler


class LatentFamily(Family):
    """Tokens and a continuous latent z_0 = encoder(x), diffused together. FujiLDDM and SeqLDDM are its two families.

    Calls: encoder(x, hidden=None) -> Float[b, S, d] (hidden Bool[b, n]: sites whose input it may not see; also
    raw(x, hidden), its output before normalisation, and set_statistics(mean, std), if it has one);
    network(z, t, label=None, latent=z_t, latent_time=t_z) -> (logits Float[b, n, V], predicted z_0 Float[b, S, d]).
    A network with `streams` (the same call, features instead of logits) and `head` forms logits only where needed.

    Args:
        network, num_classes, shape: see Family.
        encoder: gives the latent; of trained ones the weights are kept in checkpoints.
        schedule: of the tokens; None is linear without a floor. core.gaussian.LatentLeads reveals them later.
        latent_schedule: abar^2(t); None is core.gaussian.Sqrt, the published default.
        max_snr: of the cleanest latent that the tokens see; None for the whole schedule (1e4, published).
        num_timesteps: T of the discrete bound; None is continuous time.
        recipe: how encoder and denoisers are trained.
        infill_latents: latents drawn for each example that is filled in latent first (sampling/latent.py).
        family: optimizer, label_dropout, eval_samples, seed, eval_seed (see Family).
    """

    grids = ("uniform", "cosine")
    denoiser_options = latent_first.OPTIONS
    network_keywords, fast_path = ("latent", "latent_time"), "streams"
    stage1_latent = "all_levels"  # where the recipe does not say
    uses_joint_latent = True  # the z_0 that the joint network returns beside its logits
    unused_parameters = True  # in stage 1 the latent's output, in stage 2 the encoder: DDP has to look for them
    latent_network: nn.Module | None  # the latent's own denoiser, of families that have one
    clock: LatentClock  # set by the family, which knows its latent's levels

    def __init__(
        self,
        network: nn.Module,
        encoder: nn.Module,
        num_classes: int,
        shape: tuple[int, ...],
        schedule: Schedule | None = None,
        latent_schedule: Schedule | None = None,
        max_snr: float | None = 64.0,
        num_timesteps: int | None = None,
        recipe: Recipe = Recipe(),
        infill_latents: int = 16,
        **family: Any,
    ) -> None:
        super().__init__(network, num_classes, shape, **family)
        for name, value in (("num_timesteps", num_timesteps), ("infill_latents", infill_latents)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.latent_shape = stages.latent_shape(encoder=encoder, network=network)
        self.encoder, self.latent_network = encoder, None
        self.schedule = schedule_checks.checked(Linear(0.0) if schedule is None else schedule)
        self.latent_schedule = schedule_checks.latent(gaussian.Sqrt() if latent_schedule is None else latent_schedule)
        self.max_snr, self.num_timesteps = max_snr, num_timesteps
        self.recipe, self.infill_latents = recipe.of(encoder, self.stage1_latent), infill_latents
        self.loss_name = "train/bpd" if recipe.token_loss == recipe.latent_loss == "elbo" else "train/loss"
        self.mask_id = num_classes
        self.constant_nats = masking.reconstruction(self.schedule, self.num_sites, num_classes)
        self.constant_nats += masking.prior(self.schedule, self.num_sites, num_classes)
        self.latent_use = lddm_probes.Watch(math.prod(self.latent_shape), self.num_sites, num_classes)
        self.encoder_fixed: Tensor
        self.register_buffer("encoder_fixed", torch.tensor(False))
        self.is_fixed = False  # the same on the host, so that no step has to ask the device
        self.parts_of_bound = (torch.zeros(0), torch.zeros(0))  # (tokens given the latent, latent) of the last `nelbo`
        self._given: Tensor | None = None
        self._parts: dict[str, Tensor] = {}
        if recipe.stage1_steps == 0:
            stages.freeze(encoder)

    # ------------------------------------------------------------------ what a family adds

    @abstractmethod
    def decoder_time(self, t: Tensor) -> Tensor:
        """The clock's time of the latent that tokens at t see."""

    @abstractmethod
    def training_times(self, step: int, row: Tensor, total: int) -> TrainingTimes:
        """Of these rows of a global batch of `total`."""

    @abstractmethod
    def predict_latent(
        self, zt: Tensor, t: Tensor, latent: Tensor, latent_time: Tensor, label: Tensor | None
    ) -> Tensor:
        """z_0 Float[b, S, d] from the noisy latent (and tokens, where the family lets it see them)."""

    # ------------------------------------------------------------------ corrupt

    def encode(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """z_0 Float[b, S, d]; what the batch brought along (data/latents.py), or from the encoder."""
        if self._given is not None:
            return self._given
        return contract.numbers(self, "encoder", self.encoder(x, hidden), ((len(x), *self.latent_shape),), "finite")

    @contextmanager
    def _latents_of(self, batch: dict[str, Tensor]) -> Iterator[None]:
        self._given = batch.get("latent")
        if self._given is not None and (self.recipe.stage1_steps or self.recipe.p_r_given):
            raise ValueError(
                "the data brings latents computed before, which cannot be trained or partly hidden; set "
                "recipe.stage1_steps and recipe.p_r_given to 0, or leave data.latents out"
            )
        try:
            yield
        finally:
            self._given = None

    def corrupt(self, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """x_t Int64[b, *shape] from x, t Float64[b] and uniforms u Float64[b, n]."""
        return masking.corrupt(x.flatten(1), self.schedule.masked_fraction(t), u, self.mask_id).reshape(x.shape)

    def noised(self, z0: Tensor, t: Tensor, stream: str, seed: int, step: int, row: Tensor) -> Tensor:
        """z_t Float64[b, S, d] at the clock's time t."""
        e = noise.normal(stream, seed=seed, step=step, row=row, num_sites=math.prod(self.latent_shape))
        return gaussian.diffuse(self.latent_schedule, z0, self.clock.time(t), e.reshape(z0.shape))

    def on_grid(self, t: Tensor) -> Tensor:
        return t if self.num_timesteps is None else masking.to_grid(t, self.num_timesteps)

    # ------------------------------------------------------------------ the joint network

    def predict(
        self, zt: Tensor, t: Tensor, latent: Tensor, latent_time: Tensor, label: Tensor | None
    ) -> tuple[Readout, Tensor]:
        """One call of the joint network: (logits at sites, z_0 Float[b, S, d]). latent_time is the clock's, in [0, 1];
        the network is told the schedule's."""
        t, label = self._network_inputs(zt, t, label)
        inputs = {"latent": latent.to(t.dtype), "latent_time": self.clock.time(latent_time).to(t.dtype)}
        return contract.joint(self, zt, t, label, inputs)

    # ------------------------------------------------------------------ the terms of the bound

    def weight(self, t: Tensor) -> Tensor:
        """Float64[b]: w'/w, or T (w_k - w_{k-1})/w_k."""
        if self.num_timesteps is None:
            return masking.continuous_weight(self.schedule, t.double())
        return masking.discrete_weight(self.schedule, t.double(), self.num_timesteps)

    def _weighted(self, nats: Tensor, t: Tensor) -> Tensor:
        """Times `weight`; 0 where nothing is masked, also where the weight is infinite."""
        return torch.where(nats != 0, self.weight(t).to(nats.dtype) * nats, 0.0)

    def _masked(self, zt: Tensor) -> MaskedSites:
        """What `answer.terms` sums over, -sum over the masked n of log mu_n(x_n); made before the network is called."""
        return MaskedSites((zt == self.mask_id).flatten(1))

    def _token_loss(self, nats: Tensor, t: Tensor) -> Tensor:
        """Bits per site of the bound, or the nats per site of the plain cross-entropy."""
        if self.recipe.token_loss == "plain":
            return nats / self.num_sites
        return self._weighted(nats, t) / (self.num_sites * math.log(2))

    def token_terms(self, x: Tensor, zt: Tensor, t: Tensor, latent: Tensor, label: Tensor | None = None) -> Tensor:
        """Float[b], nats: weight(t) x cross-entropy of the masked tokens given x_t and the latent they see at t."""
        masked = self._masked(zt)
        answer, _ = self.predict(zt, t, latent, self.decoder_time(t), label)
        return answer.terms(x.flatten(1), masked, partial(self._weighted, t=t)).rows()

    def latent_error(self, x: Tensor, zt: Tensor, t: Tensor, latent: Tensor, label: Tensor | None = None) -> Tensor:
        """Float64[b]: |z_0 - prediction|^2 from the latent at the clock's time t (and the tokens x_t)."""
        error = self.encode(x).double() - self.predict_latent(zt, t, latent, t, label).double()
        return error.square().sum((1, 2))

    def latent_terms(self, x: Tensor, zt: Tensor, t: Tensor, latent: Tensor, label: Tensor | None = None) -> Tensor:
        """Float64[b], nats: weight x |z_0 - prediction|^2, whose mean over t ~ U(0, 1) is the latent's bound."""
        return self.clock.weight(t.double()) * self.latent_error(x, zt, t, latent, label)

    def prior_nats(self, x: Tensor) -> Tensor:
        """Float64[b]: KL(q(z_1 | x) || N(0, I)), and of the tokens what a schedule's floor leaves at both ends."""
        return gaussian.prior(self.latent_schedule, self.encode(x)) + self.constant_nats

    # ------------------------------------------------------------------ loss and bound

    def in_first_stage(self, step: int) -> bool:
        """A model whose encoder is fixed already (fitted before, or frozen by hand) has its first stage behind it."""
        return step < self.recipe.stage1_steps and not self.is_fixed

    def learning(self, step: int) -> tuple[bool, bool]:
        """(whether the encoder learns, whether the latent's loss is on) at this optimiser step."""
        first_stage = self.in_first_stage(step)
        return first_stage, not first_stage

    def training_loss(self, x: Tensor, label: Tensor | None, draws: StepNoise) -> Tensor:
        """token_loss + c_z latent_loss, mean over the rows; the latter is off in stage 1."""
        recipe, uniform = self.recipe, draws.uniform
        encoder_learns, with_latent = self.learning(draws.step)
        t, shown, predicted, weight = self.training_times(draws.step, draws.row, draws.total)
        zt = self.corrupt(x, t, uniform("mask", self.num_sites))
        masked, u = self._masked(zt), uniform("encoder", 2)
        hidden = u[:, 0] < u[:, 1] * (recipe.p_r if encoder_learns else recipe.p_r_given)
        with torch.set_grad_enabled(encoder_learns and torch.is_grad_enabled()):
            z0 = self.encode(x, hidden[:, None] & masked.mask)
        keep = (uniform("latent dropout", 1) >= recipe.p_cfg)[:, :, None]
        latent = self.noised(z0, shown, "latent", draws.seed, draws.step, draws.row) * keep
        answer, z0_hat = self.predict(zt, t, latent, shown, label)
        token_loss, _ = answer.terms(x.flatten(1), masked, partial(self._token_loss, t=t)).loss()
        total_loss = token_loss.mean()
        self._parts = {"train/token_loss": total_loss.detach()}
        if with_latent:
            if predicted is not shown:
                noisy = self.noised(z0, predicted, "asked latent", draws.seed, draws.step, draws.row)
                z0_hat = self.predict_latent(zt, predicted, noisy, predicted, label)
            error = (keep * (z0_hat.float() - z0.float()) ** 2).flatten(1)
            bits = self.num_sites * math.log(2)
            error = error.sum(1) * weight.float() / bits if recipe.latent_loss == "elbo" else error.mean(1)
            self._parts["train/latent_loss"] = error.detach().mean()
            total_loss = total_loss + recipe.c_z * error.mean()
        return total_loss

    def nelbo(
        self, x: Tensor, label: Tensor | None = None, num_samples: int = 1, seed: int = 0, row: Tensor | None = None
    ) -> Tensor:
        """Float64[b], nats: token and latent terms, each at num_samples times of its own, plus the prior.

        Token times are uniform, the latent's uniform in ln(1 + SNR) (a far smaller spread); both are stratified over
        a row's own samples: a function of (seed, row) alone. It bounds the law of "ddpm"; for "ddim" none is known.
        Its two parts, Float64[b] each, are then in `parts_of_bound`.
        """
        x, label, row = arguments.of_bound(self, x, label, row, num_samples, seed)
        b = x.shape[0]
        other = noise.integer_seed("latent time", seed=seed, step=0)
        all_t = times.stratified_per_row(seed=seed, row=row, num_samples=num_samples)
        all_u = times.stratified_per_row(seed=other, row=row, num_samples=num_samples)
        nats = torch.zeros(b, dtype=torch.float64, device=x.device)
        of_tokens = torch.zeros_like(nats)
        with self.evaluating():
            z0 = self.encode(x)
            for j, (t, u) in enumerate(zip(all_t, all_u, strict=True)):
                uniform = partial(noise.uniform, seed=seed, step=j, row=row, num_sites=self.num_sites)
                t = self.on_grid(t)
                latent = self.noised(z0, self.decoder_time(t), "eval latent", seed, j, row)
                terms = self.token_terms(x, self.corrupt(x, t, uniform("eval mask")), t, latent, label).double()
                nats += terms
                of_tokens += terms
                asked, weight = self.clock.importance(u)
                zt = self.corrupt(x, asked, uniform("eval mask beside the latent"))
                noisy = self.noised(z0, asked, "eval asked latent", seed, j, row)
                error = z0.double() - self.predict_latent(zt, asked, noisy, asked, label).double()
                nats += weight * error.square().sum((1, 2))
            bound = nats / num_samples + gaussian.prior(self.latent_schedule, z0) + self.constant_nats
        of_tokens = of_tokens / num_samples + self.constant_nats
        self.parts_of_bound = (of_tokens, bound - of_tokens)
        return bound

    # ------------------------------------------------------------------ reverse step

    def given(self, latent: Tensor) -> Denoiser:
        """The denoiser of tokens beside these latents Float[b, S, d], at their cleanest level."""
        return latent_first.given(self, latent)

    def denoiser(self, request: Request) -> Denoiser:
        """`given` a latent that is drawn now. Options: latent_sampler, "ddim" or "ddpm"; latent_steps."""
        return self.given(latent_first.latents(self, request))

    def _plain_denoiser(self, *_: Any, **__: Any) -> Tensor:
        raise ValueError("the tokens' values depend on the latent; give denoiser=model.given(latent)")

    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
        denoiser: Denoiser | None = None,
    ) -> MaskedLaw:
        """p(x_s | x_t, z_1), eq. (3); t, s Float64[b]. The values are those of a denoiser that has its latent,
        `given(latent)` or `denoiser(request)`; where sites are revealed is known without."""
        arguments.check_law(self, zt, t, s, label, sharpening)
        rows = torch.arange(len(zt), device=zt.device)
        logits_at = partial(denoiser or self._plain_denoiser, zt, t, label, rows=rows)
        return MaskedLaw.of_step(self.schedule, zt.flatten(1), t, s, logits_at, self.num_classes, sharpening)

    def draw(self, request: Request, sampler: Sampler) -> Samples:
        stages.say_if_untrained(self.recipe, self.is_fixed)
        return super().draw(request, sampler)

    # ------------------------------------------------------------------ the stages

    def of_the_run(self) -> tuple[str, ...]:
        """Where an encoder is trained in stage 1, a run that starts from other weights begins there again."""
        return ("encoder_fixed", "encoder.norm.fixed") if self.recipe.stage1_steps else ()

    def freeze_encoder(self, parts: Iterable[Tensor]) -> None:
        """End of stage 1: measures the normalisation over all rows x Int64[b, *shape] of `parts` and fixes the encoder.
        `fit` calls it by itself."""
        stages.freeze(self.encoder)
        if stages.has_statistics(self.encoder):
            self.encoder.set_statistics(*stages.measure(self.encoder, parts))
        self.encoder_fixed.fill_(True)
        self.is_fixed = True

    def train(self, mode: bool = True) -> LatentFamily:
        super().train(mode)
        if self.is_fixed or self.recipe.stage1_steps == 0:
            self.encoder.eval()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        before, self.is_fixed = self.is_fixed, bool(state_dict.get(f"{prefix}encoder_fixed", self.is_fixed))
        if before and not self.is_fixed and self.recipe.stage1_steps:
            self.encoder.requires_grad_(True).train(self.training)  # back in stage 1

    def configure_model(self) -> None:
        super().configure_model()
        self.compile_all(self.encoder, self.latent_network)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of step 0, also in stage 2, so that its optimiser can be resumed; AdamW leaves what has no gradient."""
        encoder = {id(p) for p in self.encoder.parameters()} if self.recipe.stage1_steps else set()
        return [{"params": [p for p in self.parameters() if p.requires_grad or id(p) in encoder]}]

    def on_fit_start(self) -> None:
        if self.is_fixed:  # resumed or loaded in stage 2
            stages.freeze(self.encoder)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if "latent" not in batch and not self.is_fixed and self.global_step >= self.recipe.stage1_steps:
            stages.take_average(self.trainer, self.encoder)
            self.freeze_encoder(stages.training_rows(self.trainer, self.recipe.statistics_rows, self.device))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        with self._latents_of(batch):
            loss = super().training_step(batch, batch_idx)
        self.collect(self._parts)
        return loss

    def _evaluate(self, batch: dict[str, Tensor], split: str) -> tuple[Tensor, Tensor]:
        with self._latents_of(batch):
            return super()._evaluate(batch, split)

    # ------------------------------------------------------------------ the use of the latent

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        row, _ = self._evaluate(batch, "val")
        x = batch["x"]
        with self.evaluating(), self._latents_of(batch):
            raw = self.encode(x)
            if "latent" not in batch and declared.has(self.encoder, "raw"):
                raw = self.encoder.raw(x, None)
            probe = partial(lddm_probes.of_rows, self, x, self.label_of(batch), self.eval_seed, row)
            self.latent_use.add(x, raw, self.parts_of_bound, probe)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        use = self.latent_use.taken()
        self.log_dict({f"val/{name}": value for name, value in use.items()}, sync_dist=True)
        for line in self.latent_use.lines(use, self.recipe, self.global_step):
            rank_zero_warn(f"step {self.global_step}: {line}")
