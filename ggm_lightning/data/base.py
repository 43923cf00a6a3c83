"""What every source of discrete data gives: batches of integers, their number of classes and shape, and a decoder.

A data set is one file with one class below `DiscreteData`. It states `num_classes` and `shape` (from its constructor
arguments and header files alone), prepares its files once, and hands out rows by number; this class does the rest:
which rows make up a batch, on which rank, and the checks that end in one line instead of a device-side assert.
"""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Integer
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.core.known_law import KnownLaw
from ggm_lightning.data.arguments import checked_by_annotations
from ggm_lightning.data.fingerprints import rows_fingerprint
from ggm_lightning.data.latents import CachedLatents
from ggm_lightning.data.order import EvalOrder, TrainOrder, divide_batch
from ggm_lightning.data.rows import Numbered, RowSource, check_ids, check_labels
from ggm_lightning.data.steps import Counts, Epoch, convert_evaluation, convert_training, evaluated_rows
from ggm_lightning.networks.labels import labels_of_model
from ggm_lightning.rundir.codecs import check_loads_again

_STAGES: dict[str | None, tuple[str, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("val",),
    None: ("train", "val", "test"),
}
_LIMITS = {"fit": "limit_val_batches", "validate": "limit_val_batches", "test": "limit_test_batches"}
_LIMITS["predict"] = "limit_predict_batches"


@runtime_checkable
class NeedsOrder(Protocol):
    """A model that says whether its process moves between neighbouring classes, so that they have to be amounts."""

    needs_order: bool


@runtime_checkable
class Benchmark(Protocol):
    """Data that exist to be measured on: they have one part, and take what they leave open from the model."""

    part: str

    def complete(self, codec: Codec | None, shape: tuple[int, ...]) -> None:
        """Takes the codec and shape of the model that is measured, where the configuration names none."""


def _outlive_the_first_signal(worker: int) -> None:
    """In a loader process. Terminals and schedulers send their signals to every process of a job; a worker that dies of
    them takes the run with it before the step is saved (callbacks/stop.py). It ends when the run tells it to, on a
    second SIGTERM, or half a minute after the first, should nobody tell it."""

    def wait(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(30)

    signal.signal(signal.SIGTERM, wait)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class DiscreteData(LightningDataModule, ABC):
    """Batches {"x": Int64[b, *s], "row": Int64[b], optional "label": Int64[b]} with x in 0..num_classes-1.

    `row` numbers the rows, by which a model draws their noise: 0..global_batch_size-1 within an optimiser step, and in
    evaluation the indices in the split (data/order.py). A data set need not know of it: it is added here.

    Args:
        global_batch_size: rows per optimiser step, over all devices and accumulated micro-batches.
        max_batch_per_device: the largest micro-batch that fits on a device; the number of accumulated micro-batches is
            the smallest that respects it. None: no accumulation.
        eval_batch_size: rows per evaluation batch and device; the unit of trainer.limit_val_batches, which counts those
            of all devices together: the same rows on any number of them.
        num_workers: loader processes per device.
        seed: of the training order (data/order.py).
        latents: folder with train.npy and val.npy as data/latents.py writes them; batches then hold `latent`, too.
    """

    splits: tuple[str, ...] = ("train", "val")
    embedded = False  # whether all that `prepare_data` needs comes with the packages, in seconds

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Whoever calls a data set's constructor from Python, a user's own included, is told of a wrong type."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = checked_by_annotations(cls.__init__)  # type: ignore[method-assign]

    @checked_by_annotations
    def __init__(
        self,
        global_batch_size: int = 64,
        max_batch_per_device: int | None = None,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        latents: str | None = None,
    ) -> None:
        super().__init__()
        self.latents = latents
        self.global_batch_size, self.max_batch_per_device = global_batch_size, max_batch_per_device
        self.eval_batch_size, self.num_workers, self.seed = eval_batch_size, num_workers, seed
        # With fewer rows than devices a rank has nothing to evaluate; its sums are then zeros, which is right.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self._rows: dict[str, RowSource] = {}
        self._counts: Counts | None = None
        self._epoch: Epoch | None = None
        self._contents: str | None = None
        for key, value, least in (
            ("global_batch_size", global_batch_size, 1),
            ("max_batch_per_device", max_batch_per_device, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"data.{key} is {value}; it must be a whole number of at least {least}")

    @property
    def num_classes(self) -> int:
        """V: x lies in 0..V-1."""
        return self.codec.num_classes

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """*s, the shape of one example."""

    @property
    def num_labels(self) -> int | None:
        """Labels lie in 0..num_labels-1. None: there are none, or the data does not know how many there are."""
        return None

    @property
    @abstractmethod
    def codec(self) -> Codec:
        """Turns ids into something to look at (codecs/codec.py)."""

    @property
    def ordered(self) -> bool:
        """Whether classes are amounts, so that 3 lies between 2 and 4; tokens and codes are names."""
        return self.codec.ordered

    def law(self) -> KnownLaw | None:
        """Of a row, where it is known exactly; else None."""
        return None

    @abstractmethod
    def load(self, split: str) -> RowSource:
        """The rows of "train" or "val", or "test" where `splits` names it. Called after `prepare_data`."""

    def unprepared(self) -> str | None:
        """Why `prepare_data` would write or fetch something, None where all that is needed is there. Writes nothing."""
        return None

    def verify(self) -> str:
        """Read all that `prepare_data` wrote and compare it with its checksums; says what was compared.

        Raises:
            ValueError: naming the first file that is not as it was written.
        """
        return f"{type(self).__name__} keeps no files of its own: there is nothing to verify"

    @property
    def characters_per_token(self) -> float | None:
        """Of the validation split, where the data is text: bits/character = bits/token divided by this. None: it is no
        text, or the text cannot be had back from its tokens, and figures per character have no meaning."""
        return None

    def losses(self) -> str:
        """What is lost between the text and its tokens, for people; empty where nothing is."""
        return ""

    def references(self) -> dict[str, float]:
        """Named levels for the learning curve, in bits per dimension."""
        return {}

    judgement = "Samples beside references"  # the heading above what `judge` says

    def judge(self, texts: list[str]) -> dict[str, float]:
        """Named figures about sampled texts that need the data to compare with."""
        return {}

    def decode(self, x: Integer[Tensor, " b *s"] | Integer[np.ndarray, " b *s"]) -> list[str] | np.ndarray:
        """Texts, or uint8 images."""
        return self.codec.decode(x)

    def rows(self, split: str) -> RowSource:
        """The checked rows of a split, loaded once; "test" is "val" where there is no test split, and says so."""
        if split == "test" and "test" not in self.splits:
            rank_zero_info(f"{type(self).__name__} has no test split: test runs on the validation split")
            return self.rows("val")
        if split not in self._rows:
            rows = self.load(split)
            if len(rows) == 0:
                raise ValueError(f"{type(self).__name__}: the {split} split has no rows; give it data or another split")
            check_ids(rows, self.num_classes, split)
            if self.num_labels is not None:
                check_labels(rows, self.num_labels, split)
            self._rows[split] = self._with_latents(rows, split)
        return self._rows[split]

    def _with_latents(self, rows: RowSource, split: str) -> RowSource:
        return rows if self.latents is None else CachedLatents(rows, Path(self.latents).expanduser() / f"{split}.npy")

    def setup(self, stage: str | None = None) -> None:
        """Load and check the splits of this stage; for "fit", tell the trainer how many micro-batches make a step."""
        model = self._model
        if model is not None:
            self.check_model(model)
        for split in _STAGES[stage]:
            rows = self.rows(split)
            if model is not None:
                rows.check_model(model)
        if model is not None:
            self._check_labels(model, stage)
        if stage == "fit":
            check_loads_again(self.codec, self.shape)
        if self.trainer is not None and stage is not None:
            self._convert_counts(self.trainer, stage)

    def _convert_counts(self, trainer: Trainer, stage: str) -> None:
        """From now on the trainer counts micro-batches where its user wrote optimiser steps (data/steps.py)."""
        self._give_counts_back()  # a fit before may have ended in an error, without a teardown
        counts = Counts(trainer)
        if stage == "fit":
            accumulation, _ = self._division()
            given = trainer.accumulate_grad_batches
            if given not in (1, accumulation):
                raise ValueError(
                    f"trainer.accumulate_grad_batches is {given}, but data.global_batch_size={self.global_batch_size} "
                    f"and data.max_batch_per_device={self.max_batch_per_device} make it {accumulation}; leave the "
                    "former out"
                )
            steps = -(-len(self.rows("train")) // self.global_batch_size)
            self._epoch = convert_training(trainer, accumulation, steps)
        split = _STAGES[stage][-1]
        convert_evaluation(trainer, _LIMITS[stage], len(self.rows(split)), self.eval_batch_size)
        self._counts = counts

    def _give_counts_back(self) -> None:
        if self._counts is not None:
            self._counts.give_back()
        self._counts = None

    def teardown(self, stage: str | None = None) -> None:
        self._give_counts_back()

    @property
    def _model(self) -> LightningModule | None:
        return None if self.trainer is None else self.trainer.lightning_module

    def check_model(self, model: LightningModule) -> None:
        """ValueError if the model takes for amounts what are names here; two classes are in order either way."""
        if isinstance(model, NeedsOrder) and model.needs_order and self.num_classes > 2 and not self.ordered:
            raise ValueError(
                f"{type(model).__name__} on {type(self).__name__}: its process moves between neighbouring classes, but "
                f"these {self.num_classes} are names without an order; take another family (MD4, GGM, ..), or data of "
                f"amounts: pixels, or ArrayData with ordered: true"
            )

    def _check_labels(self, model: LightningModule, stage: str | None) -> None:
        """Labels that the network has no embedding for are an error here, and on a GPU a device-side assert."""
        known = labels_of_model(model)
        if not known:  # it takes none and is given none, or does not say what it takes
            return
        if self.num_labels not in (None, known):
            raise ValueError(
                f"label mismatch: the data has {self.num_labels} labels, the network {known}; set the network's "
                f"num_labels to {self.num_labels}, or to 0 to train without labels"
            )
        for split in _STAGES[stage]:
            check_labels(self.rows(split), known, split)
        if stage == "fit" and "label" not in self.rows("train")[[0]]:
            raise ValueError(
                f"label mismatch: the training data has no labels, the network {known}; give labels, or set the "
                f"network's num_labels to 0"
            )

    def contents(self) -> str | None:
        """A fingerprint of what one trains on, to notice other contents under the same names. None: there is none."""
        if self._contents is None:
            self._contents = rows_fingerprint(self.rows("train"))
        return self._contents

    def _tokens(self) -> dict[str, Any]:
        codec = self.codec
        name = f"{type(codec).__name__} of {codec.num_classes} ids"
        return {"codec": name, "tokenizer_hash": codec.tokenizer_hash}

    def state_dict(self) -> dict[str, Any]:
        """Which tokenizer the model learnt, and on what: Lightning keeps it in the checkpoint."""
        return {**self._tokens(), "contents": self.contents()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """ValueError if the checkpoint's model learnt other tokens: equal ids would mean something else. A training
        that goes on with other contents says so."""
        own = self._tokens()
        if own["tokenizer_hash"] != state_dict["tokenizer_hash"]:
            learnt, found = (f"{s['codec']}, {s['tokenizer_hash'][:12]}.." for s in (state_dict, own))
            raise ValueError(
                f"wrong tokenizer: the checkpoint was trained with {learnt}, the data has {found}; give the tokenizer "
                f"of the training, or train anew"
            )
        before = state_dict.get("contents")  # checkpoints of before have none
        if before is not None and self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            now = self.contents()
            if now != before:
                rank_zero_info(
                    f"the contents of the training data are not those of the checkpoint (fingerprint "
                    f"{str(now)[:12]}, there {before[:12]}): it goes on with these"
                )

    def train_dataloader(self) -> DataLoader:
        rows, (world, rank) = self.rows("train"), self._place()
        accumulation, _ = self._division()
        order = TrainOrder(
            len(rows),
            self.global_batch_size,
            world=world,
            rank=rank,
            accumulation=accumulation,
            seed=self.seed,
            first_step=self._global_step,
            epoch_steps=None if self._epoch is None else self._epoch.steps,
            repeats=self._epoch is not None and self._epoch.repeats,
        )
        return self._loader(rows, order)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val", "limit_val_batches")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test", "limit_test_batches")

    def predict_dataloader(self) -> DataLoader:
        return self._eval_loader("val", "limit_predict_batches")

    def _eval_loader(self, split: str, limit: str) -> DataLoader:
        rows, (world, rank) = self.rows(split), self._place()
        count = evaluated_rows(self.trainer, limit, len(rows), self.eval_batch_size)
        return self._loader(rows, EvalOrder(count, self.eval_batch_size, world=world, rank=rank))

    def _loader(self, rows: RowSource, order: Sampler[Any]) -> DataLoader:
        # batch_size=None turns the loader's own batching off: the order yields lists, the rows answer with a batch.
        return DataLoader(
            Numbered(rows),
            sampler=order,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_outlive_the_first_signal,
            pin_memory=torch.cuda.is_available(),
        )

    def _division(self) -> tuple[int, int]:
        return divide_batch(self.global_batch_size, self._place()[0], self.max_batch_per_device)

    def _global_step(self) -> int:
        if self.trainer is None:
            return 0
        # with trainer.max_epochs the optimiser's schedule asks for the loader before the trainer has taken its step
        # over from the checkpoint (Lightning 2.6.6)
        loading = self.trainer._checkpoint_connector._loaded_checkpoint
        return loading.get("global_step", self.trainer.global_step)

    def _place(self) -> tuple[int, int]:
        """(number of ranks, this rank)."""
        if self.trainer is None:
            return 1, 0
        world = self.trainer.world_size
        if world > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise ValueError(
                "trainer.use_distributed_sampler is true, which would shard the already rank-aware order a second "
                "time; set trainer.use_distributed_sampler: false"
            )
        return world, self.trainer.global_rank
