"""The page of a run that goes on: told as soon as it has taken a step, and untouched as long as it has not."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer

from ggm_lightning.report.callback import Report
from ggm_lightning.report.story import read_story
from ggm_lightning.rundir.csv_log import CSVLog
from tests.callbacks.tiny import TinyData


class Fails(Callback):
    """Raises in one hook, at its first call from `step` on; `saves` the run there before."""

    def __init__(self, hook, words, step=0, saves=None):
        self.words, self.step, self.saves = words, step, saves
        setattr(self, hook, self.fail)

    def fail(self, trainer, *args):
        if trainer.global_step < self.step:
            return
        if self.saves is not None:
            trainer.save_checkpoint(self.saves)
        raise RuntimeError(self.words)


class NoTime(Timer):
    """A time limit that is used up."""

    def __init__(self):
        super().__init__({"seconds": 0})


@pytest.fixture
def go_on(tiny, fit, tmp_path):
    """go_on(*callbacks, **trainer arguments): with a run that an error has ended after step 3, its first validation."""
    path = tmp_path / "last.ckpt"
    options = {"max_epochs": -1, "max_steps": 9, "val_check_interval": 3, "check_val_every_n_epoch": None}

    def train(*callbacks, **more):
        report, log = Report(num_samples=3, num_steps=2, at_validations=2), CSVLog(str(tmp_path))
        fit(tiny(), report, *callbacks, data=TinyData(7), logger=log, **options | more)

    with pytest.raises(RuntimeError, match="the first life"):
        train(Fails("on_train_batch_start", "the first life", 3, path))
    return lambda *callbacks, **more: train(*callbacks, ckpt_path=path, **more)


def told(tmp_path):
    return [(tmp_path / name).read_bytes() for name in ("report.html", "story.json")]


BEFORE_A_STEP = ("on_load_checkpoint", "on_fit_start", "on_train_start", "on_train_batch_start", "on_before_zero_grad")


@pytest.mark.parametrize(
    ("callback", "options"),
    [
        (None, {"max_steps": 3}),
        (NoTime(), {}),
        *((Fails(hook, "before the first step"), {}) for hook in BEFORE_A_STEP),
    ],
    ids=["no steps left", "no time left", *BEFORE_A_STEP],
)
def test_a_resume_that_takes_no_step_changes_nothing(go_on, tmp_path, callback, options):
    """Whatever the reason: the page and what it is made of stay those of the steps that were taken."""
    before = told(tmp_path)
    with pytest.raises(RuntimeError, match="before the first") if isinstance(callback, Fails) else nullcontext():
        go_on(*([callback] if callback else []), **options)
    assert told(tmp_path) == before
    story = read_story(tmp_path)
    assert (story.state, story.step, len(story.starts), len(story.samples)) == ("failed", 3, 1, 2)


def test_a_resume_that_takes_a_step_is_told(go_on, tmp_path):
    """Control of the test above. The start before is still named, and what it has drawn is still shown."""
    samples = read_story(tmp_path).samples
    with pytest.raises(RuntimeError, match="the second life"):
        go_on(Fails("on_train_batch_end", "the second life"))
    story = read_story(tmp_path)
    assert (story.said, story.step, len(story.starts)) == ("RuntimeError: the second life", 4, 2)
    assert story.starts[1]["From step"] == "3"
    assert (story.samples, story.sampled_at) == (samples, 3)
