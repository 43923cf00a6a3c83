"""docs/images.md: its command runs on a small model of the digits, with the network that the page shows."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from ggm_lightning.cli.evaluation_command import MEASURES
from ggm_lightning.cli.main import main
from ggm_lightning.networks import fid_inception
from tests.cli.test_measure_image import write_model

PAGE = (Path(__file__).parents[2] / "docs" / "images.md").read_text(encoding="utf-8")


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (code,) = re.findall(r"```python\n# (mine\.py)\n(.*?)```", PAGE, re.DOTALL)
    Path(code[0]).write_text(code[1])
    write_model(Path("runs/d/last.ckpt"))
    shutil.move("runs/d", "runs/digits")
    (command,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))[1:]
    main(["2" if word == "64" else "40" if word == "200" else word for word in words])
    (file,) = Path("runs/digits/evaluation").glob("*/evaluation.json")
    (row,) = json.loads(file.read_text())["rows"]
    told = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert {name for name in row["figures"] if not name.endswith("_stderr")} == told - {"inception_score", "tf"}


def test_the_page_names_every_option() -> None:
    for option in dataclasses.fields(MEASURES["image"]):
        assert f"`--{option.name}" in PAGE, option.name
    assert fid_inception.FILE in PAGE
    assert all(f"| `{resize}`" in PAGE for resize in fid_inception.RESIZES)
