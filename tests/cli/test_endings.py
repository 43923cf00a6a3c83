"""How a run ends, and what is left of it: a start that takes no step changes nothing, and the last lines are commands
that work."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import Callback

from ggm_lightning.cli.main import main

ROOT = Path(__file__).parents[2]
MARKOV = ROOT / "experiments" / "md4_markov.yaml"
SMALL = [
    "--model.network.init_args.feature_dim=8",
    "--model.network.init_args.num_layers=1",
    "--data.init_args.num_train=40",
    "--data.init_args.num_val=16",
    "--data.init_args.length=13",
    "--data.init_args.global_batch_size=8",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
]
MONITOR = ["--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor", "--trainer.log_every_n_steps=1"]
NO_TIME = "--trainer.max_time={seconds: 0}"  # used up at once: a run stops as soon as min_steps allow it


class Fails(Callback):
    """In the first step of every start, before it is taken."""

    def on_before_optimizer_step(self, *args: object) -> None:
        raise RuntimeError("out of luck")


def fit(runs: Path, *extra: str, name: str = "my run") -> None:
    main(["fit", "--config", str(MARKOV), *SMALL, "--runs", str(runs), "--name", name, *extra])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(capsys: pytest.CaptureFixture[str], runs: Path, *extra: str, name: str = "my run", code: int = 2) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        fit(runs, *extra, name=name)
    assert stop.value.code == code
    return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("lightning: error: ")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that its time limit has stopped, with validations after steps 2 and 4 of 5."""
    folder = tmp_path_factory.mktemp("runs")
    fit(folder, NO_TIME, "--trainer.min_steps=5", "--trainer.max_steps=9", "--trainer.val_check_interval=2")
    return folder


def test_a_used_up_time_limit_is_the_end_and_changes_nothing(
    runs: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = contents(runs)
    fit(runs, NO_TIME, "--ckpt_path=last")
    assert "this run is finished by its time limit, at step 5 (trainer.max_time is 00:00:00:00)" in caplog.text
    assert "to go on, raise trainer.max_time" in caplog.text
    assert contents(runs) == before


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        (["--ckpt_path=last", "--trainer.max_steps=5"], None),
        (["--ckpt_path=last", "--trainer.max_steps=3"], None),
        (["--ckpt_path=last", "--trainer.max_epochs=1"], 2),
        (["--ckpt_path=last", "--trainer.limit_val_batches=soon"], 2),
        ([f"--trainer.callbacks+={__name__}.Fails", "--ckpt_path=last"], 1),
        ([f"--trainer.callbacks+={__name__}.Fails", "--ckpt_path=best", *MONITOR], 1),
        ([], 2),
    ],
    ids=["no steps left", "fewer steps", "no epochs left", "refused", "fails", "fails, with a monitor", "no ckpt_path"],
)
def test_a_start_that_takes_no_step_replaces_nothing(runs: Path, extra: list[str], code: int | None) -> None:
    """A configuration that has changed may stand beside the first, and what has failed is written down."""
    before = contents(runs)
    if code is None:
        fit(runs, *extra)
    else:
        with pytest.raises(SystemExit) as stop:
            fit(runs, *extra)
        assert stop.value.code == code
    after = contents(runs)
    assert {name: after[name] for name in before} == before
    new = {name.removeprefix("my run/").partition("-")[0] for name in after.keys() - before.keys()}
    assert new <= {"config", "error"}
