"""docs/models.md: its commands and its code run on a small checkpoint and on small files of the published forms."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from ggm_lightning.cli.main import main
from tests.fixtures.v1 import unpacked
from tests.networks import mdlm_network as mdlm

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
COMMANDS = [
    command for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for command in block.strip().splitlines()
]
# the page speaks of GPT-2's tokenizer, and of a text of its own
TINY = {"import": ["--tokenizer", "tokenizer.json"], "evaluate": ["--limit", "3"]}
TEXT = "The ______ statement is used"


def run(command: str) -> None:
    _, verb, *arguments = shlex.split(command, comments=True)
    shorter = "w1 w2 _ _ w5 w6 w7" if "mdlm" in arguments else "The ____ is used"  # as long as the models' rows
    arguments = [shorter if word == TEXT else word for word in arguments]
    if verb == "import":
        arguments = ["3" if word == "12" else word for word in arguments]
    main([verb, *arguments, *TINY.get(verb, [])])


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    unpacked(tmp_path)
    monkeypatch.chdir(tmp_path / "v1")
    Path("runs/demo").mkdir(parents=True)
    shutil.copy("runs/text/last.ckpt", "runs/demo/last.ckpt")
    mdlm.tokenizer(Path("tokenizer.json"))
    mdlm.hub_folder(Path("mdlm-owt"))
    state = mdlm.weights()
    mdlm.lightning_checkpoint(Path("last.ckpt"), [state[name] for name in mdlm.parameters()])
    assert len(COMMANDS) == 9
    for command in COMMANDS[:5]:
        run(command)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, {})
    for command in COMMANDS[5:]:
        run(command)
    for name in ("mymodel", "mdlm"):
        assert {path.name.partition("-")[0] for path in Path("runs", name).iterdir()} == {"infilled", "samples"}
    assert sorted(path.name for path in Path("mymodel").iterdir()) == sorted(
        re.findall(r"^\| `([\w.]+)` \|", PAGE, re.M)
    )
    assert "DiT" in Path("mdlm-averages/config.json").read_text()
