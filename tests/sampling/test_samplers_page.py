"""docs/samplers.md: its table names every plan and option, its code runs, its commands do on a small checkpoint."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from ggm_lightning.cli.main import main
from ggm_lightning.sampling import naming
from ggm_lightning.sampling.plans import OF_MASKED
from ggm_lightning.sampling.remasking import RULES
from tests.fixtures.v1 import unpacked

PAGE = (Path(__file__).parents[2] / "docs" / "samplers.md").read_text(encoding="utf-8")
COMMANDS = [
    command.replace("\\\n", " ")
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for command in block.replace("\\\n", " ").strip().splitlines()
]


def test_the_table_names_every_plan_and_option() -> None:
    lines = {line.split("|")[1].strip(" `"): line for line in PAGE.splitlines() if line.startswith("| `")}
    for name, plan in OF_MASKED.items():
        told = set(re.findall(r"`(\w+)`", lines[name].split("|")[5]))
        grid = {"num_steps", "grid"} if name == "ancestral" else set()
        assert told == {*naming.parameters(plan), *grid}, name
    assert set(RULES) <= lines.keys()


def test_the_code() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    found: dict[str, object] = {}
    exec(block, found)
    assert found["sampler"].stride == 16


@pytest.mark.parametrize("command", [command for command in COMMANDS if "runs/demo" in command])
def test_the_commands(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("runs/demo").mkdir(parents=True)
    shutil.copy("v1/runs/text/last.ckpt", "runs/demo/last.ckpt")
    _, verb, *arguments = shlex.split(command)
    main([verb, *arguments, "--num_steps", "2", "--num_samples", "2"])
    assert len(list(Path("runs/demo").glob("*/samples.npz"))) == 1
