"""Small tokenizers of the kinds that users bring, as the parsed JSON of their files."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ggm_lightning.data.toy.demo import train_bpe

TEXTS = [f"Sentence {i}: a small grey heron waits at pond {i}." for i in range(60)]


def described(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.to_str())


def byte_level(*special: str) -> dict[str, Any]:
    """GPT-2's kind; `special` tokens behind its 300."""
    return with_special(json.loads(train_bpe("\n".join(TEXTS), 300)), *special)


def with_special(description: dict[str, Any], *names: str, special: bool = True) -> dict[str, Any]:
    tokenizer = Tokenizer.from_str(json.dumps(description))
    first = max(tokenizer.get_vocab().values()) + 1
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    added = [{"id": first + i, "content": name, **flags} for i, name in enumerate(names)]
    return {**description, "added_tokens": [*description["added_tokens"], *added]}


def word_piece(*special: str) -> dict[str, Any]:
    """BERT's kind: lower case, no accents, [UNK] for what is not known; no end unless it is given."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", *special], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return described(tokenizer)


def unigram(*special: str) -> dict[str, Any]:
    """T5's kind: sentencepiece's, with a space before each word and none for a newline."""
    words = {f"▁{word}" for text in TEXTS for word in text.split()}
    letters = {letter for text in TEXTS for letter in text} | {"▁"}
    tokenizer = Tokenizer(
        models.Unigram(
            [
                ("<unk>", 0.0),
                *((word, -2.0) for word in sorted(words)),
                *((letter, -9.0) for letter in sorted(letters)),
            ],
            unk_id=0,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", *special])
    return described(tokenizer)
