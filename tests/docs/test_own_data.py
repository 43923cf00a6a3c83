"""docs/data.md: two lines for data of one's own, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ggm_lightning.cli.main import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(# mine\.yaml:.*?)```", PAGE, re.DOTALL)
DEBUG = ["--config", str(ROOT / "configs" / "trainer" / "debug.yaml")]
TINY = ["--model.network.init_args.feature_dim=8", "--model.network.init_args.num_layers=1"]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0][13:30].strip())
def test_two_lines_of_ones_own_data(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    for name in "ab":
        (tmp_path / "books" / f"{name}.txt").write_text("All happy families are alike. " * 400)
    np.save("codes.npy", np.random.default_rng(0).integers(512, size=(50, 4, 4)))
    Path("mine.yaml").write_text(example)
    demo = str(ROOT / "experiments" / "md4_demo.yaml")
    arguments = ["--data.init_args.global_batch_size=4", "--name", "mine"]
    main(["fit", "--config", demo, "--config", "mine.yaml", *DEBUG, *TINY, *arguments])
    checkpoint = torch.load("runs/mine/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    wanted = yaml.safe_load(example)["data"]["init_args"]
    used = checkpoint["ggm_lightning"]["config"]["data"]["init_args"]
    assert {name: used[name] for name in wanted} == wanted
