"""What every family shares and nothing else: noise by global row numbers, network calls, metrics, Lightning steps.

A family (models/md4.py, ...) adds `training_loss`, `terms`, `nelbo`, `prior_sample`, `reverse_law` and `finish`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ggm_lightning.core import noise, watch
from ggm_lightning.core.categorical import PLAIN, Sharpening
from ggm_lightning.core.noise import StepNoise
from ggm_lightning.metrics.likelihood import Likelihood
from ggm_lightning.models import contract, declared, readout
from ggm_lightning.models.readout import Readout
from ggm_lightning.models.trained import Optimizer, Trained
from ggm_lightning.sampling import arguments, guidance, loop, naming, plan
from ggm_lightning.sampling.contract import Denoiser
from ggm_lightning.sampling.naming import Maker
from ggm_lightning.sampling.request import Clamp, Request, Samples, checked
from ggm_lightning.sampling.reverse import Reverse
from ggm_lightning.sampling.sampler import Sampler


class Family(Trained, ABC):
    """A discrete diffusion model over x in {0..V-1}^shape.

    Args:
        network: called as network(z, t, label=None); each family's docstring says with what and what it returns. If it
            also has `features(z, t, label)` -> Float[b, n, d] and a linear `head`, these are taken, and logits are
            formed only where they are needed. What it returns is checked (models/contract.py), but where n = V nobody
            can see that sites and classes have changed places: the classes come last.
        num_classes: V.
        shape: the shape of one example; N is its product.
        optimizer: learning rate and its schedule.
        label_dropout: probability of replacing a label by the null class while training (classifier-free guidance).
        eval_samples: corrupted states per example in validation and test.
        seed: of the training noise (times, corruption, dropout).
        eval_seed: of the validation and test noise; the same at every validation.
    """

    # short names for `sample` and what they stand for, the default first
    samplers: Mapping[str, Maker] = MappingProxyType({"ancestral": Reverse})
    refused_samplers: Mapping[str, str] = MappingProxyType({})  # names one might try, and why they are refused
    grids: tuple[str, ...] = ("cosine", "uniform")  # of the sampling times, the default first; () where there is one
    # what `denoiser` takes: name -> check(name, value), which raises ValueError or returns the value
    denoiser_options: Mapping[str, Callable[[str, Any], Any]] = MappingProxyType({})
    mask_id: Any = None  # where the noise is absorbing: an int, the state of a masked site
    schedule: Any = None  # of the masking, where one masks all classes: a sampling.contract.MaskSchedule
    estimators: tuple[str, ...] = ("times",)  # what `nelbo` may draw, the default first (models/md4.py)
    exact = False  # whether nelbo is -log p(x) itself, not a bound on it
    fills_beginnings_only = False  # whether known sites have to come before all others
    unused_parameters = False  # whether some parameters get no gradient in some steps, which DDP has to be told
    network_keywords: tuple[str, ...] = ()  # what the network takes besides z, t, label
    fast_path = "features"  # the method that is called instead of the network where it has one: no logits
    fused: bool | None = None  # losses by core/fused.py: True, False, or where it pays

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        shape: tuple[int, ...],
        optimizer: Optimizer = Optimizer(),
        label_dropout: float = 0.0,
        eval_samples: int = 1,
        seed: int = 0,
        eval_seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout is {label_dropout}; it is a probability: give a number in [0, 1]")
        if eval_samples < 1:
            raise ValueError(f"eval_samples is {eval_samples}; a bound needs at least 1")
        self.network = network
        self.num_classes = num_classes
        self.shape = tuple(shape)
        self.num_sites = math.prod(self.shape)
        self.optimizer = optimizer
        self.label_dropout = label_dropout
        self.eval_samples = eval_samples
        self.seed = seed
        self.eval_seed = eval_seed
        declared.check(type(self).__name__, "network", network, self.fast_path)
        own = declared.by(network)
        known = own.num_classes
        if known is not None and known != num_classes:
            raise ValueError(
                f"vocabulary mismatch: the data has {num_classes} classes, the network {known}; build the "
                f"network with num_classes={num_classes} (a configuration takes it from the data: leave it out there)"
            )
        if label_dropout and own.num_labels == 0:
            raise ValueError(
                f"label_dropout is {label_dropout} but the network takes no labels; set its num_labels or drop it"
            )
        perplexity = len(self.shape) == 1
        splits = ("val", "test", "predict")
        self.likelihoods = nn.ModuleDict({split: Likelihood(self.num_sites, perplexity) for split in splits})
        contract.check_call(type(self).__name__, "network", network, self.fast_path, 3, self.network_keywords)
        self.network_use: str | None = None  # training, bound or sampling: what the network is being called for
        self.looked_at: set[tuple[str, str]] = set()  # (what, use) whose values were checked, see contract.look
        self.network_calls = 0  # counted by the families where they call the network
        self.rows_sent = 0  # in these calls
        self.other_calls: Counter[str] = Counter()  # of further networks, by their names
        self._loss_calls = 0

    # ------------------------------------------------------------------ what a family adds

    @abstractmethod
    def training_loss(self, x: Tensor, label: Tensor | None, draws: StepNoise) -> Tensor:
        """Scalar to minimise, mean over the rows; `label` as the network wants it, all randomness from `draws`."""

    @abstractmethod
    def nelbo(
        self, x: Tensor, label: Tensor | None = None, num_samples: int = 1, seed: int = 0, row: Tensor | None = None
    ) -> Tensor:
        """Float[b]: unbiased estimate of an upper bound on -log p(x), nats per example."""

    def prior_sample(self, num_samples: int, uniform: Callable[[str], Tensor] | None = None) -> Tensor:
        """The state at t = 1, Int64[b, *shape]: all masked; of processes without a mask what they end in, from
        `uniform(stream)` -> Float64[b, n] where it is drawn."""
        if self.mask_id is None:
            name = type(self).__name__
            raise ValueError(f"{name}: what its noise ends in is not said; set mask_id, or write prior_sample")
        return torch.full((num_samples, *self.shape), self.mask_id, device=self.device)

    @abstractmethod
    def reverse_law(
        self,
        zt: Tensor,
        t: Tensor,
        s: Tensor,
        label: Tensor | None = None,
        sharpening: Sharpening = PLAIN,
    ) -> Any:
        """The law of z_s given z_t, site by site: the one from which, and only from which, the samplers draw."""

    def denoiser(self, request: Request) -> Denoiser:
        """The network as plans ask it (sampling/contract.py): logits of the clean tokens given a state. What is drawn
        beside the tokens is drawn here. Raises ValueError in families whose network says something else."""
        if self.mask_id is None:
            raise ValueError(f"{type(self).__name__} has no mask: {arguments.choice(self.samplers)}, no plan")
        return self._plain_denoiser

    def _plain_denoiser(self, zt: Tensor, t: Tensor, label: Tensor | None, sites: Tensor, rows: Tensor) -> Tensor:
        return self.logits_at(zt, t, label, sites)

    def moving(self, zt: Tensor) -> Tensor | None:
        """Bool[b], the rows that a reverse step may still change: where the noise is absorbing, those with a masked
        site. None: all."""
        return None if self.mask_id is None else (zt == self.mask_id).flatten(1).any(1)

    def finish(
        self,
        z: Tensor,
        label: Tensor | None,
        uniform: Callable[[str], Tensor] | None,
        sharpening: Sharpening = PLAIN,
        denoiser: Denoiser | None = None,
    ) -> Tensor:
        """From the state at t = 0 to x: where the noise is absorbing, what is still masked is drawn, all at once; the
        most probable values are taken where `uniform` is None."""
        if self.mask_id is None:
            return z
        return plan.filled(z, self.mask_id, label, denoiser or self._plain_denoiser, uniform, sharpening)

    # ------------------------------------------------------------------ loss

    def loss(
        self,
        x: Tensor,
        label: Tensor | None = None,
        *,
        step: int | None = None,
        row: Tensor | None = None,
        total: int | None = None,
    ) -> Tensor:
        """The scalar to minimise, in the units of `loss_name`, with labels dropped at the rate `label_dropout`.

        step, row, total place these rows in a global batch for the noise; without them each call draws new noise: rows
        0..b-1 of a step that counts the calls.
        """
        # with a step: in training, where nothing waits for the device
        look = step is None and self.device.type == "cpu"
        x = arguments.examples(self, x, look)
        b = x.shape[0]
        label = arguments.labels(self, label, b, look)
        if step is None:
            step = self._loss_calls
            self._loss_calls += 1
        row = arguments.rows(row, b, x.device)
        draws = StepNoise(self.seed, step, row, total or b)
        drop = draws.uniform("label", 1)[:, 0] < self.label_dropout if self.label_dropout else None
        label = self.network_label(label, b, drop)
        with contract.used_for(self, "training"):
            contract.check_ids(self, x)
            return self.training_loss(x, label, draws)

    # ------------------------------------------------------------------ sampling

    def sample(
        self,
        num_samples: int,
        num_steps: int,
        label: Tensor | None = None,
        clamp: Clamp | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        trace: bool = False,
        grid: str | None = None,
        sampler: str | type[Sampler] | Sampler | None = None,
        row: Tensor | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Samples:
        """x Int64[b, *shape], with the number of network calls and of rows sent and, if asked for, the trace of states.

        Args:
            num_samples: b.
            num_steps: reverse steps from t = 1 to 0 on the grid; a step in which no site changes costs no network
                call, so network_calls may be smaller.
            label: Int64[b], class of each sample; it, row and both parts of clamp may be NumPy arrays or lists.
            clamp: (values, mask): sites where mask is True keep `values` all along (infilling).
            temperature, top_p: sharpen the law of the values; 1 and 1 draw from the model itself, temperature 0 takes
                its mode.
            seed, row: the draw of row r is a function of (seed, r); row defaults to 0..b-1.
            trace: keep the states (CPU): all of a short chain, 256 of a long one.
            grid: one of the family's `grids`; None takes the first.
            sampler: one of the family's `samplers`, the path of a class of your own, or an object of it; None takes
                the first (sampling/naming.py).
            progress: show a bar with time left.
            options: top_k, nucleus (core.categorical.Sharpening) and guidance (sampling/guidance.py); those of the
                sampler, and of the family's `denoiser` where it has any (LDDM: latent_steps).

        Raises ValueError for what it cannot mean, in one line and before the network is called.
        """
        options |= {"temperature": temperature, "top_p": top_p}
        sharpening, weight = naming.sharpening(options), options.pop("guidance", guidance.NONE)
        chosen, of_denoiser = naming.chosen(self, sampler, options)
        guidance.check(self, chosen, weight, label)
        further = {"sharpening": sharpening, "sampler": chosen.name, "options": of_denoiser, "guidance": weight}
        request = checked(self, num_samples, num_steps, label, clamp, seed, trace, grid, row, progress, **further)
        with self.evaluating("sampling"), watch.watching(request.row):
            samples = self.draw(request, chosen)
            watch.tokens(samples.x, self.num_classes)
        return samples

    def draw(self, request: Request, sampler: Sampler) -> Samples:
        """What `sample` does with its checked arguments."""
        return loop.run(self, request, sampler)

    @contextmanager
    def evaluating(self, use: str = "bound") -> Iterator[None]:
        """Dropout off, no gradients; every module's own mode is put back afterwards. `use`: what for."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            with torch.no_grad(), contract.used_for(self, use):
                yield
        finally:
            for module in training:
                module.training = True

    # ------------------------------------------------------------------ the network

    def logits_at(self, zt: Tensor, t: Tensor, label: Tensor | None, sites: Tensor, **inputs: Tensor) -> Tensor:
        """Logits Float[k, V] at `sites`, the True ones of Bool[b, n] or, where all rows have as many, Int64[b, m]; all
        b n V logits are formed only where the network has no `features` and `head`. `inputs` is what a family's network
        takes besides."""
        if sites.dtype == torch.bool:
            return self.readout(zt, t, label, **inputs)(sites)
        return self.readout(zt, t, label, sites, **inputs)()

    def readout(
        self, zt: Tensor, t: Tensor, label: Tensor | None, sites: Tensor | None = None, **inputs: Tensor
    ) -> Readout:
        """One call of the network: logits at the sites that are asked for, losses without them. With sites Int64[b, m]
        it holds these only, and a network that `takes_sites` computes its last block at no others."""
        t, label = self._network_inputs(zt, t, label)
        asked, held = sites, self.num_sites
        if declared.has(self.network, "features"):
            own = declared.by(self.network)
            if sites is not None and own.takes_sites:
                inputs["sites"], held = sites, sites.shape[1]
                sites = None
            head = own.head
            values = contract.features(self, self.network.features(zt, t, label, **inputs), head, len(zt), held)
        else:
            alone = sites is not None and sites.shape[1] == 1
            values, head = contract.logits(self, self.network(zt, t, label, **inputs), len(zt), alone), None
        if sites is not None and values.shape[1] > 1:
            values = values.take_along_dim(sites[..., None], 1)
        answer = Readout(values, head, head is not None and self.fuses, asked)
        contract.look(self, answer)
        return answer

    @property
    def fuses(self) -> bool:
        return readout.takes_fused(self.network, self.fused)

    def _network_inputs(self, zt: Tensor, t: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """t in the network's precision and the label as it wants it; counts the call that follows."""
        self.network_calls += 1
        self.rows_sent += len(zt)
        dtype = next(self.network.parameters(), zt.new_zeros((), dtype=torch.float32)).dtype
        return t.to(dtype), self.network_label(label, zt.shape[0])

    def network_label(self, label: Tensor | None, b: int, drop: Tensor | None = None) -> Tensor | None:
        """The label as the network wants it: None for networks without labels, the null class where it is missing
        or where `drop` (Bool[b]) says so."""
        num_labels = declared.by(self.network).num_labels
        if num_labels is None:
            return label
        if num_labels == 0:
            return None
        null = torch.full((b,), num_labels, device=self.device)
        if label is None:
            return null
        return label if drop is None else torch.where(drop, null, label)

    def label_of(self, batch: dict[str, Tensor]) -> Tensor | None:
        """The batch's labels; None where the network takes none, so that data with labels may do without them."""
        return None if declared.by(self.network).num_labels == 0 else batch.get("label")

    # ------------------------------------------------------------------ Lightning

    def configure_model(self) -> None:
        self.compile_all(self.network)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        x, micro_batches, world = batch["x"], self.trainer.accumulate_grad_batches, self.trainer.world_size
        parts, total = self.divides(len(x))
        # by this remainder Lightning, too, tells when a step is full
        part = batch_idx % micro_batches * world + self.global_rank
        torch.manual_seed(noise.integer_seed("dropout", seed=self.seed, step=self.global_step, row=part))
        row = _numbers(batch, part, parts)
        loss = self.loss(x, self.label_of(batch), step=self.global_step, row=row, total=total)
        self.collect({self.loss_name: loss})
        return self.weighed(loss)

    def evaluated_rows(self, batch: dict[str, Tensor], split: str) -> Tensor:
        """Int64[b]: the rows' numbers in the data set, by which their noise is drawn."""
        seen = self.likelihoods[split].count.long()
        return _numbers(batch, seen * self.trainer.world_size + self.global_rank, self.trainer.world_size)

    def _evaluate(self, batch: dict[str, Tensor], split: str) -> tuple[Tensor, Tensor]:
        """(the rows' numbers, their bounds)."""
        row = self.evaluated_rows(batch, split)
        nats = self.nelbo(batch["x"], self.label_of(batch), self.eval_samples, seed=self.eval_seed, row=row)
        self.likelihoods[split].update(nats)
        return row, nats

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """The bound of each example: its index in the data set and nats."""
        row, nats = self._evaluate(batch, "predict")
        return {"row": row, "nelbo": nats}

    def on_validation_epoch_end(self) -> None:
        self._log_bound("val")

    def on_test_epoch_end(self) -> None:
        self._log_bound("test")

    def on_predict_epoch_end(self) -> None:
        self.likelihoods["predict"].reset()

    def _log_bound(self, split: str) -> None:
        metric = self.likelihoods[split]
        # the metric has already added up the ranks; sync_dist only keeps Lightning from warning about it
        self.log_dict({f"{split}/{name}": value for name, value in metric.compute().items()}, sync_dist=True)
        metric.reset()


def _numbers(batch: dict[str, Tensor], first: int | Tensor, stride: int) -> Tensor:
    """The rows' numbers Int64[b], which the data gave to them (data/order.py).

    A loader that gives none, such as a plain DataLoader, is taken to deal its rows out as data/order.py does: every
    `stride`-th to this batch, from `first` on.
    """
    if "row" in batch:
        return batch["row"]
    x = batch["x"]
    return first + stride * torch.arange(len(x), device=x.device)
