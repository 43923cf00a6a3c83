"""OpenWebText (Gokaslan and Cohen 2019): 8,013,769 documents, 9.04 billion tokens of GPT-2, 18 GB as uint16 shards.

Of this text the literature holds out, and trains on, three different parts:

    MD4, GenMD4 (arXiv 2406.04329)  held_out: blocks, val_fraction: 0.02           the last 2% of all blocks of tokens
    MDLM, Duo (arXiv 2406.07524)    held_out: documents, val_documents: 100000     the last 100,000 documents
    a share of the documents        held_out: documents, val_fraction: 0.02

The first is the default: the perplexities of MD4 and GenMD4 are of that part, it needs no pass over the text to count
documents, and an excerpt of any size can be cut in that way.
"""

from __future__ import annotations

from typing import Any

from ggm_lightning.data.text import TextData


class OpenWebText(TextData):
    """Blocks of OpenWebText; all that TextData can do, with the settings of the literature as defaults.

    Args:
        train: hub:Skylion007/openwebtext downloads 24 GB of parquet into the hub's cache, once; or your own copy as
            .parquet, .jsonl or .txt.
        held_out, val_fraction: see above.
        tokenizer: GPT-2's from the hub, or the path of its tokenizer.json.
        length: tokens per example.
        text: what else TextData takes.
    """

    def __init__(
        self,
        train: str | list[str] = "hub:Skylion007/openwebtext",
        held_out: str = "blocks",
        val_fraction: float = 0.02,
        tokenizer: str = "hub:gpt2",
        length: int = 1024,
        **text: Any,
    ) -> None:
        super().__init__(
            train=train, held_out=held_out, val_fraction=val_fraction, tokenizer=tokenizer, length=length, **text
        )
