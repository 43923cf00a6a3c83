"""Where data and model meet: labels that the network has no embedding for, and tokens that it has not learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.text import Characters, Integers
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.rows import Rows, RowSource

V, N = 5, 23


class Labelled(DiscreteData):
    """Rows with labels 0..2, of which `declared` are said to exist; None for `largest`: without labels."""

    num_classes = V
    shape = (3,)
    num_labels: Any = None

    def __init__(self, declared: int | None = None, largest: int | None = 2, codec: Codec = Integers(V)) -> None:
        super().__init__(global_batch_size=4)
        self.num_labels, self.largest, self._codec = declared, largest, codec

    @property
    def codec(self) -> Codec:
        return self._codec

    def load(self, split: str) -> RowSource:
        x = np.random.default_rng(0).integers(V, size=(N, 3))
        return Rows(x, None if self.largest is None else np.arange(N) % (self.largest + 1), name=f"file.{split}")


class Conditional(pl.LightningModule):
    """A network with an embedding of `num_labels` labels; None: it does not say."""

    def __init__(self, num_labels: int | None) -> None:
        super().__init__()
        self.network = torch.nn.Linear(1, 1)
        if num_labels is not None:
            self.network.num_labels = num_labels

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        return self.network(batch["x"][:, :1].float()).sum()

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def _trainer(folder: Path) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, max_steps=2, enable_checkpointing=False, **quiet)


@pytest.mark.parametrize(
    ("data", "network"),
    [
        (Labelled(3), 3),
        (Labelled(3), 0),  # trained without labels
        (Labelled(3), None),  # any network
        (Labelled(None), 3),
        (Labelled(None), 4),
        (Labelled(None, largest=None), 0),
        (Labelled(None, largest=None), None),
    ],
)
def test_what_fits_trains(tmp_path: Path, data: Labelled, network: int | None) -> None:
    _trainer(tmp_path).fit(Conditional(network), datamodule=data)


@pytest.mark.parametrize(
    ("data", "network", "message"),
    [
        (
            Labelled(3),
            4,
            "label mismatch: the data has 3 labels, the network 4; set the network's num_labels to 3, or to 0 to train "
            "without labels",
        ),
        (
            Labelled(None),
            2,
            "file.train (train split): label 2 at position 2 is outside 0..1; fix the labels or set num_labels to more "
            "than the largest one",
        ),
        (
            Labelled(2),
            None,
            "file.train (train split): label 2 at position 2 is outside 0..1; fix the labels or set num_labels to more "
            "than the largest one",
        ),
        (
            Labelled(None, largest=None),
            3,
            "label mismatch: the training data has no labels, the network 3; give labels, or set the network's "
            "num_labels to 0",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(
    tmp_path: Path, data: Labelled, network: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        _trainer(tmp_path).fit(Conditional(network), datamodule=data)
    assert str(error.value) == message


def test_a_conditional_network_may_be_validated_without_labels(tmp_path: Path) -> None:
    """Its null class answers; a wrong number of labels is an error there too."""
    _trainer(tmp_path).validate(Conditional(3), datamodule=Labelled(None, largest=None), verbose=False)
    with pytest.raises(ValueError, match="the data has 4 labels, the network 3"):
        _trainer(tmp_path).validate(Conditional(3), datamodule=Labelled(4), verbose=False)


def test_without_a_model_there_is_nothing_to_compare(tmp_path: Path) -> None:
    data = Labelled(3)
    data.setup("fit")
    data.trainer = _trainer(tmp_path)
    data.setup("fit")


def test_a_checkpoint_refuses_the_ids_of_another_tokenizer(tmp_path: Path) -> None:
    """As many ids, which mean something else. Control: the same tokenizer goes on."""
    trainer = _trainer(tmp_path)
    trainer.fit(Conditional(None), datamodule=Labelled(codec=Characters("abcde", None)))
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path)
    again = _trainer(tmp_path)
    again.fit(Conditional(None), datamodule=Labelled(codec=Characters("abcde", None)), ckpt_path=path)
    other = Labelled(codec=Characters("edcba", None))
    hashes = [Characters(a, None).tokenizer_hash[:12] for a in ("abcde", "edcba")]
    for run in ("fit", "validate"):
        with pytest.raises(ValueError, match=r"^wrong tokenizer") as error:
            getattr(_trainer(tmp_path), run)(Conditional(None), datamodule=other, ckpt_path=path)
        assert str(error.value) == (
            f"wrong tokenizer: the checkpoint was trained with Characters of 5 ids, {hashes[0]}.., the data has "
            f"Characters of 5 ids, {hashes[1]}..; give the tokenizer of the training, or train anew"
        )
