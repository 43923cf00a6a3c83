"""TensorBoard after a stopped and resumed run: the curves of the run that was never stopped, each step once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from tensorboard.summary.writer import event_file_writer

from ggm_lightning.cli.main import main
from ggm_lightning.models.base import Family
from ggm_lightning.rundir.csv_log import read_metrics
from tests.faults.runs import MARKOV, TINY, Run

STEPS = 17  # an epoch has 7: 50 rows in batches of 8
OPTIONS = [
    *TINY,
    "--trainer.log_every_n_steps=3",
    "--trainer.val_check_interval=2",
    "--trainer.gradient_clip_val=1",
    "--trainer.callbacks+=ggm_lightning.callbacks.samples.Samples",
    "--trainer.callbacks.num_steps=3",
    f"--trainer.max_steps={STEPS}",
    "--logger=[csv,tensorboard]",
    "--ckpt_path=last",
    "--allow_fresh=true",
]
Curves = dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module", autouse=True)
def names_in_order() -> Iterator[None]:
    """TensorBoard reads files in the order of their names, and a name ends in <second>.<host>.<pid>.<count>.

    Runs of one process within one second would be read in the order 10, 9. Runs of users are processes of their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(1000))
        yield


class Killed(BaseException):
    """Ends a run as a kill does: nothing of the package is asked any more."""


def run(folder: Path, name: str, save: int, *kills: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fit that ends at the start of each of these steps and is resumed from its last checkpoint."""
    original = Family.training_step
    for kill in (*kills, None):

        def training_step(self: Family, batch: dict, batch_idx: int, kill: int | None = kill) -> object:
            if self.global_step == kill:
                raise Killed
            return original(self, batch, batch_idx)

        monkeypatch.setattr(Family, "training_step", training_step)
        arguments = ["--runs", str(folder), "--name", name, f"--checkpoint_every_n_steps={save}"]
        try:
            main(["fit", "--config", str(MARKOV), *OPTIONS, *arguments])
        except Killed:
            continue
    monkeypatch.setattr(Family, "training_step", original)
    return folder / name


def events_of(folder: Path, purge: bool = True) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}, purge_orphaned_data=purge)
    return events.Reload()


def curves(events: EventAccumulator) -> Curves:
    """Without the speed, which no two runs share."""
    names = [name for name in events.Tags()[SCALARS] if not name.endswith("_per_s")]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def sampled(folder: Path) -> list[tuple[int, bytes]]:
    """Texts are hidden by the reader of TensorBoard's own pages only, not by the one for scripts."""
    texts = plugin_event_accumulator.EventAccumulator(str(folder)).Reload().Tensors("samples/text_summary")
    return [(event.step, event.tensor_proto.string_val[0]) for event in texts]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return run(tmp_path_factory.mktemp("whole"), "whole", 100, monkeypatch=patch)


# saved before the validation of the same step, at the end of an epoch (7), and never
def slow(save: int, kills: tuple[int, ...]) -> Any:
    return pytest.param(save, kills, marks=pytest.mark.slow)


@pytest.mark.parametrize(("save", "kills"), [(4, (6, 11)), slow(7, (12, 12)), slow(100, (5,))])
def test_the_curves_of_the_undisturbed_run(
    save: int, kills: tuple[int, ...], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = run(tmp_path, "stopped", save, *kills, monkeypatch=monkeypatch)
    expected, found = events_of(whole / "tensorboard"), events_of(stopped / "tensorboard")
    assert curves(found) == curves(expected)
    assert sampled(stopped / "tensorboard") == sampled(whole / "tensorboard")
    for name, curve in curves(found).items():
        steps = [step for step, _ in curve]
        assert steps == sorted(set(steps)), name
    assert [step for step, _ in curves(found)["train/bpd"]] == [3, 6, 9, 12, 15]
    assert [step for step, _ in curves(found)["val/bpd"]] == list(range(2, STEPS, 2))
    # control: without the marks, what was logged after the checkpoint stands there twice
    steps = [step for step, _ in curves(events_of(stopped / "tensorboard", purge=False))["val/bpd"]]
    assert len(steps) > len(set(steps))
    # and metrics.csv has each value once, not only the last of several
    rows = (stopped / "metrics.csv").read_text().splitlines()
    assert len(rows) == len((whole / "metrics.csv").read_text().splitlines())
    theirs, ours = read_metrics(whole / "metrics.csv"), read_metrics(stopped / "metrics.csv")
    for name in ("train/bpd", "train/grad_norm", "val/bpd", "val/nelbo_stderr"):
        assert ours[name] == theirs[name]


@pytest.mark.slow
def test_sigkill(whole: Path, tmp_path: Path) -> None:
    import signal

    arguments = [*OPTIONS, f"--runs={tmp_path}", "--name=killed", "--checkpoint_every_n_steps=4"]
    for marks in (25, 20):
        stopped = Run(arguments, tmp_path / "log").start()
        assert stopped.follow(marks)
        stopped.signal(signal.SIGKILL)
        stopped.end()
    assert Run(arguments, tmp_path / "log").start().end() == [0]
    found = curves(events_of(tmp_path / "killed" / "tensorboard"))
    assert found == curves(events_of(whole / "tensorboard"))


def test_an_evaluation_leaves_the_curves_alone(whole: Path) -> None:
    before = {file.name: file.read_bytes() for file in (whole / "tensorboard").iterdir()}
    options = [option for option in OPTIONS if not option.startswith("--allow_fresh")]
    main(["validate", "--config", str(MARKOV), *options, "--runs", str(whole.parent), "--name", whole.name])
    assert {file.name: file.read_bytes() for file in (whole / "tensorboard").iterdir()} == before
    measured = curves(events_of(whole / "tensorboard_evaluation"))
    assert [value for _, value in measured["val/bpd"]]
