"""How a run ends, and what is left of it: a start that takes no step changes nothing, and the last lines are commands
that work."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer

from ggm_lightning.cli.early import EarlySignals
from ggm_lightning.cli.last_words import later_end
from ggm_lightning.cli.main import main
from ggm_lightning.rundir import endings

ROOT = Path(__file__).parents[2]
MARKOV = ROOT / "experiments" / "md4_markov.yaml"
REPORT = "{class_path: ggm_lightning.report.callback.Report, init_args: {num_samples: 2, num_steps: 2}}"
SMALL = [
    "--model.network.init_args.feature_dim=8",
    "--model.network.init_args.num_layers=1",
    "--data.init_args.num_train=40",
    "--data.init_args.num_val=16",
    "--data.init_args.length=13",
    "--data.init_args.global_batch_size=8",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
    f"--trainer.callbacks+={REPORT}",
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


def command(said: str, lead: str) -> list[str]:
    """What is printed behind `lead`, as a shell divides it."""
    (line,) = re.findall(rf"{lead}(.*?)(?:, or go on: .*)?\n", said)
    program, *words = shlex.split(line)
    assert program == "lightning"
    return words


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
        pytest.param(["--ckpt_path=last", "--trainer.max_epochs=1"], 2, marks=pytest.mark.slow),
        (["--ckpt_path=last", "--trainer.limit_val_batches=soon"], 2),
        pytest.param([f"--trainer.callbacks+={__name__}.Fails", "--ckpt_path=last"], 1, marks=pytest.mark.slow),
        ([f"--trainer.callbacks+={__name__}.Fails", "--ckpt_path=best", *MONITOR], 1),
        ([], 2),
    ],
    ids=["no steps left", "no epochs left", "refused", "fails", "fails, with a monitor", "no ckpt_path"],
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


@pytest.mark.parametrize(
    "extra",
    [
        ["--trainer.accelerator=tpu"],
        ["--trainer.accelerator=gpus"],
        ["--init_from=RUNS/my run/last.ckpt", "--model.network.init_args.feature_dim=12", "--data.num_symbols=7"],
        pytest.param(
            ["--data=ggm_lightning.data.text.TextData", "--data.train=TMP/nothing.txt", "--data.folder=TMP/data"],
            marks=pytest.mark.slow,
        ),
        ["--data.init_args.length=0"],
    ],
    ids=["no such device", "no such name", "nothing fits", "no file", "a length"],
)
def test_a_fit_that_is_refused_leaves_no_empty_folder(
    runs: Path, tmp_path: Path, extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    extra = [word.replace("RUNS", str(runs)).replace("TMP", str(tmp_path)) for word in extra]
    error_of(capsys, tmp_path / "deep" / "runs", *extra)
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("extra", ["--data.init_args.lenth=0", "--data.init_args.length=0"])
def test_a_job_that_is_refused_leaves_no_start_either(
    extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In lives.jsonl: a key that is mistyped, and a value that is refused when the folder is this job's already."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(EarlySignals, "install", lambda self: None)
    monkeypatch.setattr(endings, "turn", endings.Turn())
    error_of(capsys, tmp_path / "deep" / "runs", extra)
    assert not (tmp_path / "deep").exists()


def test_a_folder_that_was_there_or_holds_anything_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Controls of the test above."""
    (tmp_path / "mine").mkdir()
    error_of(capsys, tmp_path, "--data.init_args.length=0", name="mine")
    assert (tmp_path / "mine").is_dir()
    error_of(capsys, tmp_path, f"--trainer.callbacks+={__name__}.Fails", code=1)
    assert list((tmp_path / "my run").glob("error-*.txt"))


