"""Which names open the working folder for the user's own classes, and that a checkpoint's never do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ggm_lightning.cli import own_code
from ggm_lightning.cli.main import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a module and a package, which the module path does not have."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "mynet.py").touch()
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "ggm_lightning").mkdir()
    return tmp_path


@pytest.mark.parametrize("named", [["mynet.Tiny"], ["mynet"], ["torch.nn.Linear", "mypackage.deep.Net"]])
def test_a_name_that_lies_there_opens_it_once(folder: Path, named: list[str]) -> None:
    before = list(sys.path)
    own_code.open_folder(named)
    own_code.open_folder(named)
    assert sys.path == [str(folder), *before]


@pytest.mark.parametrize("named", [[], [""], ["torch.nn.Linear"], ["ggm_lightning.models.md4.MD4"], ["tiny.mynet"]])
def test_another_name_does_not(folder: Path, named: list[str]) -> None:
    before = list(sys.path)
    own_code.open_folder(named)
    assert sys.path == before


def test_safe_path_forbids_it(folder: Path) -> None:
    code = "import sys; from ggm_lightning.cli import own_code; n = len(sys.path); own_code.open_folder(['mynet']); "
    code += "print(len(sys.path) - n)"
    added = {}
    for flags in (["-P"], []):
        script = folder / "script" / "run.py"
        script.parent.mkdir(exist_ok=True)
        script.write_text(code)
        result = subprocess.run(
            [sys.executable, *flags, script], cwd=folder, capture_output=True, text=True, check=True
        )
        added[bool(flags)] = int(result.stdout)
    assert added == {True: 0, False: 1}


def test_names_are_found_wherever_a_class_can_be_named() -> None:
    config = {"model": {"init_args": {"network": {"class_path": "mynet.Tiny"}}}, "trainer": {"callbacks": ["a.B", 3]}}
    arguments = ["--model.network=mine.Net", "--trainer.callbacks+={class_path: other.C}"]
    assert {"mynet.Tiny", "a.B", "mine.Net", "other.C"} <= set(own_code.dotted_names([config, arguments]))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["sample", "--ckpt_path", "mynet.ckpt", "--out", "mynet.Tiny"], []),
        (["sample", "--ckpt_path", "mynet.ckpt", "--trust", "mynet, other.Net"], ["mynet", "other.Net"]),
        (["infill", "--ckpt_path", "mynet.ckpt", "--trust=mynet"], ["mynet"]),
        (["sample", "--ckpt_path", "mynet.ckpt", "--config", "own.yaml"], ["mynet.Tiny"]),
        (["evaluate", "--ckpt_path", "mynet.ckpt"], []),
        (["inspect", "--ckpt_path", "mynet.ckpt", "--config", "own.yaml"], None),
    ],
)
def test_beside_a_checkpoint_only_what_is_trusted_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], named: list[str] | None
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(own_code, "open_folder", lambda names: asked.append(list(names)))
    (folder / "own.yaml").write_text("data: {class_path: mynet.Tiny}\n")
    with pytest.raises(SystemExit):  # there is no such checkpoint
        main(arguments)
    assert asked == ([] if named is None else [named])


def test_a_data_file_of_ones_own_opens_it(folder: Path) -> None:
    from ggm_lightning.cli import evaluation_sets

    parent = "ggm_lightning.data.toy.synthetic"
    (folder / "mydata_of_a_test.py").write_text(f"from {parent} import MarkovChain\nclass Mine(MarkovChain): pass\n")
    section, data = evaluation_sets._own({"class_path": "mydata_of_a_test.Mine", "init_args": {"length": 5}}, 0)
    assert type(data).__name__ == "Mine"
    assert section["init_args"]["length"] == 5
