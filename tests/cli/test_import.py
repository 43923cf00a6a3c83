"""`lightning import --from mdlm`: files of the published forms become models of ours, or are refused in one line.

The released files themselves could not be had; those here have their names and forms and the oracle's numbers.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import ggm_lightning
from ggm_lightning.cli.main import main
from tests.cli.test_main import error_of
from tests.networks import mdlm_network as mdlm
from tests.networks.mdlm_network import ORACLE, N, V


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a tokenizer."""
    monkeypatch.chdir(tmp_path)
    mdlm.tokenizer(Path("tokenizer.json"))
    return tmp_path


IMPORT = ["import", "--from", "mdlm", "hub", "--out", "ours", "--tokenizer", "tokenizer.json"]
Z = torch.from_numpy(ORACLE["z"])


def logits(path: str) -> torch.Tensor:
    model = ggm_lightning.load(path)
    with torch.no_grad():
        return model.network(Z, mdlm.times(ORACLE["sigma_some"]).float())


def test_a_folder_of_the_hub(capsys: pytest.CaptureFixture[str]) -> None:
    mdlm.hub_folder(Path("hub"))
    main(IMPORT)
    model = ggm_lightning.load("ours")
    assert (model.num_classes, model.shape, model.mask_id) == (V, (N,), V)
    assert (logits("ours") - torch.from_numpy(ORACLE["logits_f32_zero"])[..., :V]).abs().max() < 1e-5
    card = Path("ours/README.md").read_text()
    assert "license: apache-2.0" in card
    assert "| converted from | MDLM (arXiv 2406.07524), hub (sha256 " in card
    assert "2 blocks of 3 heads of 8, 11 tokens and the mask, rows of 7; not told the noise" in capsys.readouterr().out
    mdlm.hub_folder(Path("told"), time_conditioning=True)
    main(["import", "told", "--from=mdlm", "--out", "also", "--tokenizer", "tokenizer.json"])
    assert (logits("also") - torch.from_numpy(ORACLE["logits_f32_some"])[..., :V]).abs().max() < 1e-5


def test_a_checkpoint_of_lightning() -> None:
    """Their averages, in the order of the parameters, and not the raw weights."""
    state = mdlm.weights()
    mdlm.lightning_checkpoint(Path("raw.ckpt"), [state[name] + i for i, name in enumerate(mdlm.parameters())])
    command = ["import", "--from", "mdlm", "raw.ckpt", "--num_heads", "3", "--length", "13"]
    main([*command, "--out", "ours", "--tokenizer", "tokenizer.json", "--licence", "mit"])
    model = ggm_lightning.load("ours")
    assert model.shape == (13,)
    for i, name in enumerate(mdlm.parameters()):
        assert torch.equal(model.state_dict()[f"network.{name}"], state[name] + i), name
    config = json.loads(Path("ours/config.json").read_text())
    assert (config["step"], config["averaged"]) == (13, True)
    mdlm.lightning_checkpoint(Path("raw.ckpt"), None)
    main([*command, "--out", "last", "--tokenizer", "tokenizer.json"])
    assert torch.equal(ggm_lightning.load("last").network.vocab_embed.embedding, state["vocab_embed.embedding"])
    config = json.loads(Path("last/config.json").read_text())
    assert (config["step"], config["averaged"]) == (13, False)
    assert "license: unknown" in Path("last/README.md").read_text()


class DictConfig:
    """Pickled under the name of omegaconf's class, with a state of its own kinds."""

    def __init__(self) -> None:
        self.__dict__ = {"_metadata": dict, "_content": {"model": {"length": 7}}}