def test_a_run_from_other_weights_goes_on_from_its_own(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    """docs/commands.md: the same command with --ckpt_path last. A learning rate of 0 shows where it goes on from."""
    start = ["--init_from", str(runs / "my run"), "--model.optimizer.warmup_steps=0"]
    fit(runs, *start, "--model.optimizer.lr=0.01", "--trainer.max_steps=1", name="second")
    assert "starts from" in caplog.text
    before = torch.load(runs / "second" / "last.ckpt", weights_only=True)
    caplog.clear()
    fit(runs, *start, "--model.optimizer.lr=0.0", "--trainer.max_steps=2", "--ckpt_path=last", name="second")
    assert "starts from" not in caplog.text
    after = torch.load(runs / "second" / "last.ckpt", weights_only=True)
    assert (after["global_step"], after["ggm_lightning"]["started_from"]["step"]) == (2, 5)
    first = torch.load(runs / "my run" / "last.ckpt", weights_only=True)
    for name, value in after["current_model_state"].items():
        assert torch.equal(value, before["current_model_state"][name])
    assert not torch.equal(value, first["state_dict"][name])  # control: the first step has moved them


@pytest.mark.slow
def test_a_run_out_of_time_names_a_time_that_is_enough(
    runs: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    fit(runs, NO_TIME, "--trainer.min_steps=5", name="late")
    said = capsys.readouterr().out
    assert "stopped at step 5 by its time limit (trainer.max_time); no figure, as no validation was due" in said
    (words,) = re.findall("or go on: the same command with (--ckpt_path last --trainer.max_time [0-9:]+)\n", said)
    fit(runs, "--trainer.max_steps=6", *shlex.split(words), name="late")
    assert "finished at step 6;" in capsys.readouterr().out


def test_twice_the_time_and_more_where_that_is_not_enough() -> None:
    timer, config = Timer("00:00:03:20"), {"trainer": {"max_time": "00:00:03:20"}}
    for used, longer in ((200.5, "00:00:06:40"), (230.0, "00:00:06:40"), (395.0, "00:00:10:00")):
        timer.load_state_dict({"time_elapsed": {"train": used}})
        said = later_end(SimpleNamespace(callbacks=[timer]), config, is_out_of_time=True)
        assert said == f"--ckpt_path last --trainer.max_time {longer}"


@pytest.mark.slow
def test_the_printed_commands_work(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder with a space: sampling, and the bound of a run in which no validation was due."""
    fit(runs, "--trainer.max_steps=1", name="no figure")
    said = capsys.readouterr().out
    assert "finished at step 1; no figure, as no validation was due; measure one: lightning evaluate" in said
    main([*command(said, "next: "), "--num_samples", "1", "--num_steps", "1"])
    assert "1 sample in 1 network call (1 rows per sample)" in capsys.readouterr().err
    main(command(said, "measure one: "))
    assert re.search(r"MarkovChain +val +16 .* ± ", capsys.readouterr().out)


OWN = """
from ggm_lightning.data.toy.synthetic import MarkovChain
from ggm_lightning.networks.transformer import Transformer


class Net(Transformer):
    pass


class Chain(MarkovChain):
    pass
"""


def test_the_printed_commands_trust_code_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    Path("ownnet_of_endings.py").write_text(OWN)
    Path("owndata_of_endings.py").write_text(OWN)
    own = ["--model.network=ownnet_of_endings.Net", "--model.network.num_heads=2", "--data=owndata_of_endings.Chain"]
    fit(Path("runs"), *own, "--trainer.max_steps=1", name="own")
    said = capsys.readouterr().out
    path = "runs/own/last.ckpt"
    draws, measures = command(said, "next: "), command(said, "measure one: ")
    assert draws == ["sample", "--ckpt_path", path, "--trust", "ownnet_of_endings"]
    assert measures == ["evaluate", "--ckpt_path", path, "--trust", "owndata_of_endings,ownnet_of_endings"]
    main([*draws, "--num_samples", "1", "--num_steps", "1"])
    main(measures)
    with pytest.raises(SystemExit):  # control: without it, it is refused
        main([*draws[:3], "--num_samples", "1", "--num_steps", "2"])
    assert "--trust ownnet_of_endings" in capsys.readouterr().err
    main(["export", "--ckpt_path", path, "--out", "handed", "--licence", "mit", "--trust", "ownnet_of_endings"])
    card = Path("handed/README.md").read_text()
    assert "lightning sample --ckpt_path handed --trust ownnet_of_endings --num_samples 4 --num_steps 64\n" in card
