"""What several tests of the data share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ggm_lightning.data.toy.demo import train_bpe


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE with an end of text."""
    trained = json.loads(train_bpe("document and so on naive " * 9, 270))
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    trained["added_tokens"] = [{"id": 270, "content": "<|endoftext|>", **special}]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(trained))
    return path
