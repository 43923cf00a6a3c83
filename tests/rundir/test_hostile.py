"""Checkpoints from somebody who means harm: nothing of theirs runs, nothing on the disk is touched, one line says why.

Each file is a whole checkpoint of a small run with one thing changed. The harm is real where it is let in: the control
calls it.
"""

from __future__ import annotations

import copy
import html.parser
import importlib
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ggm_lightning import load
from ggm_lightning.cli.main import main
from tests.fixtures.v1 import unpacked

KEY = "ggm_lightning"
PAYLOAD = """
import os
from torch import nn

open(os.environ["HARM"] + "/imported", "w").close()


def harm(*_, **__) -> nn.Module:
    open(os.environ["HARM"] + "/called", "w").close()
    return nn.Linear(1, 1)


class Net(nn.Module):
    def __init__(self, num_classes: int = 0, hook=None, kind: str = "a"):
        super().__init__()
        open(os.environ["HARM"] + "/built", "w").close()
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint of MD4 on characters, as it was read."""
    folder = unpacked(tmp_path_factory.mktemp("good"))
    return torch.load(folder / "runs" / "text" / "last.ckpt", weights_only=True)


@pytest.fixture
def harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stays empty unless the payload of this test was imported, called or built."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "payload.py").write_text(PAYLOAD)
    (tmp_path / "harm").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delitem(sys.modules, "payload", raising=False)
    return tmp_path / "harm"


def saved(good: dict[str, Any], change: Callable[[dict[str, Any]], Any], path: str = "x.ckpt") -> str:
    checkpoint = copy.deepcopy(good)
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


