"""What a tokenizer's file says: its end, its control words, whether it loses text, and nothing left to chance."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors

from ggm_lightning.codecs.text import Bytes, Characters, Integers, Subwords
from ggm_lightning.codecs.tokenizer_file import END_OF_TEXT, end_token
from tests.codecs.tokenizers_of_all_kinds import TEXTS, byte_level, unigram, with_special, word_piece

NASTY = [
    "Größe ½ ☃\n\n  \ttab ",
    "",
    "伓劍\u0301 e\u0301\r\n",
    "a\u00a0b \ufeffc \ufffd",
    "x  y<|endoftext|> [SEP]</s>",
]


def codec(description: dict[str, Any]) -> Subwords:
    return Subwords(json.dumps(description))


def changed(description: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """With other parts of the pipeline, as objects of the library."""
    tokenizer = Tokenizer.from_str(json.dumps(description))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return json.loads(tokenizer.to_str())


# ---------------------------------------------------------------- the end of a text


ENDS = (
    *("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<EOS_TOKEN>", "<|EOD|>", "<eod>", "<|eot|>"),
    *("[SEP]", "<sep>", "<|end|>", "[END]", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<end_of_document>"),
)


@pytest.mark.parametrize("name", ENDS)
def test_an_end_is_found_whatever_its_spelling(name: str) -> None:
    for description in (byte_level("<s>", "[PAD]", name, "[MASK]"), word_piece("[CLS]", name), unigram("<pad>", name)):
        one = codec(description)
        assert one.separator == ([one.token_id(name)], 0)


@pytest.mark.parametrize(
    "name", ["<s>", "[CLS]", "<|begin_of_text|>", "<|eot_id|>", "<|im_start|>", "<end_of_turn>", "<unk>", "bend"]
)
def test_what_is_no_end(name: str) -> None:
    assert end_token(byte_level(name)) is None
    assert codec(byte_level(name)).separator == (codec(byte_level()).encode("\n"), 1)


def test_the_best_of_several_ends() -> None:
    assert end_token(byte_level("</s>", "[SEP]", END_OF_TEXT)) == END_OF_TEXT
    assert end_token(byte_level("<|eot_id|>", "[SEP]", "<|end_of_text|>")) == "<|end_of_text|>"
    assert end_token(with_special(byte_level("<eos>"), "</s>", special=False)) == "<eos>"
    assert end_token(with_special(byte_level("<s>"), "</s>", special=False)) == "</s>"


def test_the_post_processor_knows_the_end() -> None:
    """Of BERT's, RoBERTa's and template kind, alone or in a sequence, and under a name that says nothing."""
    base = byte_level("<a>", "<b>", "</s>")
    at = {name: codec(base).token_id(name) for name in ("<a>", "<b>")}
    template = processors.TemplateProcessing("<a> $A <b>", special_tokens=list(at.items()))
    bert = processors.BertProcessing(("<b>", at["<b>"]), ("<a>", at["<a>"]))
    roberta = processors.RobertaProcessing(("<b>", at["<b>"]), ("<a>", at["<a>"]))
    byte = processors.ByteLevel()
    for processor in (template, bert, roberta, processors.Sequence([byte, template])):
        assert end_token(changed(base, post_processor=processor)) == "<b>"
    opening = processors.TemplateProcessing("<a> $A", special_tokens=[("<a>", at["<a>"])])
    for processor in (opening, byte):
        assert end_token(changed(base, post_processor=processor)) == "</s>"


def test_without_an_end_a_newline_if_it_is_written_exactly_and_else_a_question() -> None:
    one = codec(byte_level("<s>"))
    assert one.separator == (one.encode("\n"), 1)
    prefixed = changed(byte_level(), pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))
    for lossy in (word_piece(), unigram(), prefixed):
        with pytest.raises(ValueError, match=r"^data.separator: the tokenizer has no end-of-text token .* name one of"):
            _ = codec(lossy).separator
    assert Characters("ab\n").separator == ([2], 1)
    assert Characters("a b").separator == ([1], 1)
    assert Characters("abc").token_id("b") == 1
    with pytest.raises(ValueError, match=r"^data.separator: the alphabet has neither a newline nor a space"):
        _ = Characters("abc").separator


# ---------------------------------------------------------------- control words and chance


@pytest.mark.parametrize("special", [True, False])
def test_a_text_that_spells_an_end_is_text(special: bool) -> None:
    one = codec(with_special(byte_level("<pad>"), END_OF_TEXT, special=special))
    text = f"a {END_OF_TEXT} in a {END_OF_TEXT}{END_OF_TEXT} text<pad>"
    ids = one.encode(text)
    assert not {one.token_id(END_OF_TEXT), one.token_id("<pad>")} & set(ids)
    assert one.text(ids) == text
    (measured,), loss = one.encode_measured([text])
    assert measured.tolist() == ids
    assert (loss.control_words, loss.first_control_word, loss.exact) == (4, END_OF_TEXT, True)
    assert one.encode_measured(["a < endoftext | > b"])[1].control_words == 0


def test_control_words_of_a_lossy_tokenizer() -> None:
    one = codec(word_piece("[CLS]", "[SEP]"))
    _, loss = one.encode_measured(["a [SEP] heron", "a heron", "[CLS] a [UNK]"])
    assert (loss.control_words, loss.first_control_word) == (3, "[SEP]")
    assert one.token_id("[SEP]") not in one.encode("a [SEP] heron")


def test_nothing_is_left_to_chance() -> None:
    """Control: the library itself gives many encodings of one text under dropout. (Of Unigram's sampling its files say
    nothing yet.) The codec is described as before, so that its hash stays."""
    bpe, pieces = byte_level(), unigram()
    bpe["model"]["dropout"] = 0.5
    pieces["model"] |= {"alpha": 0.1, "nbest_size": 64}
    raw = Tokenizer.from_str(json.dumps(bpe))
    assert len({tuple(raw.encode(TEXTS[0]).ids) for _ in range(20)}) > 1
    for description in (bpe, pieces):
        assert len({tuple(codec(description).encode(TEXTS[0])) for _ in range(20)}) == 1
        assert codec(description).identity()["tokenizer"] == json.dumps(
            description, ensure_ascii=False, separators=(",", ":")
        )


# ---------------------------------------------------------------- what is lost


def test_what_is_exact_by_construction_decodes_every_text() -> None:
    """Each claim is tried, each control makes no claim, and those that lose text are caught by trying."""
    split = pre_tokenizers.Split(" ", "isolated")
    sequence = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    for description in (
        byte_level(),
        byte_level(END_OF_TEXT, "[SEP]", "</s>"),
        changed(byte_level(), pre_tokenizer=sequence),
    ):
        one = codec(description)
        assert one.exact
        found, loss = one.encode_measured(NASTY)
        assert [one.text(ids.tolist()) for ids in found] == NASTY
        assert loss.exact
    assert Bytes().exact
    removed = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(False)])
    poor = byte_level()
    poor["model"]["vocab"] = {("ab" * 9 if name == "Ã" else name): i for name, i in poor["model"]["vocab"].items()}
    poor["model"]["merges"] = []
    for description in (
        changed(byte_level(), pre_tokenizer=removed),
        changed(byte_level(), normalizer=normalizers.NFC()),
        changed(byte_level(), pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        poor,
        word_piece(),
        unigram(),
    ):
        one = codec(description)
        assert not one.exact
        _, loss = one.encode_measured(NASTY)
        assert not loss.exact
    assert not Integers(7).exact


def test_lost_characters_are_counted_and_changed_texts_shown() -> None:
    """WordPiece: a word that is not known is lost whole; case, accents and spaces are changes only."""
    one = codec(word_piece())
    _, loss = one.encode_measured(["a small heron", "a Small heron", "a  smáll heron", "a 伓劍 heron", "a ☃☃ pond"])
    assert (loss.texts, loss.characters, loss.lost, loss.changed) == (5, 59, 4, 4)
    assert loss.first_changed == "'a Small heron' became 'a small heron'"
    one = codec(unigram())
    _, loss = one.encode_measured(["a small heron", "a 伓劍 heron", "a\nheron"])
    assert (loss.lost, loss.changed) == (2, 2)  # the newline is white space, though it too is lost
    characters = Characters("abc ")
    _, loss = characters.encode_measured(["a b", "xbc x", "c"])
    assert (loss.texts, loss.characters, loss.lost, loss.changed) == (3, 9, 2, 1)
    assert loss.first_changed == "'xbc x' became '\ufffdbc \ufffd'"
    assert Characters("abc ").encode_measured(["\ufffd"])[1].exact  # it decodes to itself


def test_characters_that_vanish_without_a_token_are_lost() -> None:
    """A BPE without an unknown token drops what it does not know, whole characters or some of their bytes."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    poor = byte_level()
    poor["model"]["merges"] = []
    poor["model"]["vocab"] = {letter: i for i, letter in enumerate(sorted(c for c in alphabet if c.isascii()))}
    _, loss = codec(poor).encode_measured(["großen", "ab"])
    assert 1 <= loss.lost <= 2  # the library's offsets behind a dropped character are off by one
    assert loss.changed == 1
    poor["model"]["vocab"] = {letter: i for i, letter in enumerate(sorted(alphabet))}
    assert codec(poor).encode_measured(["großen"])[1].exact
