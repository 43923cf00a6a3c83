"""A sampler of one's own on the command line and in a configuration: by its path, with options of its own."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ggm_lightning.callbacks.samples import Samples
from ggm_lightning.cli.commands import _without_options
from ggm_lightning.cli.main import main
from ggm_lightning.core.schedules import Linear
from ggm_lightning.exact.networks import Equal
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.md4 import MD4
from ggm_lightning.report.callback import Report
from ggm_lightning.sampling.plan import Ancestral
from tests.fixtures.v1 import unpacked
from tests.sampling.test_strangers_sampler import PAGE

MARKOV = Path(__file__).parents[2] / "experiments" / "md4_markov.yaml"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint of a model of text alone in it, and the page's sampler on the path."""
    unpacked(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    shutil.copy("v1/runs/text/last.ckpt", "run/last.ckpt")
    Path("surest.py").write_text(PAGE.split("```python\n")[1].split("```")[0])
    monkeypatch.delitem(sys.modules, "surest", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return Path("run")


COMMON = ["--ckpt_path", "run/last.ckpt", "--num_samples", "2", "--num_steps", "1"]


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str, exit_code: int = 2) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    assert stop.value.code == exit_code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_sample_and_infill(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["sample", *COMMON, "--sampler", "surest.Surest", "--sampler.k", "8"])
    folder = next(run.glob("samples-*Surest*k8*"))
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["sampler"], settings["k"]) == ("Surest", 8)
    sites = np.load(folder / "samples.npz")["x"].shape[1]
    calls = int(np.load(folder / "samples.npz")["network_calls"])
    assert calls == -(-sites // 8)
    assert int(np.load(folder / "samples.npz")["rows"]) == 2 * calls
    assert f"2 samples in {calls} network calls ({calls} rows per sample)" in capsys.readouterr().err
    main(["sample", *COMMON, "--sampler=surest.Surest", "--sampler.k=8"])
    assert "done already" in capsys.readouterr().err
    main(["infill", *COMMON, "--sampler", "surest.Surest", "--sampler.k", "3", "--text", "The _ of"])
    assert capsys.readouterr().out.count(" of") >= 2
    assert next(run.glob("infilled-*Surest*k3*"))


def test_mistakes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = ["sample", *COMMON]
    own = [*sample, "--sampler", "surest.Surest"]
    assert "MD4's 'Surest' has no eta; take sampler remasking" in error_of(capsys, *own, "--sampler.eta", ".02")
    assert "k: expected int, got 'many'" in error_of(capsys, *own, "--sampler.k", "many")
    said = error_of(capsys, *own, "--sampler.k", "0", exit_code=1)  # of the user's own code, with its place
    assert "Surest: k is 0; it must be at least 1; at " in said
    assert "surest.py:" in said
    assert "sampler 'surest.Least' is not found" in error_of(capsys, *sample, "--sampler", "surest.Least")
    assert "sampler 'fast' is unknown to MD4; choose" in error_of(capsys, *sample, "--sampler", "fast")
    assert "'ancestral' has no steps of a latent; leave it out" in error_of(capsys, *sample, "--latent_steps", "3")
    assert "--sampler.k is the last word; give its value" in error_of(capsys, *own, "--sampler.k")
    assert not list(run.glob("samples-*"))


def test_options_are_taken_out_of_the_other_arguments() -> None:
    given = ["--sampler", "a.B", "--sampler.eta", "-.5", "--seed=3", "--latent_steps=7", "--out", "x"]
    assert _without_options(given) == (
        ["--sampler", "a.B", "--seed=3", "--out", "x"],
        {"eta": "-.5", "latent_steps": "7"},
    )


@pytest.mark.parametrize("callback", [Samples, Report])
def test_of_a_callback(callback: type, run: Path) -> None:
    md4 = MD4(Equal(3), 3, (5,), Linear(0.0))
    for fine in (None, "first_hitting", "surest.Surest", Ancestral()):
        callback(sampler=fine).on_fit_start(None, md4)
    for wrong, said in (
        ("fast", "sampler 'fast' is unknown to MD4; choose ancestral, first_hitting"),
        ("surest.Least", "sampler 'surest.Least' is not found"),
    ):
        with pytest.raises(ValueError, match=f"{callback.__name__}: {said}"):
            callback(sampler=wrong).on_fit_start(None, md4)
    with pytest.raises(ValueError, match=f"{callback.__name__}: sampler 'Ancestral' reveals masked sites, but GGM"):
        callback(sampler=Ancestral()).on_fit_start(None, GGM(Visited(3), 3, (5,)))


class Visited(Equal):
    def forward(self, z: torch.Tensor, t: torch.Tensor, label: object = None, visited: object = None) -> torch.Tensor:
        return super().forward(z, t)


def test_in_a_configuration(run: Path, tmp_path: Path) -> None:
    part = "{class_path: ggm_lightning.callbacks.samples.Samples, init_args: {num_samples: 2, sampler: %s}}"
    own = "{class_path: surest.Surest, init_args: {k: 5}}"
    small = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--model.network.init_args.feature_dim=8"]
    small += ["--data.num_train=64", "--data.num_val=8", "--trainer.logger=false", "--runs", str(tmp_path / "runs")]
    main(["fit", "--config", str(MARKOV), *small, f"--trainer.callbacks=[{part % own}]"])
    assert list((tmp_path / "runs").rglob("samples/step-*.txt"))
