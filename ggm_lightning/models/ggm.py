"""GGM: the Glauber generative model, arXiv 2405.17035. Read from top to bottom:

corrupt, pairs  ->  loss (a classification)  ->  terms, nelbo  ->  reverse_law  ->  sample

    X_t         a visit t -> t + 1 overwrites site i_t by a draw of pi, or leaves it alone (Z_t = phi)        eq. (1)
    loss bce    signal or noise? -log sigmoid(+-s_x), x = X_{t+1,i_t} the observed token
    p_t(x|y)    = softmax_x(s_x + log pi(x)), the law of X_{t,i_t} given the other tokens                     eq. (3)
    -log p(x0)  <= KL(q(X_T|x0) || pi^n) + sum_t E KL(q(X_t|X_{t+1}, x0) || gated kernel)                     eq. (8)

Equations as numbered in core/glauber.py, the order of the visits in core/sweeps.py. No code was published; what the
paper leaves open (schedule, pi, conditioning, bound, infilling) is our choice and proved exact by enumeration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from ggm_lightning.core import categorical, glauber, losses, noise, sweeps, times
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.glauber import Pair, SiteLaw
from ggm_lightning.core.noise import StepNoise
from ggm_lightning.core.sweeps import Sweeps
from ggm_lightning.models import ggm_hollow, ggm_levels, ggm_options
from ggm_lightning.models.base import Family
from ggm_lightning.sampling import arguments, random_order, sweeping
from ggm_lightning.sampling.naming import Maker
from ggm_lightning.sampling.request import Request, Samples
from ggm_lightning.sampling.sampler import Sampler

_COUNTED = 2**24  # tokens of the training data that the unigram law is measured on


class GGM(Family):
    """One token at a time, denoised by a binary classifier of every token at its site.

    The network is called as network(z, t, label=None, visited=...) with z Int64[b, *shape] in 0..V (V hides the token
    of this site, whatever it is), t = r/R Float[b] (r is the sweep of the visit that is undone, 0..R-1) and visited
    Bool[b, n] (sites that sweep r had visited before). It returns o, Float[b, n, V] or Float[b, *shape, V], of which
    only the hidden sites are used (a single hidden site may come alone, Float[b, 1, V]): the logits s = o +
    log(Pi_r(phi)/beta_r), so that o = 0 is the calibrated p_t = pi and o = log p_t(x|y) - log pi(x) the exact one. With
    loss ce_x0 it is log p0(x|y) - log pi(x) instead. Constants matter to bce alone. -inf excludes a token from p0 or
    p_t; but in p_t noise may put any token anywhere, so that the bound is then infinite for all data.

    With order: random nothing is hidden, and what is returned at all sites is used: it may depend on no token and no
    bit of the site itself. That is looked at, once for training, for a bound and for sampling. With levels: true the
    call is network(z, t, label=None, levels=...), t = 1 - a_r, levels Float64[b, n] the survival of each site.

    Samplers (sampling/sweeping.py): heat_bath and gated, exact, make all R n visits; parallel makes B = num_steps // R
    blocks per sweep. With a clamp `redenoise` rounds of one sweep up and down follow. With order: random
    (sampling/random_order.py) parallel makes one call for each block, of any size.

    Infilling: the network takes known tokens for as noisy as the time says. With heat_bath the error vanishes with R;
    with gated and parallel it has a floor, which rounds of `redenoise` lower (of hide: block they do not). With
    order: random known sites are the last of every sweep, and the error of all samplers vanishes with `redenoise`;
    with levels: true, where they are taken for clean, heat_bath and gated have none.

    Times: t = 0..T = R n counts visits; `corrupt`, `terms` and `reverse_law` take t as the time of the state they get.

    Args:
        network, num_classes, shape: see Family.
        loss: bce, the paper's; ce_xt or ce_x0, cross-entropies of X_{t,i} or X_{0,i}, which have the same optimum. In
            nats per classified token and logged as train/<loss>; it is no likelihood. With order: random: bce, its
            label summed out; bce_sampled, with a drawn one; ce_x0; or bound, the bound itself (the network then returns
            log p0 - log pi, as for ce_x0; all V logits of all sites are formed).
        num_sweeps: R. The exact samplers need R n network calls.
        schedule: linear or geometric survival over the sweeps (core/sweeps.py).
        last_survival: a_R, strictly between 0 and 1; None: min(0.01, 0.1/n).
        order: raster, or permuted by one fixed permutation (order_seed chooses it); or random, a new one for each row
            and sweep, with a hollow network (networks/hollow.py): all sites learn from one call, and none is hidden.
        noise_law: pi: uniform; unigram, the training data's own frequencies (measured when a fit begins, kept in the
            checkpoint); or a list of V probabilities.
        block_size: visits that training and the sampler "parallel" may make at once: in each step of training a number
            from 1 to block_size, the same for all rows.
        hide: own: a visited site's law is conditional on all other tokens, one network call for each. block: the whole
            block is hidden and predicted in one call, which ignores what its tokens say of each other: good for
            training, but sampler "parallel" then does not converge in sweeps.
        redenoise: rounds of ReDeNoise behind infilling: one sweep of noise on the unknown sites, and back.
        noise_draws: with order: random and more classes than this, bce takes its sums over classes from so many draws.
        corrector_steps: with order: random, so many calls of parallel Gibbs behind a sample, each on n/8 of its sites.
        levels: with order: random, tell the network each site's survival level instead of the sweep and the bits
            (models/ggm_levels.py). It then serves any number of sweeps: `at_sweeps`, the samplers' num_sweeps.
        train_sweeps: with levels, what R is drawn from, step by step, in training; None: num_sweeps alone.
        known_rows: with levels, the share of training rows in which some tokens are known, as in infilling; None: .25.
        family: optimizer, label_dropout, eval_samples, seed, eval_seed (see Family).
    """

    samplers: Mapping[str, Maker] = MappingProxyType(
        {kernel: partial(sweeping.Sweeping, kernel) for kernel in sweeping.KERNELS}
    )
    refused_samplers = MappingProxyType({"parallel_heat_bath": sweeping.PARALLEL_HEAT_BATH})
    grids = ()

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        shape: tuple[int, ...],
        loss: str = "bce",
        num_sweeps: int = 4,
        schedule: str = "linear",
        last_survival: float | None = None,
        order: str = "raster",
        order_seed: int = 0,
        noise_law: str | list[float] = "uniform",
        block_size: int = 1,
        hide: str = "own",
        redenoise: int = 4,
        noise_draws: int = 1024,
        corrector_steps: int = 0,
        levels: bool = False,
        train_sweeps: list[int] | None = None,
        known_rows: float | None = None,
        **family: Any,
    ) -> None:
        self.network_keywords = ("levels" if levels else "visited",)
        super().__init__(network, num_classes, shape, **family)
        n = self.num_sites
        self.random_order = order == "random"
        if self.random_order:
            self.samplers = {kernel: partial(random_order.RandomOrder, kernel) for kernel in sweeping.KERNELS}
        self.noise_draws, self.corrector_steps = noise_draws, corrector_steps
        ggm_options.check(n, order, loss, block_size, hide, redenoise, noise_draws, corrector_steps)
        ggm_options.check_levels(network, order, levels, train_sweeps, known_rows)
        self.objective, self.loss_name = loss, f"train/{loss}"
        last = sweeps.default_last_survival(n) if last_survival is None else last_survival
        self.survival_of: Callable[[int], Tensor] = partial(sweeps.survival, last=last, schedule=schedule)
        self._sweeps = Sweeps(sweeps.site_order(n, order, order_seed), self.survival_of(num_sweeps))
        self.other_sweeps: dict[int, Sweeps] = {}
        self.levels, self.known_rows = levels, ggm_levels.known_rows(levels, known_rows)
        self.train_sweeps = tuple(train_sweeps or [num_sweeps])
        self._given_law = glauber.noise_law(noise_law, num_classes)
        counted = noise_law == "unigram"
        self.register_buffer("unigram_counts", torch.zeros(num_classes, dtype=torch.int64) if counted else None)
        self.block_size, self.hide, self.redenoise = block_size, hide, redenoise
        self.hide_id = num_classes
        self.calibration = nn.ModuleDict({"calibration": MeanMetric(), "calibration_rms": MeanMetric()})

    @property
    def sweeps(self) -> Sweeps:
        self._sweeps = self._sweeps.to(self.device)
        return self._sweeps

    def at_sweeps(self, num_sweeps: int) -> AbstractContextManager[None]:
        """Inside, bounds, laws and times are those of so many sweeps: any number with levels, else a ValueError."""
        return ggm_levels.at_sweeps(self, num_sweeps)

    @property
    def log_pi(self) -> Tensor:
        """Float64[V]; the unigram law counts every class once more, so that none has probability 0."""
        if self.unigram_counts is None:
            self._given_law = self._given_law.to(self.device)  # moved once
            return self._given_law.log()
        counts = self.unigram_counts.double() + 1
        return torch.log(counts / counts.sum())

    # ------------------------------------------------------------------ corrupt

    def corrupt(self, x: Tensor, t: Tensor, uniform: Callable[[str], Tensor]) -> Tensor:
        """X_t Int64[b, *shape] given x, t Int64[b] in 0..T, eq. (2); `uniform(stream)` gives Float64[b, n]."""
        survival = self.sweeps.survival_at(t)
        if self.random_order:
            survival = ggm_hollow.survival_at(self, t, uniform("order").argsort(1))
        x_t = glauber.corrupt(x.flatten(1), survival, self.log_pi.exp(), uniform)
        return x_t.reshape(x.shape)

    def pairs(
        self, x: Tensor, u: Tensor, size: int, uniform: Callable[[str], Tensor]
    ) -> tuple[Pair, Tensor, Tensor, Tensor]:
        """What a training step classifies: (pair, r Int64[b], visited Bool[b, n], valid Bool[b, m]). u Float64[b] in
        [0, 1) chooses the visits out of all R sweeps cut into blocks of `size` sites; m is `size`, or 1 with hide: own.
        """
        s = self.sweeps.block_start(u, size)
        r = s // self.num_sites
        sites, valid = self.sweeps.block_sites(s, size)
        visited = self.sweeps.visited_in_sweep(s)
        if self.hide == "own" and size > 1:
            member = (uniform("member")[:, :1] * valid.sum(1, keepdim=True)).long()
            sites, valid = sites.gather(1, member), valid[:, :1]
            visited = self.sweeps.visited_in_sweep(s, size).scatter(1, sites, False)
        pair = glauber.draw_pair(x.flatten(1), self.sweeps, r, visited, sites, self.log_pi.exp(), uniform)
        return pair, r, visited, valid

    # ------------------------------------------------------------------ what the network is asked

    def _inputs(self, x: Tensor, r: Tensor, visited: Tensor, sites: Tensor) -> dict[str, Any]:
        """What `logits_at` takes; the tokens at sites Int64[b, m] are hidden here."""
        z = x.flatten(1).scatter(1, sites, self.hide_id).reshape(x.shape[0], *self.shape)
        return {"zt": z, "t": r.double() / self.sweeps.num_sweeps, "sites": sites, "visited": visited}

    def log_conditional(self, logits: Tensor, a: Tensor) -> Tensor:
        """log p_t(.|y) Float[k, V] from what the network returned, a Float[k] the survival before the visit."""
        logits = losses.at_least_float32(logits)
        log_pi = self.log_pi.to(logits.dtype)
        law = glauber.log_conditional(logits, log_pi)  # eq. (3); the constant log(Pi(phi)/beta) falls out
        return glauber.log_mixed(law, log_pi, a.to(law.dtype)) if self.objective in ("ce_x0", "bound") else law

    # ------------------------------------------------------------------ loss

    def training_loss(self, x: Tensor, label: Tensor | None, draws: StepNoise) -> Tensor:
        """Nats per classified token, mean over the rows, unit weights. At the start, o = 0, bce is the entropy of the
        classes given the token (uniform pi: of Bernoulli(Pi_r(phi))).
        """
        if self.random_order:
            return ggm_hollow.training_loss(self, x, label, draws)
        uniform = partial(draws.uniform, num_sites=self.num_sites)
        # from the step alone: known to the host, and the same on every rank
        size = 1 + noise.integer_seed("block size", seed=draws.seed, step=draws.step) % self.block_size
        pair, r, visited, valid = self.pairs(x, times.of_step(draws), size, uniform)
        nats = self._classification(x, pair, r, self._inputs(pair.x_next, r, visited, pair.sites), label)
        nats = torch.where(valid, nats.reshape(valid.shape), 0.0)
        return (nats.sum(1) / valid.sum(1)).mean()

    def _classification(self, x: Tensor, pair: Pair, r: Tensor, inputs: dict[str, Any], label: Tensor | None) -> Tensor:
        """Float[k], nats, at the hidden sites."""
        if self.objective == "bce":
            answer = self.readout(label=label, **inputs)
            o = answer.of_tokens(pair.observed.flatten(), fuse=self.fused is not False)
            log_odds = self.sweeps.log_odds[r].repeat_interleave(pair.sites.shape[1])
            return glauber.signal_cross_entropy(o + log_odds.to(o.dtype), pair.signal.flatten())
        target = pair.before if self.objective == "ce_xt" else x.flatten(1).gather(1, pair.sites)
        logits = losses.at_least_float32(self.logits_at(label=label, **inputs))
        return losses.cross_entropy(logits + self.log_pi.to(logits.dtype), target.flatten())

    # ------------------------------------------------------------------ bound

    def terms(
        self, x: Tensor, zt: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None
    ) -> Tensor:
        """Float64[b], nats: T times the term of eq. (8) that belongs to the visit t-1 -> t, given the state zt at time
        t Int64[b] in 1..T. Its mean over uniform t and zt ~ q(X_t | x) is the sum in eq. (8).

        The visited site's own token is summed out: zt there does not matter. With order: random t says the sweep
        alone, visited Bool[b, n] what it has visited, and all n sites count: see core/hollow.py, eq. (12).
        """
        arguments.check_terms(self, x, zt, t, label)
        if self.random_order:
            return ggm_hollow.terms(self, x, zt, (t - 1) // self.num_sites, visited, label)[0]
        return self._terms(x, zt, t, label)[0]

    def _terms(self, x: Tensor, zt: Tensor, t: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """(terms, deviation of the self-normalisation, eq. (4)), each Float64[b]."""
        chain, s = self.sweeps, t - 1
        r, sites = s // self.num_sites, chain.block_sites(s, 1)[0]
        inputs = self._inputs(zt, r, chain.visited_in_sweep(s), sites)
        logits = self.logits_at(label=label, **inputs).double()
        a, x0 = chain.survival[r], x.flatten(1).gather(1, sites)[:, 0]
        nats = glauber.step_nats(self.log_conditional(logits, a), x0, self.log_pi, a, chain.keep[r])
        log_odds = chain.log_odds[r]
        return chain.num_steps * nats, glauber.log_mass(logits + log_odds[:, None], self.log_pi, log_odds)

    def nelbo(
        self, x: Tensor, label: Tensor | None = None, num_samples: int = 1, seed: int = 0, row: Tensor | None = None
    ) -> Tensor:
        """Float64[b], nats: the bound eq. (8) of the gated kernel from num_samples visits, a network call each.

        t is stratified over a row's own samples, so the estimate of a row is a function of (seed, row) alone. A single
        visit tells of one site: give many samples, or trust the mean over many rows only.
        """
        return self._estimate(x, label, num_samples, seed, row)[0]

    def _estimate(
        self, x: Tensor, label: Tensor | None, num_samples: int, seed: int, row: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(bound Float64[b], deviations of the self-normalisation Float64[num_samples, b])."""
        x, label, row = arguments.of_bound(self, x, label, row, num_samples, seed)
        chain, flat = self.sweeps, x.flatten(1)
        last = chain.survival_at(torch.full_like(row, chain.num_steps))
        total, deviations = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device), []
        with self.evaluating():
            for j, u in enumerate(times.stratified_per_row(seed=seed, row=row, num_samples=num_samples)):
                uniform = partial(_evaluation_noise, seed=seed, step=j, row=row, num_sites=self.num_sites)
                nats, deviation = self._drawn_terms(x, u, uniform, label)
                total += nats
                deviations.append(deviation)
            return total / num_samples + glauber.prior_nats(flat, self.log_pi, last), torch.stack(deviations)

    def _drawn_terms(
        self, x: Tensor, u: Tensor, uniform: Callable[[str], Tensor], label: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """_terms at the visit, or with order: random at the sweep and its visits, that u Float64[b] in [0, 1) says."""
        if self.random_order:
            r, visited, zt = ggm_hollow.draw_state(self, x, u, uniform)
            return ggm_hollow.terms(self, x, zt, r, visited, label)
        t = (u * self.sweeps.num_steps).long() + 1
        return self._terms(x, self.corrupt(x, t, uniform), t, label)

    # ------------------------------------------------------------------ reverse step

    def prior_sample(self, num_samples: int, uniform: Callable[[str], Tensor] | None = None) -> Tensor:
        """X_T ~ pi^n, Int64[b, *shape]; from `uniform("prior")` Float64[b, n], or from seed 0."""
        if uniform is None:
            row = torch.arange(num_samples, device=self.device)
            uniform = partial(noise.uniform, seed=0, step=0, row=row, num_sites=self.num_sites)
        x = categorical.draw_common(self.log_pi.exp(), uniform("prior"))
        return x.reshape(num_samples, *self.shape)

    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
        sampler: str | None = None,
        known: Tensor | None = None,
        order: Tensor | None = None,
    ) -> SiteLaw | ggm_hollow.BlockLaw:
        """The law of X_s given X_t = zt: the sites visited by s..t-1 move, all at once, the others stay.

        t, s Int64[b] in 0..T with the same t - s in all rows, which is 1 unless the sampler is "parallel".
        The data law p0 in p_t is what is sharpened, eq. (5). `known` Bool[b, *shape] (of a clamp): tokens that are
        shown even in a hidden block, and with levels as clean. `order` Int64[b, n]: that of the sweep, where random.
        """
        arguments.check_law(self, zt, t, s, label, sharpening)
        chain, first = self.sweeps, s.long()
        size = chain.step_size(first, t.long(), simultaneous=sampler == "parallel")
        gated = sampler in ("gated", "parallel")
        if self.random_order:
            r, visited, sites = ggm_hollow.block(self, first, size, order, known)
            return ggm_hollow.block_law(self, zt, r, visited, sites, label, sharpening, gated, known)
        if order is not None:
            raise ValueError("reverse_law: order is given, but the model has one of its own; leave it out")
        r, sites = first // self.num_sites, chain.block_sites(first, size)[0]
        if self.hide == "block" or size == 1:
            hidden = self._inputs(zt, r, chain.visited_in_sweep(first), sites)
            if known is not None:
                hidden["zt"] = torch.where(known, zt, hidden["zt"])
            logits = self.logits_at(label=label, **hidden)
        else:
            visited = chain.visited_in_sweep(first, size)
            parts = (self._inputs(zt, r, visited.scatter(1, own, False), own) for own in sites.split(1, 1))
            logits = torch.stack([self.logits_at(label=label, **part) for part in parts], 1).flatten(0, 1)
        r = r.repeat_interleave(size)
        a = chain.survival[r]
        log_p = glauber.sharpened(self.log_conditional(logits.double(), a), self.log_pi, a, sharpening)
        row = torch.arange(len(zt), device=zt.device).repeat_interleave(size)
        return SiteLaw(zt.flatten(1), row, sites.flatten(), log_p, self.log_pi, chain.log_odds[r], gated)

    def gibbs_law(
        self, z: Tensor, sites: Tensor, label: Tensor | None = None, sharpening: Sharpening = PLAIN
    ) -> ggm_hollow.BlockLaw:
        """The corrector's, of a hollow network: `sites` Int64[b, m] of clean rows z, each given all other tokens."""
        return ggm_hollow.gibbs_law(self, z, sites, label, sharpening)

    def draw(self, request: Request, sampler: Sampler) -> Samples:
        """Down from the sweeps that the sampler chooses."""
        with self.at_sweeps(random_order.sweeps_of(self, sampler, request.num_steps)):
            return super().draw(request, sampler)

    # ------------------------------------------------------------------ Lightning

    def of_the_run(self) -> tuple[str, ...]:
        """The unigram law is that of the data, and measured again."""
        return ("unigram_counts",)

    def setup(self, stage: str) -> None:
        """Measures the unigram law; a checkpoint that is resumed brings its own, which then replaces this one."""
        if self.unigram_counts is None or stage != "fit":
            return
        data = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "rows"):
            raise ValueError(
                "noise_law unigram is measured on the trainer's datamodule, which has no rows; give V probabilities"
            )
        rows = data.rows("train")
        stride = max(1, len(rows) * self.num_sites // _COUNTED)
        self.unigram_counts.zero_()
        for part in torch.arange(0, len(rows), stride).split(max(1, 2**20 // self.num_sites)):
            counts = rows[part.tolist()]["x"].flatten().long().bincount(minlength=self.num_classes)
            self.unigram_counts += counts.to(self.unigram_counts.device)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        x = batch["x"]
        row = self.evaluated_rows(batch, "val")
        nats, deviations = self._estimate(x, self.label_of(batch), self.eval_samples, self.eval_seed, row)
        self.likelihoods["val"].update(nats)
        self.calibration["calibration"].update(deviations)
        self.calibration["calibration_rms"].update(deviations.square())

    def on_validation_epoch_end(self) -> None:
        """val/calibration: mean of log sum_x pi(x) e^{s_x} - log(Pi(phi)/beta), eq. (4), 0 for the true logits, and its
        root mean square; for bce only, the other losses leave the logits' constant free."""
        super().on_validation_epoch_end()
        mean, square = (metric.compute() for metric in self.calibration.values())
        for metric in self.calibration.values():
            metric.reset()
        if self.objective.startswith("bce"):
            self.log_dict({"val/calibration": mean, "val/calibration_rms": square.sqrt()}, sync_dist=True)


def _evaluation_noise(stream: str, **counters: Any) -> Tensor:
    return noise.uniform(f"eval {stream}", **counters)