def network(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint[KEY]["model"]["init_args"]["network"]


def refusals(capsys: pytest.CaptureFixture[str], path: str) -> set[str]:
    """What load, sample, infill and evaluate say: each one line."""
    with pytest.raises(ValueError, match=re.escape(path)) as caught:
        load(path)
    said = {str(caught.value)}
    for command in (["sample"], ["infill", "--text", "a_"], ["evaluate"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--ckpt_path", path])
        assert stop.value.code == 2
        err = capsys.readouterr().err.strip().splitlines()
        assert [line for line in err if "error:" in line] == err[-1:]
        said.add(err[-1].removeprefix("lightning: error: "))
    assert all("\n" not in line for line in said)
    return said


OWN = "ggm_lightning.networks.transformer.Transformer"
NAMES = [
    ("payload.harm", "the class payload.harm, which is not of this package"),
    ("payload.Net", "allow it: --trust payload on the command line"),
    ("builtins.exec", "the class builtins.exec, which is not of this package"),
    ("torch.nn.Linear", "the class torch.nn.Linear, which is not of this package"),
    ("subprocess.Popen", "the class subprocess.Popen, which is not"),
    ("ggm_lightning_evil.Net", "the class ggm_lightning_evil.Net, which is not"),
    ("ggm_lightning.rundir.checkpoint.shutil.rmtree", "there is no class"),
    ("ggm_lightning.rundir.checkpoint.torch", "is no class (a module)"),
    ("ggm_lightning.rundir.restore.load", "is no class (a function)"),
    ("ggm_lightning.rundir.checkpoint.Path", "a class of another package that was only imported there"),
    ("ggm_lightning.data.shard_writer.ShardWriter", "is no Module"),
    ("../../payload.Net", "which is no name of a class"),
    ("payload", "which is no name of a class"),
    ("", "which is no name of a class"),
    (7, "which is no name of a class"),
    (None, "which is no name of a class"),
    (["payload.harm"], "which is no name of a class"),
    ("ggm_lightning.nowhere.Net", "there is no class ggm_lightning.nowhere.Net here"),
]


@pytest.mark.parametrize(("name", "message"), NAMES, ids=lambda value: str(value)[:40])
def test_a_class_path_that_is_not_to_be_built(
    good: dict[str, Any], harm: Path, capsys: pytest.CaptureFixture[str], name: Any, message: str
) -> None:
    path = saved(good, lambda checkpoint: network(checkpoint).update(class_path=name))
    for line in refusals(capsys, path):
        assert message in line
    assert list(harm.iterdir()) == []
    assert os.listdir() == [path]


ARGUMENTS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("text as class", lambda c: c[KEY]["model"]["init_args"].update(network="payload.Net"), "network is 'payload.Net'"),
    ("function as argument", lambda c: network(c)["init_args"].update(mlp="payload.harm"), "mlp is 'payload.harm'"),
    ("YAML as text", lambda c: network(c)["init_args"].update(mlp="{class_path: payload.Net}"), "mlp is '{class_path"),
    (
        "class in a number",
        lambda c: network(c)["init_args"].update(feature_dim={"class_path": "payload.Net"}),
        "payload",
    ),
    ("own class in a number", lambda c: network(c)["init_args"].update(feature_dim={"class_path": OWN}), "must be int"),
    (
        "class in a list",
        lambda c: c[KEY]["model"]["init_args"].update(shape=[{"class_path": "payload.Net"}]),
        "payload",
    ),
    ("deep inside", lambda c: network(c)["init_args"].update(x=[{"a": [{"class_path": "payload.harm"}]}]), "payload"),
    ("dict_kwargs", lambda c: network(c).update(dict_kwargs={"hook": {"class_path": "payload.harm"}}), "payload"),
    ("no arguments", lambda c: network(c).update(init_args="payload.harm"), "init_args is 'payload.harm'"),
    ("no model", lambda c: c[KEY].update(model="payload.harm"), "the description is 'payload.harm'"),
    ("another key", lambda c: network(c).update(code="payload.harm"), "it must be class_path and init_args"),
    ("schedule", lambda c: c[KEY]["model"]["init_args"].update(schedule={"class_path": OWN}), "is no Schedule"),
    ("optimizer", lambda c: c[KEY]["model"]["init_args"].update(optimizer={"lr": "payload.harm"}), "must be float"),
    ("nested without end", lambda c: network(c)["init_args"].update(x=deep(100)), "more than 40 levels deep"),
]


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else "payload.harm"


def test_what_the_user_names_is_built_and_the_payload_is_real(good: dict[str, Any], harm: Path) -> None:
    """Control: the same class, trusted by its name, is imported and built; a function in a trusted package is not."""
    path = saved(good, lambda c: network(c).update(class_path="payload.Net", init_args={}))
    for trust in ("payload", ("other", "payload.Net")):
        with pytest.raises(ValueError, match="its weights do not fit"):  # built, and found to be another network
            load(path, trust=trust)
        assert {file.name for file in harm.iterdir()} == {"imported", "built"}
    path = saved(good, lambda c: network(c).update(class_path="payload.harm"))
    with pytest.raises(ValueError, match=r"payload.harm is no class \(a function\)"):
        load(path, trust="payload")
    assert not (harm / "called").exists()
    importlib.import_module("payload").harm()
    assert (harm / "called").exists()


def test_trust_on_the_command_line(good: dict[str, Any], harm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(good, lambda c: network(c).update(class_path="payload.Net", init_args={}))
    Path("mine.yaml").write_text("model: {init_args: {network: {class_path: payload.Net}}}")
    for allowed in (["--trust", "other,payload"], ["--config", "mine.yaml"]):
        with pytest.raises(SystemExit):
            main(["sample", "--ckpt_path", path, *allowed])
        assert "its weights do not fit MD4" in capsys.readouterr().err
    assert (harm / "built").exists()


# sizes


def reduced(checkpoint: dict[str, Any]) -> None:
    """One number that claims to be a table of a billion."""
    name = next(name for name in checkpoint["state_dict"] if name.endswith("weight"))
    checkpoint["state_dict"][name] = torch.zeros(1).expand(10**6, 10**3)


SIZES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("wide", lambda c: network(c)["init_args"].update(feature_dim=2**20), "its weights do not fit MD4"),
    ("deep", lambda c: network(c)["init_args"].update(num_layers=10**7), "more than 1,0"),
    ("endless", lambda c: network(c)["init_args"].update(num_layers=10**15), "no size of a model is above"),
    ("vocabulary", lambda c: c[KEY]["model"]["init_args"].update(num_classes=10**7), "vocabulary mismatch"),
    ("tensor of one number", reduced, "claims [1000000, 1000] elements and holds fewer numbers"),
    ("no tensor", lambda c: c["state_dict"].update(x="payload.harm"), "'x' in its state_dict is no dense tensor"),
    ("codec", lambda c: c[KEY].update(codec={"kind": "images", "num_classes": 10**12, "shape": [1, 4, 4]}), "has 1000"),
    ("codec's kind", lambda c: c[KEY].update(codec={"kind": "payload.harm"}), "is unknown"),
    ("codec no mapping", lambda c: c[KEY].update(codec="payload.harm"), "its codec cannot be made"),
    (
        "codec's part",
        lambda c: c[KEY].update(codec={"kind": "characters", "alphabet": 7, "unknown": None}),
        "its codec",
    ),
    (
        "codec's shape",
        lambda c: c[KEY].update(codec={"kind": "images", "num_classes": 97, "shape": [1, 9, 9]}),
        "81 sites, its model 16",
    ),
    ("format", lambda c: c[KEY].update(format=3), "of format 3, this version reads 1 to 2; pip install"),
    ("format as text", lambda c: c[KEY].update(format="../x"), "of format '../x', this version reads"),
]


DESCRIPTIONS = [*ARGUMENTS, *SIZES]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in DESCRIPTIONS], ids=[c[0] for c in DESCRIPTIONS])
def test_a_description_that_is_not_what_the_class_asks_for_or_claims_a_size(
    good: dict[str, Any],
    harm: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], Any],
    message: str,
) -> None:
    path = saved(good, change)
    for line in refusals(capsys, path):
        assert message in line
    assert list(harm.iterdir()) == []
    assert os.listdir() == [path]


