"""Samples during training: from the averaged weights, into files and loggers, without a trace in the run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from ggm_lightning.callbacks import samples
from ggm_lightning.callbacks.ema import EMA
from ggm_lightning.callbacks.samples import Samples


def test_files_at_every_nth_validation(tiny, fit, tmp_path):
    fit(tiny(), Samples(every_n_validations=2, num_samples=3), max_epochs=5)
    files = sorted((tmp_path / "samples").iterdir())
    assert [f.name for f in files] == ["step-000002.txt", "step-000004.txt"]
    assert files[0].read_text().count("----- sample ") == 3
    assert files[0].read_text() == files[1].read_text()  # the seed is the same


@pytest.mark.parametrize("order", [1, -1])
def test_averaged_weights_are_in_place(tiny, fit, order):
    model = tiny()
    fit(model, *[EMA(0.9), Samples()][::order], max_epochs=5)
    assert torch.equal(model.seen["sample"], model.head.weight)


def test_training_is_the_same_bit_for_bit(tiny, fit):
    class Noisy(tiny):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (1 + 0.1 * torch.rand(()))

    def trained(*callbacks):
        model = Noisy()
        fit(model, *callbacks, max_epochs=4)
        return model.head.weight

    class Disturbing(Samples):
        def _draw(self, trainer, pl_module):
            pl_module.sample(self.num_samples, self.num_steps)

    assert torch.equal(trained(Samples()), trained())
    assert (trained(Disturbing()) - trained()).abs().max() > 1e-3  # control: the model does draw


def test_images_become_a_grid(tiny, tiny_data, fit, tmp_path):
    class Images(tiny_data):
        def decode(self, x):
            return np.arange(len(x), dtype=np.uint8)[:, None, None] * np.ones((1, 3, 5), np.uint8)

    fit(tiny(), Samples(num_samples=2), data=Images(), max_epochs=1)
    picture = np.asarray(Image.open(tmp_path / "samples" / "step-000001.png"))
    assert picture.shape == (3 * 85, 11 * 85, 3)


def test_tensorboard(tiny, tiny_data, fit, tmp_path):
    class Images(tiny_data):
        def decode(self, x):
            return np.zeros((len(x), 3, 5, 3), np.uint8)

    fit(tiny(), Samples(), logger=TensorBoardLogger(tmp_path, name="text"), max_epochs=1)
    fit(tiny(), Samples(), data=Images(), logger=TensorBoardLogger(tmp_path, name="image"), max_epochs=1)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = {}
    for name in ("text", "image"):
        events = EventAccumulator(str(tmp_path / name / "version_0"))
        events.Reload()
        tags[name] = events.Tags()
    assert "samples/text_summary" in tags["text"]["tensors"]
    assert tags["image"]["images"] == ["samples"]


def test_wandb(monkeypatch):
    calls = {}
    logger = WandbLogger.__new__(WandbLogger)
    monkeypatch.setattr(WandbLogger, "log_text", lambda self, key, columns, data: calls.update(text=data))
    monkeypatch.setattr(WandbLogger, "log_image", lambda self, key, images: calls.update(image=images[0].shape))
    samples._log(logger, ["ab", "c"], 3)
    samples._log(logger, np.zeros((4, 3, 5), np.uint8), 3)
    assert calls == {"text": [[0, "ab"], [1, "c"]], "image": (7, 11, 3)}


def test_folder_that_cannot_be_written(tiny, fit, tmp_path):
    (tmp_path / "samples").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="training goes on"):
        fit(tiny(), Samples(), max_epochs=1)


def test_arguments():
    with pytest.raises(ValueError, match="num_samples is 0"):
        Samples(num_samples=0)