def _save_with(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that names module.DictConfig; afterwards importing it fails."""
    kind = type("DictConfig", (), {"__init__": DictConfig.__init__, "__module__": module})
    fake = types.ModuleType(module)
    fake.DictConfig = kind  # type: ignore[attr-defined]
    for name in (module, module.partition(".")[0]):
        monkeypatch.setitem(sys.modules, name, fake)
    averages = [mdlm.weights()[name] for name in mdlm.parameters()]
    mdlm.lightning_checkpoint(Path("raw.ckpt"), averages, kind())
    for name in (module, module.partition(".")[0]):
        monkeypatch.setitem(sys.modules, name, None)


def test_their_configuration_is_not_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Objects of libraries that their files name are stood in for, and nothing is imported; others are refused."""
    command = ["import", "raw.ckpt", *IMPORT[4:], "--num_heads", "3"]
    _save_with("omegaconf.dictconfig", monkeypatch)
    main(command)
    assert ggm_lightning.load("ours").num_classes == V
    _save_with("somebody.else", monkeypatch)
    line = error_of(capsys, [*command, "--out", "other"])
    assert "refused, it holds an object of somebody.else.DictConfig, and loading that executes code" in line
    assert not Path("other").exists()


def test_every_command_works_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    mdlm.hub_folder(Path("hub"))
    main(IMPORT)
    line = "w1 w2 w3 w4 w5 w6 w7 " * 60 + "\n"
    Path("text.txt").write_text(line * 4)
    data = {"train": "text.txt", "tokenizer": "tokenizer.json", "length": N, "folder": "shards", "val_fraction": 0.3}
    described = {"data": {"class_path": "ggm_lightning.data.text.TextData", "init_args": data}}
    Path("text.yaml").write_text(json.dumps(described))
    main(["evaluate", "--ckpt_path", "ours", "--data", "text.yaml", "--limit", "11", "--prepare", "true"])
    bound = json.loads(next(Path("runs/ours").glob("evaluation-*/*.json")).read_text())
    assert np.isfinite(bound["nelbo"])
    draws = ["--num_samples", "2", "--num_steps", "3"]
    main(["sample", "--ckpt_path", "ours", *draws])
    drawn = np.load(next(Path("runs/ours").glob("samples-*/samples.npz")))
    main(["infill", "--ckpt_path", "ours", "--text", "w1 w2 _ _ w5 w6 w7", *draws])
    filled = np.load(next(Path("runs/ours").glob("infilled-*/samples.npz")))
    for arrays in (drawn, filled):
        (ids,) = [arrays[name] for name in arrays.files if arrays[name].shape == (2, N)]
        assert 0 <= ids.min() <= ids.max() < V, "the mask is never drawn"
    assert (ids[:, [0, 1, 4, 5, 6]] == [1, 2, 5, 6, 7]).all()
    sweep = ["--num_steps", "2", "--temperature", "1", "--num_samples", "2", "--data", "text.yaml"]
    main(["sweep", "--ckpt_path", "ours", *sweep])
    assert Path("runs/ours/sweep/table.csv").is_file()
    capsys.readouterr()
    main(["inspect", "ours"])
    assert "ggm_lightning.networks.dit.DiT" in capsys.readouterr().out


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (name, revision) == ("owner/mdlm", None)
        assert not any(pattern.endswith((".py", "*")) for pattern in allow_patterns), "no code of theirs"
        return str(mdlm.hub_folder(Path("cache")))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    main(["import", "hub:owner/mdlm", *IMPORT[4:]])
    assert ggm_lightning.load("ours").num_classes == V
    assert "hub:owner/mdlm (sha256" in Path("ours/README.md").read_text()


# ------------------------------------------------------------------ what is refused


def state(**changed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Their state dict with tensors left out (None) or replaced; __ stands for a dot."""
    named = {name.replace("__", "."): value for name, value in changed.items()}
    return {name: value for name, value in (mdlm.weights() | named).items() if value is not None}


FAULTS = {
    "missing": (state(blocks__1__norm1__weight=None), {}, "lacks backbone.blocks.1.norm1.weight"),
    "unexpected": (state(blocks__1__more=torch.ones(2)), {}, "holds backbone.blocks.1.more, which the network"),
    "misshapen": (
        state(output_layer__linear__bias=torch.ones(V)),
        {},
        "backbone.output_layer.linear.bias is (11,), not (12,)",
    ),
    "no table": (state(vocab_embed__embedding=None), {}, "not those of MDLM (no vocab_embed.embedding"),
    "another model": (None, {"model_type": "gpt2"}, "model_type is 'gpt2', not 'mdlm'"),
    "another size": (None, {"vocab_size": 13}, "vocab_size is 13, its weights are of 12"),
    "another depth": (None, {"n_blocks": 3}, "lacks backbone.blocks.2.norm1.weight"),
    "heads that do not divide": (None, {"n_heads": 5}, "5 heads do not divide its 24 features into pairs"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused(fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    weights, config, said = FAULTS[fault]
    mdlm.hub_folder(Path("hub"), weights, **config)
    assert said in error_of(capsys, IMPORT)
    assert not Path("ours").exists()


def test_refused_files(capsys: pytest.CaptureFixture[str]) -> None:
    mdlm.hub_folder(Path("hub"))
    mdlm.tokenizer(Path("larger.json"), V + 1)
    assert "has 12 tokens, the weights have 11 and the mask" in error_of(capsys, [*IMPORT[:-1], "larger.json"])
    assert "there is no such file; give a tokenizer.json" in error_of(capsys, [*IMPORT[:-1], "none.json"])
    assert "--from sedd: known is mdlm" in error_of(capsys, ["import", "--from", "sedd", *IMPORT[3:]])
    assert "no such file" in error_of(capsys, [*IMPORT[:3], "nowhere", *IMPORT[4:]])
    names = mdlm.parameters()
    averages = [mdlm.weights()[name] for name in names]
    command = [*IMPORT[:3], "raw.ckpt", *IMPORT[4:], "--num_heads", "3"]
    for wrong, said in ((averages[:-1], f"holds {len(names) - 1} tensors"), (averages[::-1], "does not follow")):
        mdlm.lightning_checkpoint(Path("raw.ckpt"), wrong)
        assert f"ema.shadow_params {said}" in error_of(capsys, command)
    Path("hub/model.safetensors").unlink()
    torch.save(mdlm.prefixed(), "hub/pytorch_model.bin")
    assert "holds no model.safetensors" in error_of(capsys, IMPORT)
    assert not Path("ours").exists()
    assert "lightning import --from mdlm" in error_of(
        capsys, ["sample", "--ckpt_path", str(mdlm.hub_folder(Path("x")))]
    )
