"""docs/evaluate.md: its commands are run, and its table is the report's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ggm_lightning.cli.main import main
from ggm_lightning.report.field_protocols import PROTOCOLS
from tests.cli.small_checkpoints import write

PAGE = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text(encoding="utf-8")
COMMANDS = re.search(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_its_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On tiny models; only sizes are changed."""
    assert COMMANDS
    monkeypatch.chdir(tmp_path)
    write(Path("runs/demo/last.ckpt"), "md4")
    write(Path("runs/ar_demo/last.ckpt"), "ar")
    smaller = {"64": "6", "256": "5", "16": "5"}
    for line in COMMANDS[1].splitlines():
        words = [smaller.get(word, word) for word in shlex.split(line)]
        drawn = "--measures" in words and "--num_drawn" not in words and "--samples" not in words
        sizes = ["--num_drawn", "6", "--num_steps", "5"] if drawn else []
        main([*words[1:], *sizes])
    folder = Path("runs/demo/evaluation/step3-val-seed0")
    assert (folder / "report.html").is_file()
    assert "mine" in (folder / "evaluation.csv").read_text()
    assert "bits per token" in capsys.readouterr().out


def test_its_table_is_the_reports() -> None:
    for line in PROTOCOLS:
        assert f"| {' | '.join(line)} |" in PAGE
