"""What the JSON of a tokenizer says about itself: its control words, what ends a text, and whether it can lose text.

The JSON is that of the `tokenizers` library (tokenizer.json), parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

END_OF_TEXT = "<|endoftext|>"
# Spellings of an end, best first, with everything but letters and "/" taken out of them: <|end_of_text|>, <eos>,
# </s>, <EOD>, <|end_of_sentence|>, [SEP]. Ends of a turn in a conversation are none.
_ENDS = ("endoftext", "endofdoc", "eod", "eos", "/s", "endofs", "eot", "eof", "endof", "end", "/doc", "/text", "sep")
_TURNS = ("turn", "eotid", "message", "think", "image", "audio", "tool", "user", "system", "prompt")
_RANDOM = ("dropout", "alpha", "nbest_size")  # BPE's dropout; the sampling of subwords in Unigram


def without_chance(description: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer without random settings, so that one text has one encoding; its end token is special, so that
    a text that spells it is text."""
    model = {name: None if name in _RANDOM else value for name, value in description["model"].items()}
    end = end_token(description)
    added = [{**token, "special": token["special"] or token["content"] == end} for token in _added(description)]
    return {**description, "model": model, "added_tokens": added}


def _added(description: dict[str, Any]) -> list[dict[str, Any]]:
    return description.get("added_tokens") or []


def control_words(description: dict[str, Any]) -> list[str]:
    """The special tokens, the longest first."""
    found = [token["content"] for token in _added(description) if token["special"]]
    return sorted(found, key=len, reverse=True)


def end_token(description: dict[str, Any]) -> str | None:
    """The token that ends a text: <|endoftext|>, or what the post-processor puts last, or the added token that is
    spelled like an end. None: there is none."""
    names = [token["content"] for token in sorted(_added(description), key=lambda token: not token["special"])]
    if END_OF_TEXT in names:
        return END_OF_TEXT
    last = _put_last(description.get("post_processor"))
    if last is not None:
        return last
    ranked = [(rank, name) for name in names if (rank := _rank(name)) is not None]
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _rank(name: str) -> int | None:
    """How much a token's name looks like an end, 0 the most; None: not at all."""
    letters = re.sub("[^a-z/]", "", name.lower())
    if any(turn in letters for turn in _TURNS):
        return None
    for rank, end in enumerate(_ENDS):
        whole = end in ("end", "sep", "eot", "eof", "/s")  # too short to be the beginning of another word
        if letters == end or letters == f"{end}token" or (not whole and letters.startswith(end)):
            return rank
    return None


def _put_last(processor: dict[str, Any] | None) -> str | None:
    """The special token that a post-processor puts behind a single text."""
    if processor is None:
        return None
    if processor["type"] == "Sequence":
        found = [_put_last(one) for one in processor["processors"]]
        return next((name for name in reversed(found) if name is not None), None)
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        return processor["sep"][0]
    if processor["type"] == "TemplateProcessing" and processor["single"]:
        return processor["single"][-1].get("SpecialToken", {}).get("id")
    return None


def meanings(description: dict[str, Any], tokens: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """What each token of the vocabulary stands for, see Codec.meanings."""
    end, special = end_token(description), {token["content"] for token in _added(description) if token["special"]}
    decoder = (description.get("decoder") or {}).get("type")
    found: dict[str, tuple[Any, ...]] = {}
    for token in tokens:
        written = _written(token) if decoder == "ByteLevel" else None
        found[token] = (decoder, token) if written is None else ("text", written)
        if token == end:
            found[token] = ("end of text",)
        elif token in special:
            found[token] = ("special", token)
    return found


def _byte_letters() -> dict[str, int]:
    """The 256 letters that stand for bytes in a byte-level vocabulary (GPT-2's): visible ones for themselves, the
    others by the letters from 256 on, in their order."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in visible]
    return {**{chr(byte): byte for byte in visible}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


_BYTES = _byte_letters()


def _written(token: str) -> bytes | None:
    """The bytes that the letters of a token stand for; None where a letter stands for none."""
    found = [_BYTES.get(letter) for letter in token]
    return None if None in found else bytes(found)  # type: ignore[arg-type]


def unknown_token(description: dict[str, Any]) -> str | int | None:
    """The name (of Unigram: the id) of what stands for characters that the tokenizer does not know."""
    model = description["model"]
    return model.get("unk_id") if model.get("unk_token") is None else model["unk_token"]


def writes_every_text(description: dict[str, Any], byte_letters: Iterable[str]) -> bool:
    """Whether each text decodes to itself by construction, as with GPT-2's kind: a byte-level BPE that knows all 256
    bytes, without normalisation and with nothing left out. False: it must be tried.

    `byte_letters`: the 256 characters that stand for bytes there.
    """
    model, decoder = description["model"], description.get("decoder") or {}
    if "merges" not in model or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    if description.get("normalizer") is not None or decoder.get("type") != "ByteLevel":
        return False
    if not set(byte_letters) <= model["vocab"].keys():
        return False
    # added tokens are decoded as byte letters, too: ASCII stands for itself; white space around them may be swallowed
    if not all(t["content"].isascii() and not t["lstrip"] and not t["rstrip"] for t in _added(description)):
        return False
    return _keeps_all(description.get("pre_tokenizer") or {})


def _keeps_all(pre_tokenizer: dict[str, Any]) -> bool:
    """Whether a pre-tokenizer ends in bytes and neither adds nor removes anything."""
    *before, last = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    splits = all(one["type"] == "Digits" or one.get("behavior", "Removed") != "Removed" for one in before)
    return splits and last.get("type") == "ByteLevel" and last.get("add_prefix_space") is False


class ControlWords:
    """Finds the places where texts spell special tokens."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = re.compile("|".join(map(re.escape, names)))
        # nearly all texts have none of the few beginnings, which are found much faster than hundreds of whole names
        self._beginnings = {name[:2] for name in names}

    def found(self, texts: Iterable[str]) -> list[str]:
        return [
            name
            for text in texts
            if any(beginning in text for beginning in self._beginnings)
            for name in self._names.findall(text)
        ]
