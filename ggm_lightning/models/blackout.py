"""Blackout diffusion: images are born out of black, arXiv 2305.11089. Read from top to bottom:

corrupt  ->  deaths (what the network says)  ->  terms  ->  loss, nelbo  ->  reverse_law  ->  sample

    x_t        each unit of a pixel dies at rate 1: Binomial(x_0, p), p = e^-t                                 eq. (1)
    y          = E[x_0 - x_t | x_t], the expected deaths: one number for each site is enough
    loss       w(t) (y - m ln y), m = x_0 - x_t, with the published weights or that of the likelihood
    -log p(x) <= prior + integral of p E[sum y - m + m ln(m/y)] df + reconstruction, f = logit p               eq. (5)
    x_s | x_t  births: a kernel of core/births.py with mean pi y, pi = (e^-s - e^-t)/(1 - e^-t)                eq. (3)

(equations of core/death.py)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ggm_lightning.core import births, categorical, death, logs, losses, noise, times, watch
from ggm_lightning.core.births import BirthLaw
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.noise import StepNoise
from ggm_lightning.models import contract, readout
from ggm_lightning.models.base import Family
from ggm_lightning.models.readout import Readout
from ggm_lightning.sampling import arguments
from ggm_lightning.sampling.births import Births
from ggm_lightning.sampling.request import Request, Samples
from ggm_lightning.sampling.sampler import Sampler

OUTPUTS = ("softplus", "scaled", "deaths", "distribution")
LOSSES = ("instantaneous", "finite_time", "likelihood", "cross_entropy")
BOUNDS = ("continuous", "poisson", "capped", "posterior")
TIME_INPUTS = ("index", "logit", "unit")
PARAMETRISATIONS = ("prior", "posterior")


class Blackout(Family):
    """Counts 0..V-1 that die out, and are born again: for levels of pixels, whose order means something. Data whose
    classes are names (tokens, codes) are refused (DiscreteData.check_model).

    Samplers: capped (default), poisson, stochastic, posterior (of output distribution; the only one for temperature and
    top_p), or rounded, published as binomial bridging and biased: core/births.py. num_steps are network calls.

    Infilling: its error has a floor with every sampler, between the model's marginal and its conditional law (total
    variation .14 with 50 steps, .12 with 400, on a law where ignoring what is known costs .33): sampling/births.py.
    With `particles` of capped, poisson or posterior it has none: 50 steps are .05 away with 16 particles, and with ever
    more particles the error falls as that of the steps (sampling/particles.py).

    The network is called as network(z, t, label=None) with z Float[b, *shape] = x_t - p (V-1)/2 and t as `time_input`
    says. It returns Float[b, *shape], read as `output` says, or for "distribution" Float[b, n, V] or [b, *shape, V].

    Times t are the process's own, p = e^-t: `corrupt`, `terms` and `reverse_law` take them as Float64[b] in [0, t_end].

    Args:
        network, num_classes, shape: see Family.
        output: softplus, published: y = softplus(raw). scaled: y = (1 - p) softplus(raw), which keeps small t accurate.
            deaths: the network returns y >= 0 itself. distribution: logits of x_0, read as `parametrisation` says.
        loss: instantaneous or finite_time, published, at the T observation times; likelihood: the integral of eq. (5),
            bits per dimension; cross_entropy: of x_0, for output distribution alone.
        bound: of nelbo: continuous; or that of the T-step chain with poisson, capped or posterior births.
        num_timesteps: T. t_end: the last time; 15 is published for bytes, 10 for binary data.
        time_input: index, published: 0..T-1, between two of them a fraction; logit: f; unit: index/(T-1).
        network_input: centred as above; counts: x_t as Int64, for the package's networks of categories.
        data_mean: mean count, for the prior of the bound; None is the middle. A wrong one costs about e^-t_end.
        parametrisation: of output distribution, what softmax(logits) is. prior: the law of x_0 at a site given the x_t
            of the others, before its own x_t is looked at: q(x_t | x_0), which is known, is multiplied in, and equal
            logits have a bound of about N ln V. posterior: p(x_0 | x_t) itself, with all of q(x_t | x_0) left to the
            network. What lies below x_t is left out. Either can say any law; -inf excludes a count.
        official: as the published code, finite_time is not multiplied by T (1000 times smaller); dropout stays on while
            sampling.
        family: optimizer, label_dropout, eval_samples, seed, eval_seed (see Family).
    """

    samplers = MappingProxyType({kernel: partial(Births, kernel) for kernel in births.KERNELS})
    grids = ()
    needs_order = True  # a count passes through all that lie below it
    defaults_before = MappingProxyType({"parametrisation": "posterior"})

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        shape: tuple[int, ...],
        output: str = "softplus",
        loss: str = "instantaneous",
        bound: str = "continuous",
        num_timesteps: int = 1000,
        t_end: float = 15.0,
        time_input: str = "index",
        network_input: str = "centred",
        data_mean: float | None = None,
        parametrisation: str = "prior",
        official: bool = False,
        **family: Any,
    ) -> None:
        super().__init__(network, num_classes, shape, **family)
        chosen: dict[str, tuple[str, tuple[str, ...]]]
        chosen = {"output": (output, OUTPUTS), "loss": (loss, LOSSES), "bound": (bound, BOUNDS)}
        chosen |= {"time_input": (time_input, TIME_INPUTS), "network_input": (network_input, ("centred", "counts"))}
        chosen |= {"parametrisation": (parametrisation, PARAMETRISATIONS)}
        for name, (value, known) in chosen.items():
            if value not in known:
                raise ValueError(f"{name} is '{value}'; choose one of {', '.join(known)}")
        if output != "distribution" and (loss == "cross_entropy" or bound == "posterior"):
            raise ValueError(f"loss {loss}, bound {bound}: the law of x_0 is needed; set output: distribution")
        if output == "distribution" and loss != "cross_entropy":
            raise ValueError(f"loss is {loss}, which trains the mean of a distribution only; set loss: cross_entropy")
        if num_classes < 2:
            raise ValueError("num_classes is 1: counts of a single level never die; Blackout needs data of 2 levels")
        if num_timesteps < 2:
            raise ValueError(f"num_timesteps is {num_timesteps}; give at least 2, 1000 is published")
        if data_mean is not None and not 0 < data_mean <= num_classes - 1:
            raise ValueError(f"data_mean is {data_mean}; a mean count lies in (0, {num_classes - 1}]")
        self.output, self.objective, self.bound, self.parametrisation = output, loss, bound, parametrisation
        self.loss_name = "train/bpd" if loss == "likelihood" else f"train/{loss}"
        self.num_timesteps, self.t_end = num_timesteps, t_end
        self.time_input, self.network_input, self.official = time_input, network_input, official
        self.cap = num_classes - 1
        self._grid = torch.cat([torch.zeros(1, dtype=torch.float64), death.observation_times(num_timesteps, t_end)])
        self._prior = death.prior_divergence(self.cap, t_end, self.cap / 2 if data_mean is None else data_mean)

    @property
    def grid(self) -> Tensor:
        """t_{-1} = 0, t_0, ..., t_{T-1}, Float64[T + 1]: no buffer, which a change of precision would round."""
        self._grid = self._grid.to(self.device)
        return self._grid

    # ------------------------------------------------------------------ corrupt

    def corrupt(self, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """x_t Int64[b, *shape] from x, t Float64[b] and uniforms u Float64[b, n], eq. (1)."""
        return death.thin(x.flatten(1), t, u, self.cap).reshape(x.shape)

    def index_of(self, t: Tensor) -> Tensor:
        """k Float64[b] with t = t_k, a fraction between two observation times."""
        last = death.last_logit(self.t_end)
        k = (self.num_timesteps - 1) * (last - death.logit_of(t.double())) / (2 * last)
        return torch.where((k - k.round()).abs() < 1e-6, k.round(), k)  # computed from a time it is off by 1e-12

    # ------------------------------------------------------------------ what the network says

    def corrupt_on_gpu(self, x: Tensor, t: Tensor, draws: StepNoise) -> tuple[Tensor, Tensor] | None:
        """x_t and its centred form, what the network gets, from one kernel; None where there is none. The law is that
        of `corrupt`, right to 2^-48, the draws are others: also a function of (seed, step, row, site)."""
        if not x.is_cuda or self.fused is False:
            return None
        key = noise.integer_seed("deaths", seed=draws.seed, step=draws.step)
        dtype = next(self.network.parameters(), t.new_zeros((), dtype=torch.float32)).dtype
        parts = death.thin_on_gpu(x.flatten(1), t, self.cap, draws.row, key, dtype)
        return None if parts is None else (parts[0].reshape(x.shape), parts[1].reshape(x.shape))

    def answer(self, zt: Tensor, t: Tensor, label: Tensor | None, centred: Tensor | None = None) -> Tensor:
        """What the network returns, float32 or better whatever it computes in: Float[b, n] or Float[b, n, V]. `centred`
        may have been made with zt."""
        when = death.logit_of(t.double()) if self.time_input == "logit" else self.index_of(t)
        if self.time_input == "unit":
            when = when / (self.num_timesteps - 1)
        when, label = self._network_inputs(zt, when, label)
        z = zt
        if self.network_input == "centred" and centred is not None:
            z = centred
        elif self.network_input == "centred":
            middle = (self.cap / 2 * death.survival(t.double())).reshape(-1, *[1] * (zt.dim() - 1))
            z = (zt - middle).to(when.dtype)
        came, b, n = self.network(z, when, label), len(zt), self.num_sites
        if self.output != "distribution":
            kind = "amounts" if self.output == "deaths" else "below +inf"
            came = contract.numbers(self, "network", came, ((b, n), (b, *self.shape)), kind)
            return losses.at_least_float32(came).reshape(b, n)
        raw = losses.at_least_float32(contract.logits(self, came, b))
        contract.look(self, Readout(raw, None, False))
        x0 = torch.arange(self.num_classes, device=raw.device)
        # the law that is drawn from has no class below x_t
        watch.logits(torch.where(x0 >= zt.flatten(1)[..., None], raw, -torch.inf).flatten(0, 1))
        return raw

    def deaths(self, zt: Tensor, t: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """(y, ln y), Float64[b, n], from what the network returned."""
        gone = death.death_probability(t.double())[:, None]
        if self.output == "distribution":
            return self._mean_deaths(zt, categorical.log_probabilities(self.log_posterior(zt, t, raw)))
        if self.output == "deaths":
            y = raw.double()
            return y, torch.log(torch.where(y > 0, y, 0.0))
        y, log_y = functional.softplus(raw).double(), death.log_softplus(raw).double()
        return (gone * y, torch.log(gone) + log_y) if self.output == "scaled" else (y, log_y)

    def log_posterior(self, zt: Tensor, t: Tensor, logits: Tensor) -> Tensor:
        """log p(x_0 | x_t) but for a constant per site, Float[b, n, V], from the network's logits; -inf below x_t."""
        if self.parametrisation == "prior":
            return logits + death.log_transition(zt.flatten(1), t.double(), self.cap, logits.dtype)
        x0 = torch.arange(self.num_classes, device=logits.device)
        return torch.where(x0 >= zt.flatten(1)[..., None], logits, -torch.inf)

    def _mean_deaths(self, zt: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """(y, ln y) of log p(x_0 | x_t) Float64[b, n, V]; y = 0 where no count from x_t upwards is possible."""
        x0 = torch.arange(self.num_classes, device=log_p.device)
        died = (x0 - zt.flatten(1)[..., None]).clamp(min=0).double()
        return (log_p.exp() * died).sum(-1), logs.log_sum(log_p + died.log())

    # ------------------------------------------------------------------ losses given a corrupted state

    def terms(self, x: Tensor, zt: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Float64[b], nats. Bound continuous: 2 F p sum(y - m + m ln(m/y)), eq. (5), whose mean over f ~ U(-F, F) and
        z_t ~ q(. | x) is the diffusion term. Else t is one of t_1, ..., t_{T-1}, and the mean over them is the sum of
        the chain's steps."""
        arguments.check_terms(self, x, zt, t, label)
        if self.bound != "continuous":
            k = self.index_of(t).round().long()
            return (self.num_timesteps - 1) * self._step_divergence(x, zt, t, self.grid[k], label, self.bound)
        return self._integrand(x, zt, t, label)

    def _integrand(
        self, x: Tensor, zt: Tensor, t: Tensor, label: Tensor | None, centred: Tensor | None = None
    ) -> Tensor:
        y, log_y = self.deaths(zt, t, self.answer(zt, t, label, centred))
        nats = death.divergence(y, log_y, (x - zt).flatten(1).double()).sum(-1)
        return death.likelihood_weight(t.double(), self.t_end) * nats

    def reconstruction(self, x: Tensor, zt: Tensor, label: Tensor | None = None) -> Tensor:
        """Float64[b], nats: -log p(x | x_{t_0}), the last step, which the integral leaves to its kernel."""
        t = self.grid[1].expand(len(x))
        kernel = "capped" if self.bound == "continuous" else self.bound
        return self._step_divergence(x, zt, t, torch.zeros_like(t), label, kernel)

    def prior(self, x: Tensor) -> Tensor:
        """Float64[b], nats: KL(q(x_T | x) || Poisson(e^-t_end data_mean))."""
        self._prior = self._prior.to(x.device)
        return self._prior[x.flatten(1)].sum(-1)

    def _step_divergence(
        self, x: Tensor, zt: Tensor, t: Tensor, s: Tensor, label: Tensor | None, kernel: str
    ) -> Tensor:
        law, log_y = self._law(zt, t, s, label, PLAIN, kernel)
        return births.kernel_divergence(law, (x - zt).flatten(1), log_y).sum(-1)

    def training_terms(
        self,
        x: Tensor,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        centred: Tensor | None = None,
    ) -> Tensor:
        """Float64[b]: what `loss` averages; s is the observation time before t (not used by likelihood)."""
        if self.objective == "likelihood":
            return self._integrand(x, zt, t, label, centred) / (self.num_sites * math.log(2))
        raw = self.answer(zt, t, label, centred)
        if self.objective == "cross_entropy":
            log_p = logs.log_normalised(self.log_posterior(zt, t, raw))
            return -log_p.gather(-1, x.flatten(1)[..., None])[..., 0].double().mean(-1)
        scale = None
        if self.fuses:
            scale = death.death_probability(t.double()) if self.output == "scaled" else torch.ones_like(t)
        read = partial(self.deaths, zt, t, raw)
        per_site = readout.published_loss(raw, x.flatten(1), zt.flatten(1), scale, read)
        if self.objective == "instantaneous":
            return self.num_timesteps * death.instantaneous_weight(t, s) * per_site
        return (1 if self.official else self.num_timesteps) * death.finite_time_weight(t, s) * per_site

    @property
    def fuses(self) -> bool:
        """Loss and gradient in one pass: by default on a GPU, where that is one kernel; not for output deaths."""
        wanted = self.device.type == "cuda" if self.fused is None else self.fused
        return wanted and self.output in ("softplus", "scaled")

    # ------------------------------------------------------------------ loss and bound

    def _times(self, u: Tensor, published: bool) -> tuple[Tensor, Tensor]:
        """(t, s) from u in [0, 1): t_k and t_{k-1}, k uniform on 0..T-1; or f uniform on [-F, F], s = 0."""
        if published:
            k = (u * self.num_timesteps).long()
            return self.grid[k + 1], self.grid[k]
        t = death.time_of(death.last_logit(self.t_end) * (1 - 2 * u))
        return t, torch.zeros_like(t)

    def training_loss(self, x: Tensor, label: Tensor | None, draws: StepNoise) -> Tensor:
        """Mean over rows and sites of the loss; likelihood: bits per dimension."""
        t, s = self._times(times.of_step(draws), self.objective in ("instantaneous", "finite_time"))
        made = self.corrupt_on_gpu(x, t, draws)
        zt, centred = made or (self.corrupt(x, t, draws.uniform("deaths", self.num_sites)), None)
        return self.training_terms(x, zt, t, s, label, centred).mean()

    def nelbo(
        self, x: Tensor, label: Tensor | None = None, num_samples: int = 1, seed: int = 0, row: Tensor | None = None
    ) -> Tensor:
        """Float64[b], nats: diffusion term averaged over num_samples (t, x_t), plus reconstruction (one more network
        call) and prior. Times are stratified over a row's own samples."""
        x, label, row = arguments.of_bound(self, x, label, row, num_samples, seed)
        b = x.shape[0]
        uniform = partial(noise.uniform, seed=seed, row=row, num_sites=self.num_sites)
        nats = torch.zeros(b, dtype=torch.float64, device=x.device)
        with self.evaluating():
            for j, u in enumerate(times.stratified_per_row(seed=seed, row=row, num_samples=num_samples)):
                if self.bound == "continuous":
                    t, _ = self._times(u, published=False)
                else:
                    t = self.grid[2 + (u * (self.num_timesteps - 1)).long()]  # t_1, ..., t_{T-1}
                nats += self.terms(x, self.corrupt(x, t, uniform("eval deaths", step=j)), t, label)
            first = self.corrupt(x, self.grid[1].expand(b), uniform("first deaths", step=0))
            return nats / num_samples + self.reconstruction(x, first, label) + self.prior(x)

    # ------------------------------------------------------------------ reverse step

    def prior_sample(self, num_samples: int, uniform: Callable[[str], Tensor] | None = None) -> Tensor:
        """Black. A site of x_T is not 0 with probability below (V-1) e^-t_end."""
        return torch.zeros((num_samples, *self.shape), dtype=torch.int64, device=self.device)

    def _law(
        self, zt: Tensor, t: Tensor, s: Tensor, label: Tensor | None, sharpening: Sharpening, kernel: str
    ) -> tuple[BirthLaw, Tensor]:
        """The law of x_s, and ln y."""
        raw = self.answer(zt, t, label)
        y, log_y = self.deaths(zt, t, raw)
        log_p = None
        if kernel == "posterior":
            log_p = sharpening.log_probabilities(self.log_posterior(zt, t, raw))
        pi = death.bridge_probability(t.double(), s.double())
        return BirthLaw(zt.flatten(1), y, pi, self.cap, kernel, log_p), log_y

    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
        sampler: str | None = None,
    ) -> BirthLaw:
        """p(x_s | x_t) site by site; t, s Float64[b], s < t, s = 0 is the end. What is sharpened is p(x_0 | x_t), which
        only sampler "posterior" has."""
        arguments.check_law(self, zt, t, s, label, sharpening)
        kernel = sampler or births.KERNELS[0]
        if kernel not in self.samplers:
            raise ValueError(f"sampler '{kernel}' is unknown to Blackout; choose one of {', '.join(self.samplers)}")
        if kernel == "posterior" and self.output != "distribution":
            raise ValueError(f"sampler posterior needs a law of x_0, not output {self.output}; use sampler capped")
        if kernel != "posterior" and sharpening != PLAIN:
            raise ValueError(f"{sharpening} are for sampler posterior; leave them at 1 for {kernel}")
        return self._law(zt, t, s, label, sharpening, kernel)[0]

    # ------------------------------------------------------------------ sampling

    def draw(self, request: Request, sampler: Sampler) -> Samples:
        with self._drawing():
            return super().draw(request, sampler)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Dropout on if the published code is followed (then a draw depends on its batch)."""
        if self.official:
            self.network.train()
        try:
            yield
        finally:
            self.network.eval()