def test_a_packed_part_is_not_unpacked(good: dict[str, Any], harm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A gigabyte of zeros in a megabyte: refused by its name, before it is read."""
    path = saved(good, lambda c: None)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
        archive.writestr("last/data/bomb", bytes(2**26))
    assert Path(path).stat().st_size < 2**20
    for line in refusals(capsys, path):
        assert "is packed; give a file of `lightning fit`" in line


def test_an_input_that_claims_to_be_huge(good: dict[str, Any], harm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(good, lambda c: None)
    shape = {"descr": "<i8", "fortran_order": False, "shape": (10**7, 10**7)}
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, shape)
    with zipfile.ZipFile("in.npz", "w") as archive:
        archive.writestr("x.npy", raw.getvalue())
        archive.writestr("mask.npy", raw.getvalue())
    with pytest.raises(SystemExit):
        main(["infill", "--ckpt_path", path, "--input", "in.npz"])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("lightning: error: --input in.npz:")


# what is read and shown


def test_names_and_steps_are_no_paths(good: dict[str, Any], harm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Results lie beside the checkpoint, whatever it says of itself."""

    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["global_step"] = "/../../../harm/x"
        checkpoint[KEY]["config"] |= {"name": "../../harm", "runs": "/", "seed_everything": "../../harm"}

    Path("here").mkdir()
    path = saved(good, change, "here/x.ckpt")
    main(["sample", "--ckpt_path", path, "--num_samples", "2", "--num_steps", "2"])
    assert [entry for entry in os.listdir("here") if entry != "x.ckpt"] == [
        "samples-stepunknown-ancestral-2steps-temp1-seed0-n2"
    ]
    with pytest.raises(SystemExit):
        main(["evaluate", "--ckpt_path", path])
    assert "seed is '../../harm'; it must be int" in capsys.readouterr().err
    assert list(harm.iterdir()) == []
    assert os.listdir() == ["here"]


DATA = "ggm_lightning.data.text.TextData"


SECTIONS = [
    ({"class_path": DATA, "init_args": {"train": "mine.txt", "folder": "../harm/new"}}, "is not prepared"),
    ({"class_path": DATA, "init_args": {"train": "mine.txt", "folder": "shards"}}, "holds data made with another"),
    ({"class_path": "payload.Net"}, "the class payload.Net, which is not of this package"),
    ({"class_path": OWN, "init_args": {}}, "is no DiscreteData"),
    ({"class_path": DATA, "init_args": {"train": {"class_path": "payload.harm"}}}, "payload.harm"),
    ({"class_path": "ggm_lightning.data.prepared.shutil.rmtree", "init_args": {"path": "shards"}}, "no class"),
    ("payload.harm", "does not say on which data it was trained"),
]
# with --prepare true a new folder is what the user has asked for
PREPARED = [case for case in SECTIONS if case[1] != "is not prepared"]
ASKED = [(*case, "false") for case in SECTIONS] + [(*case, "true") for case in PREPARED]


@pytest.mark.parametrize(("section", "message", "prepare"), ASKED)
def test_the_data_section_of_a_checkpoint_overwrites_nothing(
    good: dict[str, Any], harm: Path, capsys: pytest.CaptureFixture[str], section: Any, message: str, prepare: str
) -> None:
    from ggm_lightning.data.text import TextData

    Path("mine.txt").write_text("somebody's own text, prepared with care. " * 40)
    TextData("mine.txt", tokenizer="bytes", length=16, folder="shards").prepare_data()
    before = {file.name: file.read_bytes() for file in Path("shards").iterdir()}

    def change(checkpoint: dict[str, Any]) -> None:
        if isinstance(section, dict) and section["class_path"] == DATA:
            section["init_args"] |= {"length": 16, "tokenizer": "characters"}
        checkpoint[KEY]["config"]["data"] = section

    path = saved(good, change)
    with pytest.raises(SystemExit):
        main(["evaluate", "--ckpt_path", path, "--prepare", prepare])
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert {file.name: file.read_bytes() for file in Path("shards").iterdir()} == before
    assert sorted(os.listdir()) == ["mine.txt", "shards", "x.ckpt"]
    assert list(harm.iterdir()) == []


class Elements(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.found += [name for name, _ in attrs if name.startswith("on")]


def test_samples_are_shown_and_not_obeyed(good: dict[str, Any], harm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An alphabet of markup and escape sequences: the page has the elements of any other, the terminal no escape."""
    alphabet = good[KEY]["codec"]["alphabet"]
    evil = "<>\"'&/\x1b\x9b\u202e\x07" + "".join(map(chr, range(0x4E00, 0x4E00 + len(alphabet) - 10)))
    pages = []
    for name, letters in (("plain.ckpt", alphabet), ("evil.ckpt", evil)):
        path = saved(good, lambda c, letters=letters: c[KEY]["codec"].update(alphabet=letters), name)
        main(["sample", "--ckpt_path", path, "--num_samples", "12", "--num_steps", "4", "--out", name[:4]])
        printed = capsys.readouterr().out
        assert not set(printed) & set("\x1b\x9b\u202e\x07")
        main(["infill", "--ckpt_path", path, "--text", f"{letters[0]}______", "--num_steps", "4", "--num_samples", "9"])
        assert not set(capsys.readouterr().out) & set("\x1b\x9b\u202e\x07")
        pages.append(Elements(Path(name[:4], "trace.html").read_text()).found)
    assert pages[0] == pages[1]
    assert "\x1b" in Path("evil", "samples.txt").read_text()  # the file holds what was drawn


def test_inspect_builds_nothing_and_shows_everything(
    good: dict[str, Any], harm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        network(checkpoint).update(class_path="payload.Net", init_args={"kind": "\x1b[2J"})
        checkpoint[KEY]["config"]["data"] = {"class_path": "payload.data.Set"}
        checkpoint[KEY]["config"]["note"] = "\x1b]0;title\x07"

    path = saved(good, change)
    main(["inspect", path])
    shown = re.sub(" +", " ", capsys.readouterr().out)
    assert "family ggm_lightning.models.md4.MD4" in shown
    assert "network payload.Net" in shown
    assert "payload.Net, payload.data.Set: foreign code, built only with --trust payload,payload.data" in shown
    assert "vocabulary 97" in shown
    assert "tokenizer ggm_lightning.codecs.text.Characters" in shown
    assert "format 1" in shown
    assert " seed_everything: 0" in shown
    assert "\x1b" not in shown
    assert list(harm.iterdir()) == []
    assert "payload" not in sys.modules
    main(["inspect", "--ckpt_path", saved(good, lambda c: c.pop(KEY))])
    assert capsys.readouterr().out.count("not said") > 5
    for broken in ({KEY: 7}, {KEY: {"model": 7, "config": [], "codec": 3}}):
        main(["inspect", saved(good, lambda c, broken=broken: c.update(broken))])
        assert "not said" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["inspect", "nowhere.ckpt"])
    assert "no such checkpoint file" in capsys.readouterr().err
    json.dumps(good[KEY])  # the fixture itself is untouched plain data
