"""What is logged of a training step is the mean over its micro-batches and over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.connectors.logger_connector import result
from torch import Tensor, nn

from ggm_lightning.callbacks.progress import Progress
from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.text import Integers
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.rows import Rows, RowSource
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.models.trained import Optimizer, StepMeans, Trained
from ggm_lightning.networks.latent_encoder import LatentEncoder
from tests.models import small_lddm
from tests.models.test_fused_training import FAMILIES, family
from tests.vqgan.test_training import made

GLOBAL, MICRO, STEPS = 12, 3, 3
CLOSE = 1e-5


class Data(DiscreteData):
    """Random rows."""

    num_classes: Any = None
    shape: Any = None
    ordered = True

    def __init__(self, num_classes: int, shape: tuple[int, ...], micro: int | None) -> None:
        super().__init__(global_batch_size=GLOBAL, max_batch_per_device=micro)
        self.num_classes, self.shape = num_classes, shape

    @property
    def codec(self) -> Codec:
        return Integers(self.num_classes)

    def load(self, split: str) -> RowSource:
        return Rows(np.random.default_rng(0).integers(self.num_classes, size=(29, *self.shape)))


class Memory(Logger):
    """Keeps what is logged."""

    name = version = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def fit(model: Trained, data: Any = None, *callbacks: Callback, **options: Any) -> list[dict[str, float]]:
    memory = Memory()
    quiet = {"enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    quiet |= {"max_steps": STEPS, "log_every_n_steps": 1, "accelerator": "cpu", "limit_val_batches": 0}
    own = {"datamodule": data} if isinstance(data, DiscreteData) else {"train_dataloaders": data}
    trainer = pl.Trainer(logger=memory, callbacks=list(callbacks), use_distributed_sampler=False, **(quiet | options))
    trainer.fit(model, **own)
    return memory.rows


def watched(model: Trained) -> list[float]:
    """The loss of each micro-batch to come."""
    found: list[float] = []
    original: Callable[..., Any] = model.loss  # type: ignore[assignment]

    def loss(*args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        found.append(float((value[0] if isinstance(value, tuple) else value).detach()))
        return value

    model.loss = loss  # type: ignore[method-assign]
    return found


def of(name: str) -> Trained:
    """LDDM in its first stage for a step, then in its second; its latent is not normalised by micro-batches, which
    would make another objective of them."""
    if name not in ("fuji", "seq"):
        return family(name)
    encoder = LatentEncoder(small_lddm.V, **small_lddm.SIZE, normalise="sphere")
    recipe = Recipe(stage1_steps=1, token_loss="elbo" if name == "fuji" else "plain")
    model: Any = small_lddm.small(FujiLDDM if name == "fuji" else SeqLDDM, recipe=recipe)
    encoder.load_state_dict(model.encoder.state_dict(), strict=False)
    model.encoder = encoder
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_four_micro_batches_log_what_one_logs(name: str) -> None:
    logged = {}
    for micro in (None, MICRO):
        model = of(name)
        model.optimizer = Optimizer(lr=1e-5)
        losses = watched(model)
        rows = fit(model, Data(model.num_classes, model.shape, micro))
        logged[micro] = rows
        own = [row[model.loss_name] for row in rows]
        parts = [losses[i : i + len(losses) // STEPS] for i in range(0, len(losses), len(losses) // STEPS)]
        assert len(parts[0]) == (1 if micro is None else GLOBAL // MICRO)
        if micro is None:
            assert own == losses  # to the bit
        else:
            assert own == pytest.approx([sum(part) / len(part) for part in parts], rel=CLOSE)
            # control: the last one's is another number
            assert all(abs(part[-1] / mean - 1) > 10 * CLOSE for part, mean in zip(parts, own, strict=True))
    names = {entry for entry in logged[None][-1] if entry.startswith("train/")}
    assert len(names) == (3 if name in ("fuji", "seq") else 1)
    for one, four in zip(logged[None], logged[MICRO], strict=True):
        for entry in names & set(one):
            assert four[entry] == pytest.approx(one[entry], rel=CLOSE), entry


@pytest.mark.filterwarnings("ignore")
def test_the_vqgan() -> None:
    pictures = [{"x": x} for x in torch.from_numpy(np.random.default_rng(0).integers(17, size=(36, 1, 8, 8)))]
    logged = {}
    for accumulate in (1, 4):
        model = made(first_codes=False, optimizer=Optimizer(lr=1e-5))
        loader = torch.utils.data.DataLoader(pictures, batch_size=GLOBAL // accumulate)
        logged[accumulate] = fit(model, loader, accumulate_grad_batches=accumulate)
    for one, four in zip(logged[1], logged[4], strict=True):
        for name in ("train/objective", "train/mse", "train/quantisation"):
            assert four[name] == pytest.approx(one[name], rel=CLOSE), name
        assert four["train/code_perplexity"] <= one["train/code_perplexity"]  # of fewer pictures at a time


class Numbers(Trained):
    """Its loss is the number in the batch, times one."""

    optimizer = Optimizer(lr=0.0)

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = (self.one * batch["x"]).mean()
        self.collect({self.loss_name: loss, "train/half": loss.double() / 2})
        return loss


def numbers(count: int) -> Any:
    return torch.utils.data.DataLoader([{"x": x} for x in torch.arange(count, dtype=torch.float32)], batch_size=1)


@pytest.fixture
def reductions(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """What is given to the strategy to be added up over two ranks, of which the other one has 10 more everywhere."""
    found: list[list[float]] = []

    def reduce(self: Any, tensor: Tensor, *args: Any, reduce_op: str = "mean", **kwargs: Any) -> Tensor:
        if reduce_op != "mean":
            return tensor  # Lightning asks whether all ranks want to stop
        found.append(tensor.tolist())
        return tensor + 5

    monkeypatch.setattr("lightning.pytorch.strategies.SingleDeviceStrategy.reduce", reduce)
    monkeypatch.setattr("lightning.pytorch.Trainer.world_size", 2)
    return found


@pytest.mark.filterwarnings("ignore")
def test_ranks_are_asked_only_where_a_row_is_logged(reductions: list[list[float]]) -> None:
    rows = fit(Numbers(), numbers(14), max_steps=7, log_every_n_steps=3, accumulate_grad_batches=2)
    # steps 3 and 6 have the numbers 4, 5 and 10, 11
    assert reductions == [[4.5, 2.25], [10.5, 5.25]]
    assert [(row["train/bpd"], row["train/half"]) for row in rows] == [(9.5, 7.25), (15.5, 10.25)]


class Stop(Callback):
    """As Lightning's Timer does for trainer.max_time: the row of the step is logged because the run ends."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step == 2


