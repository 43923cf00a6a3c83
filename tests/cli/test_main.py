"""The command line as a user meets it: whole runs from the files in experiments/, and one line for each mistake."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ggm_lightning.cli.main import main

ROOT = Path(__file__).parents[2]
MARKOV = ROOT / "experiments" / "md4_markov.yaml"
SMALL = [
    "--model.network.init_args.feature_dim=8",
    "--model.network.init_args.num_layers=1",
    "--model.optimizer.warmup_steps=0",
    "--data.init_args.num_train=64",
    "--data.init_args.num_val=16",
    "--data.init_args.length=13",
    "--data.init_args.global_batch_size=8",
    "--trainer.val_check_interval=2",
    "--trainer.max_steps=4",
]


def fit(folder: Path, *extra: str, name: str = "toy") -> Path:
    main(["fit", "--config", str(MARKOV), *SMALL, "--runs", str(folder), "--name", name, *extra])
    return folder / name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("runs"))


def error_of(capsys: pytest.CaptureFixture[str], args: list[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(lines)
    assert lines[-1].startswith("lightning: error: ")
    return lines[-1].removeprefix("lightning: error: ")


# ----------------------------------------------------------------------------------------------- a whole run


def test_a_run_leaves_what_it_promises(run: Path) -> None:
    for name in ("last.ckpt", "best.ckpt", "config.yaml", "metrics.csv", "curve.png", "report.html"):
        assert (run / name).stat().st_size > 0, name
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    bounds = [float(row["val/nelbo"]) for row in rows if row.get("val/nelbo")]
    assert len(bounds) == 2
    for row in rows:
        if row.get("val/bpd"):
            assert float(row["val/bpd"]) == pytest.approx(float(row["val/nelbo"]) / (13 * math.log(2)), rel=1e-6)
            assert float(row["val/ppl"]) == pytest.approx(math.exp(float(row["val/nelbo"]) / 13), rel=1e-6)
            assert float(row["val/nelbo_stderr"]) > 0
    page = (run / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page


def test_the_saved_config_repeats_the_run(run: Path, tmp_path: Path) -> None:
    main(["fit", "--config", str(run / "config.yaml"), "--runs", str(tmp_path), "--name", "again"])
    first, second = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (run, tmp_path / "again"))
    assert first["state_dict"].keys() == second["state_dict"].keys()
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name


def test_a_checkpoint_alone_gives_the_model_back_with_averaged_weights(run: Path) -> None:
    import ggm_lightning

    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    model = ggm_lightning.load(run / "last.ckpt")
    assert (model.num_classes, model.shape, model.network.num_classes) == (11, (13,), 11)
    for name, value in model.state_dict().items():
        assert torch.equal(value, checkpoint["state_dict"][name])
    raw = checkpoint["current_model_state"]
    assert any(not torch.equal(raw[name], value) for name, value in checkpoint["state_dict"].items())
    assert model.codec.decode(torch.tensor([[3, 1, 4]])) == ["3 1 4"]
    assert json.loads(json.dumps(checkpoint["ggm_lightning"]))["config"]["name"] == "toy"


def test_resuming_is_bit_for_bit_the_undisturbed_run(run: Path, tmp_path: Path) -> None:
    part = fit(tmp_path, "--trainer.max_steps=3", "--model.optimizer.decay=constant", name="part")
    fit(tmp_path, "--ckpt_path", "last", "--model.optimizer.decay=constant", name="part")
    whole = fit(tmp_path, "--model.optimizer.decay=constant", name="whole")
    one, two = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (part, whole))
    assert one["global_step"] == two["global_step"] == 4
    for key in ("state_dict", "current_model_state"):
        for name, value in two[key].items():
            assert torch.equal(value, one[key][name]), (key, name)
    with (part / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row.get("val/nelbo")]
    assert steps == sorted(steps)
    assert len(list(part.glob("config*.yaml"))) == 2  # max_steps changed: the new file stands beside the old one


def test_validate_test_and_predict_agree(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--config", str(MARKOV), *SMALL, "--runs", str(run.parent), "--name", "toy"]
    capsys.readouterr()
    main(["predict", *common])
    with (run / "bounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["example"]) for row in rows] == list(range(16))
    bounds = np.array([float(row["nats"]) for row in rows])
    with (run / "metrics.csv").open() as file:
        last = [float(row["val/nelbo"]) for row in csv.DictReader(file) if row.get("val/nelbo")][-1]
    assert bounds.mean() == pytest.approx(last, rel=1e-6)
    main(["validate", *common, "--ckpt_path", "last"])
    main(["test", *common, "--data.init_args.eval_batch_size=5"])
    printed = capsys.readouterr().out
    assert f"step 4  validation, upper bound: {last:.3f} ± " in printed
    assert f"step 4  test, upper bound: {last:.3f} ± " in printed  # in batches of another size
    assert not re.search(r"\d\.\d{5,}", printed)  # no more digits than the error leaves a meaning


def test_bounds_of_another_checkpoint_stand_beside_the_first(run: Path, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    common = ["predict", "--config", str(MARKOV), *SMALL, "--runs", str(tmp_path), "--name", "toy", "--ckpt_path"]
    main([*common, str(run / "last.ckpt")])
    first = (tmp_path / "toy" / "bounds.csv").read_bytes()
    main([*common, str(run / "last.ckpt")])
    assert [file.name for file in (tmp_path / "toy").glob("bounds*")] == ["bounds.csv"]
    main([*common, str(run / "last.ckpt"), "--model.eval_seed", "7"])
    assert (tmp_path / "toy" / "bounds.csv").read_bytes() == first
    assert (tmp_path / "toy" / "bounds-2.csv").read_bytes() != first


@pytest.mark.parametrize("callback", ["samples.Samples", "report.Report"])
def test_a_callbacks_sampler_is_checked_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], callback: str
) -> None:
    part = f"{{class_path: ggm_lightning.callbacks.{callback}, init_args: {{sampler: fast}}}}"
    arguments = ["fit", "--config", str(MARKOV), *SMALL, "--runs", str(tmp_path), f"--trainer.callbacks+={part}"]
    error = error_of(capsys, arguments)
    assert f"{callback.split('.')[1]}: sampler 'fast' is unknown to MD4; choose ancestral, first_hitting" in error
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_loggers_by_one_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = fit(tmp_path, "--logger", "[csv,tensorboard,wandb_offline]", "--trainer.max_steps=2")
    assert (folder / "metrics.csv").is_file()
    assert list((folder / "tensorboard").glob("events.*"))
    assert list((folder / "wandb").glob("offline-run-*/*.wandb"))


def test_a_dry_run_writes_no_checkpoint_and_prints_nothing_odd(tmp_path: Path) -> None:
    folder = fit(tmp_path, "--trainer.fast_dev_run=true")
    assert not list(folder.glob("*.ckpt"))


def test_print_config_is_complete_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    given = ["--model.optimizer.lr=0.5", "--model.network.compile_blocks", "null"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(MARKOV), *given, "--print_config"])
    assert stop.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["optimizer"]["lr"] == 0.5
    assert printed["model"]["init_args"]["network"]["init_args"]["compile_blocks"] is None
    assert printed["trainer"]["max_steps"] == yaml.safe_load(MARKOV.read_text())["trainer"]["max_steps"]


# ----------------------------------------------------------------------------------------------- sample and infill


def test_sample_from_a_checkpoint_alone(run: Path, tmp_path: Path) -> None:
    arguments = ["--ckpt_path", str(run / "last.ckpt"), "--num_steps", "5", "--seed", "3"]
    main(["sample", *arguments, "--num_samples", "5", "--out", str(tmp_path / "a")])
    main(["sample", *arguments, "--num_samples", "5", "--batch_size", "2", "--out", str(tmp_path / "b")])
    one, two = (np.load(tmp_path / name / "samples.npz") for name in "ab")
    assert one["x"].shape == (5, 13)
    assert one["x"].min() >= 0
    assert one["x"].max() < 11
    assert np.array_equal(one["x"], two["x"])  # a sample is a function of (seed, row)
    text = (tmp_path / "a" / "samples.txt").read_text()
    assert " ".join(map(str, one["x"][4])) in text
    assert "trace" in (tmp_path / "a" / "trace.html").read_text()


def test_infill_leaves_the_rest_untouched(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ckpt = str(run / "last.ckpt")
    main(["infill", "--ckpt_path", ckpt, "--text", "3 _ _ 7 _ 1", "--num_samples", "2", "--out", str(tmp_path / "t")])
    lines = [line.split() for line in capsys.readouterr().out.strip().splitlines() if line]
    assert len(lines) == 2
    for line in lines:
        assert len(line) == 6
        assert (line[0], line[3], line[5]) == ("3", "7", "1")
    x = np.arange(13) % 11
    mask = np.zeros(13, bool)
    mask[4:9] = True
    np.savez(tmp_path / "in.npz", x=x, mask=mask)
    main(["infill", "--ckpt_path", ckpt, "--input", str(tmp_path / "in.npz"), "--out", str(tmp_path / "n")])
    filled = np.load(tmp_path / "n" / "samples.npz")["x"]
    assert filled.shape == (4, 13)
    assert (filled[:, ~mask] == x[~mask]).all()


# ----------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "unknown command 'fitt'; did you mean 'fit'?"),
        (["fit"], "missing: data, model; give --config"),
        (["fit", "--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
        (["fit", "M", "--trainer.max_step=1"], "unknown key 'trainer.max_step'; did you mean --trainer.max_steps?"),
        (["fit", "M", "--model.optimzer.lr=1"], "unknown key 'model.optimzer.lr'; did you mean --model.optimizer.lr?"),
        (["fit", "M", "--max_steps", "10"], "unknown key 'max_steps'; did you mean --trainer.max_steps?"),
        (["fit", "--config", "md4_dmo"], "among the package's experiments/ and configs/; did you mean 'md4_demo'?"),
        (["copy", "md4_dmo"], "md4_dmo: the package has no such file; did you mean 'md4_demo'?"),
        (["copy"], "copy needs a name"),
        (["list", "--foo"], "unknown key 'foo'"),
        (["fit", "M", "--model.optimizer.lr=abc"], "model.optimizer.lr: expected float, got 'abc'"),
        (["fit", "M", "--data.global_batch_size=x"], "data.global_batch_size: expected int, got 'x'"),
        (["fit", "M", "--data.foo=1"], "unknown key 'data.foo'; known there: num_symbols"),
        (["fit", "M", "--foo=1"], "unknown key 'foo'"),
        (["fit", "M", "--model.schedule=Foo"], "model.schedule: there is no class 'Foo'"),
        (["fit", "M", "--model=MD5"], "model: there is no class 'MD5'"),
        (["fit", "M", "--trainer.precision=17"], "trainer.precision: got 17; choose one of 64, 32"),
        (["fit", "M", "--trainer.devices=abc"], "trainer: `devices`"),
        (["fit", "M", "--logger", "[foo]"], "logger 'foo' is unknown; choose any of csv"),
        (
            ["fit", "M", "--model.network.init_args.num_classes=3"],
            "model.network.num_classes is 3 in the configuration",
        ),
        (["fit", "M", "--trainer.use_distributed_sampler=true"], "sharded twice; leave it out"),
        (["fit", "M", "--ckpt_path", "last"], "or start fresh with --allow_fresh true"),
        (["fit", "M", "--data.global_batch_size=0"], "data.global_batch_size is 0"),
        (["fit", "M", "--model.network.init_args.mlp=relu"], "choose one of"),
        (
            ["fit", "M", "--model.network.compile_blocks=g"],
            "compile_blocks: got g; choose one of 'graphs', true, false, null",
        ),
        (["fit", "M", "--model.schedule=Polynomial", "--model.schedule.exponent=-1"], "exponent is -1"),
        (["fit", "M", "--name=a/b"], "name is a/b; it names one folder below --runs: give --runs"),
        (["validate", "M", "--name=.."], "name is ..; it names one folder below --runs: give it as --runs FOLDER"),
        (["sample", "--ckpt_path", "x.ckpt", "--length=7"], "--length: a model draws rows as long as those of its"),
        (["sample", "--ckpt_path", "x.ckpt", "--prompt", "The"], "lightning infill --text"),
        (["validate", "M"], "validate needs weights: there is no"),
        (["sample"], "missing: ckpt_path; give --ckpt_path VALUE"),
        (["sample", "--ckpt_path", "x.ckpt"], "x.ckpt: no such checkpoint file"),
        (["sample", "--ckpt_path", "x.ckpt", "--temp=3"], "unknown key 'temp'; did you mean 'temperature'?"),
        (["evaluate", "--ckpt_path", "x.ckpt", "--measures", "text", "--temp=3"], "did you mean 'temperature'?"),
        (["evaluate", "--ckpt_path", "x.ckpt", "--foo=3"], "known there: measures, ckpt_path, data, split,"),
        (["sample", "--ckpt_path", "x.ckpt", "--num_step=3"], "unknown key 'num_step'; did you mean 'num_steps'?"),
    ],
)
def test_mistakes_end_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    if "M" in arguments:
        i = arguments.index("M")
        arguments = [*arguments[:i], "--config", str(MARKOV), "--runs", str(tmp_path), *arguments[i + 1 :]]
    assert message in error_of(capsys, arguments)
    assert not any(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [("too short", "longer than the data"), ("", "0 characters of text"), (None, "matches no file")],
)
def test_mistakes_in_a_text_of_ones_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "my.txt").write_text(content)
    data = {"class_path": "ggm_lightning.data.text.TextData", "init_args": {"train": str(tmp_path / "my.txt")}}
    data["init_args"]["folder"] = str(tmp_path / "shards")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"data": data}))
    arguments = ["fit", "--config", str(MARKOV), "--config", str(tmp_path / "mine.yaml"), "--runs", str(tmp_path)]
    assert message in error_of(capsys, arguments)


def test_mistakes_with_a_finished_run(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    common = ["--config", str(MARKOV), *SMALL, "--runs", str(run.parent), "--name", "toy"]
    ckpt = str(run / "last.ckpt")
    assert "already holds a run; continue it with --ckpt_path last" in error_of(capsys, ["fit", *common])
    other = ["--ckpt_path", ckpt, "--data.init_args.length=17"]
    assert "model.shape is [17], there [13]" in error_of(capsys, ["validate", *common, *other])
    other = ["--ckpt_path", ckpt, "--model.network.init_args.feature_dim=4"]
    assert "model.network.feature_dim is 4, there 8" in error_of(capsys, ["fit", *common, *other])
    assert "'a' is not a whole number" in error_of(capsys, ["infill", "--ckpt_path", ckpt, "--text", "a _"])
    assert "sampler 'fast' is unknown to MD4; choose ancestral or first_hitting" in error_of(
        capsys, ["sample", "--ckpt_path", ckpt, "--sampler", "fast"]
    )
    assert "nothing to fill" in error_of(capsys, ["infill", "--ckpt_path", ckpt, "--text", "3 4"])
    long = " ".join(["1"] * 13 + ["_"])
    assert "takes 14 tokens, the model reads 13" in error_of(capsys, ["infill", "--ckpt_path", ckpt, "--text", long])
    assert "either --text" in error_of(capsys, ["infill", "--ckpt_path", ckpt])
    (tmp_path / "noise.ckpt").write_bytes(b"not a checkpoint")
    assert "not a checkpoint" in error_of(capsys, ["sample", "--ckpt_path", str(tmp_path / "noise.ckpt")])
    cfg = tmp_path / "other.yaml"
    cfg.write_text(yaml.safe_dump({"model": {"init_args": {"schedule": {"class_path": "Cosine"}}}}))
    refused = error_of(capsys, ["sample", "--config", str(cfg), "--ckpt_path", ckpt])
    assert "model.schedule" in refused


def test_an_averaged_run_cannot_be_resumed_without_averaging(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--config", str(MARKOV), *SMALL, "--runs", str(run.parent), "--name", "toy", "--trainer.callbacks=[]"]
    assert "EMA" in error_of(capsys, ["fit", *common, "--ckpt_path", "last", "--trainer.max_steps=6"])


# ----------------------------------------------------------------------------------------------- start-up


def loaded_by(module: str, *libraries: str) -> str:
    code = f"import sys, {module}; print([name for name in {libraries} if name in sys.modules])"
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return result.stdout.strip().splitlines()[-1]


def test_threads_sleep_while_they_wait_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    """libgomp reads it once, when torch is loaded: so the command line may not have loaded it by then."""
    monkeypatch.setattr(os, "environ", {})
    main(["--version"])
    assert os.environ == {"GOMP_SPINCOUNT": "0"}
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setattr(os, "environ", {name: "mine"})
        main(["--version"])
        assert os.environ == {name: "mine"}
    assert loaded_by("ggm_lightning.cli.main", "torch") == "[]"


def test_import_is_light() -> None:
    assert loaded_by("ggm_lightning", "torch", "lightning", "datasets", "wandb", "transformers") == "[]"


@pytest.mark.slow
def test_building_the_trainer_loads_no_optional_library() -> None:
    # not of transformers, which torchmetrics imports by itself where it is installed
    assert loaded_by("ggm_lightning.cli.fit", "datasets", "wandb", "sklearn", "pandas") == "[]"


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    printed = capsys.readouterr().out
    for command in ("list", "copy", "prepare", "fit", "validate", "test", "predict", "sample", "infill", "evaluate"):
        assert f"\n  {command}" in printed
