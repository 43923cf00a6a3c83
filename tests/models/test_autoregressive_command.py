"""The autoregressive model through the command: a run and its page, evaluation, samples, continuations, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from ggm_lightning.cli.main import main

ROOT = Path(__file__).parents[2]
DEBUG = ["--config", str(ROOT / "configs" / "trainer" / "debug.yaml")]
NETWORK = {
    "class_path": "ggm_lightning.networks.transformer.Transformer",
    "init_args": {"feature_dim": 8, "num_heads": 2, "num_layers": 1, "time_features": "none", "causal": True},
}
MODEL = {"class_path": "ggm_lightning.models.autoregressive.AutoregressiveModel", "init_args": {"network": NETWORK}}


def fit(tmp_path: Path, data: dict[str, object]) -> Path:
    experiment = {"include": [str(ROOT / "configs" / "trainer" / "cpu.yaml")], "model": MODEL, "data": data}
    (tmp_path / "ar.yaml").write_text(yaml.safe_dump(experiment))
    report = {"class_path": "ggm_lightning.report.callback.Report", "init_args": {"num_samples": 2}}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [report]}}))
    files = ["--config", str(tmp_path / "ar.yaml"), *DEBUG, "--config", str(tmp_path / "few.yaml")]
    main(["fit", *files, "--runs", str(tmp_path), "--name", "run"])
    return tmp_path / "run"


def test_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("All happy families are alike. " * 200)
    init = {"train": str(tmp_path / "text.txt"), "tokenizer": "bytes", "length": 13, "global_batch_size": 2}
    data = {"class_path": "ggm_lightning.data.text.TextData", "init_args": {**init, "folder": str(tmp_path / "shards")}}
    run = fit(tmp_path, data)
    page = (run / "report.html").read_text()
    assert "upper bound" not in page
    assert "Each is computed exactly, no bound" in page
    checkpoint = ["--ckpt_path", str(run / "last.ckpt")]
    main(["evaluate", *checkpoint])
    assert "-log p, exact" in capsys.readouterr().out
    main(["sample", *checkpoint, "--num_samples", "2"])
    main(["infill", *checkpoint, "--text", "All happy____", "--num_samples", "2"])
    (folder,) = run.glob("infilled-*")
    assert all(text.startswith("All happy") for text in np_texts(folder))
    with pytest.raises(SystemExit) as stop:
        main(["infill", *checkpoint, "--text", "____happy", "--num_samples", "2"])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("lightning: error: ")
    assert "can only go on from a known beginning" in said


def np_texts(folder: Path) -> list[str]:
    with np.load(folder / "samples.npz") as arrays:
        return [bytes(row.tolist()).decode(errors="replace") for row in arrays["x"]]


def test_pictures(tmp_path: Path) -> None:
    """Their report fills in right halves, which this model cannot."""
    data = {"class_path": "ggm_lightning.data.toy.digits.Digits", "init_args": {"global_batch_size": 2}}
    run = fit(tmp_path, data)
    assert (run / "samples.png").is_file()
    assert (run / "trace.gif").is_file()
    assert not (run / "infilled.png").exists()