@pytest.mark.filterwarnings("ignore")
def test_a_row_that_is_logged_since_the_run_ends(reductions: list[list[float]]) -> None:
    rows = fit(Numbers(), numbers(14), Stop(), max_steps=7, log_every_n_steps=100, accumulate_grad_batches=2)
    assert reductions == [[2.5, 1.25]]
    assert [row["train/bpd"] for row in rows] == [7.5]


@pytest.mark.filterwarnings("ignore")
def test_no_step_waits_for_the_device() -> None:
    """Lightning turns what is logged with prog_bar=True into a number after each micro-batch."""
    counts = {}
    for bar in (None, Progress(), TQDMProgressBar()):
        fetched = []
        original = result.convert_tensors_to_scalars
        patched = pytest.MonkeyPatch()
        patched.setattr(result, "convert_tensors_to_scalars", lambda value: fetched.append(1) or original(value))  # noqa: B023
        callbacks = [] if bar is None else [bar]
        fit(Numbers(), numbers(14), *callbacks, max_steps=7, log_every_n_steps=3, enable_progress_bar=bar is not None)
        patched.undo()
        counts[type(bar).__name__] = len(fetched)
    assert counts["NoneType"] == counts["Progress"] == 0
    assert counts["TQDMProgressBar"] > 0  # control, and Lightning's own bars still show the loss


@pytest.mark.filterwarnings("ignore")
def test_the_bar_shows_the_steps_mean(capsys: pytest.CaptureFixture[str]) -> None:
    options = {"max_steps": 2, "accumulate_grad_batches": 4, "enable_progress_bar": True, "log_every_n_steps": 50}
    fit(Numbers(), numbers(8), Progress(plain_seconds=1e9), **options)
    assert "step 2/2 (100%)  bits/token 5.5 " in capsys.readouterr().err


def test_the_collection_itself() -> None:
    means = StepMeans()
    assert means.means() == {}
    value = torch.tensor(math.pi, requires_grad=True)
    means.add(4, {"a": value})
    assert means.means()["a"].equal(value.detach())
    assert not means.means()["a"].requires_grad
    means.add(4, {"a": torch.tensor(0.0), "b": torch.tensor(7.0)})
    assert {name: float(mean) for name, mean in means.means().items()} == {"a": pytest.approx(math.pi / 2), "b": 7.0}
    means.add(5, {"b": torch.tensor(1.0)})  # a step that was given up is forgotten
    assert {name: float(mean) for name, mean in means.means().items()} == {"b": 1.0}
