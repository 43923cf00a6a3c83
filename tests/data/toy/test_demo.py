"""The embedded text: the split, the tokenizer's exact size and determinism, the reference lines and the word shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggm_lightning.codecs.text import PRINTABLE, Characters
from ggm_lightning.data import prepared
from ggm_lightning.data.header import HEADER, read_header, sealed
from ggm_lightning.data.tokens import TokenShards
from ggm_lightning.data.toy.demo import DemoText, reference_text, train_bpe
from ggm_lightning.metrics.text import order_k_entropy


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of preparations."""
    lines: list[str] = []
    monkeypatch.setattr(prepared, "rank_zero_info", lines.append)
    return lines


@pytest.fixture(scope="module")
def demo(folder: Path) -> DemoText:
    data = DemoText(folder=str(folder), global_batch_size=5)
    assert (data.num_classes, data.shape) == (1024, (256,))  # before anything is prepared
    data.prepare_data()
    data.setup("fit")
    return data


def test_the_shards_are_the_text(demo: DemoText) -> None:
    train, held_out = reference_text()
    assert 400_000 < len(train) + len(held_out) < 600_000
    assert len(held_out) == pytest.approx(0.1 * (len(train) + len(held_out)), abs=1)
    for split, text in (("train", train), ("val", held_out)):
        ids = demo.shards.read(split, np.array([0]), demo.shards.tokens(split))
        assert demo.decode(ids) == [text]
        assert demo.shards.characters(split) == len(text)
    assert demo.codec.num_classes == 1024
    assert 2.5 < demo.characters_per_token < 3.5
    assert next(iter(demo.train_dataloader()))["x"].shape == (5, 256)


def test_two_builds_are_identical(demo: DemoText, folder: Path, tmp_path: Path) -> None:
    DemoText(folder=str(tmp_path)).prepare_data()
    for name in ("header.json", "train-00000.bin", "val-00000.bin"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_preparing_again_keeps_the_folder_until_an_option_changes(demo: DemoText, tmp_path: Path) -> None:
    data = DemoText(vocab_size=300, folder=str(tmp_path))
    data.prepare_data()
    before = (tmp_path / "header.json").stat().st_mtime_ns
    data.prepare_data()
    assert (tmp_path / "header.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"holds data made with other options \(vocab_size\), which are left as they"):
        DemoText(vocab_size=301, folder=str(tmp_path)).prepare_data()
    assert (tmp_path / "header.json").stat().st_mtime_ns == before
    assert DemoText(vocab_size=300).folder != DemoText(vocab_size=301).folder == DemoText(vocab_size=301).folder


def test_the_tokenizer_sees_the_training_part_only() -> None:
    """Another held-out part, same merges; control: another training part, other merges."""
    train, held_out = reference_text()
    assert train_bpe(train, 400) == train_bpe(train, 400)
    assert train_bpe(train, 400) != train_bpe(train + held_out, 400)


def test_sizes_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ValueError, match="has at least the 256 bytes"):
        train_bpe("abc", 255)
    with pytest.raises(ValueError, match=r"vocab_size is 999, but the text has merges for 258 tokens only"):
        train_bpe("abc", 999)
    with pytest.raises(ValueError, match="must be bpe or characters"):
        DemoText(encoding="bytes")


def test_reference_lines_in_bits_per_character(demo: DemoText) -> None:
    """3.35, 2.47 and 2.03 with CPython 3.11's text; other versions carry a slightly different one."""
    lines = {key: value / demo.characters_per_token for key, value in demo.references().items()}
    assert list(lines) == ["order-1 characters", "order-2 characters", "order-3 characters"]
    assert list(lines.values()) == pytest.approx([3.35, 2.47, 2.03], abs=0.1)
    held_out = reference_text()[1]
    for k, value in enumerate(lines.values(), 1):
        assert order_k_entropy(held_out, k) < value  # fitted on the held-out part itself it would be lower


def test_word_shares_tell_text_from_noise(demo: DemoText) -> None:
    train, held_out = reference_text()
    shares = demo.judge([train[1000:3000], train[50_000:52_000]])
    assert list(shares) == ["samples", "independent tokens", "held-out text"]
    assert shares["samples"] > 0.98  # only a word cut at the ends can be missing
    assert shares["independent tokens"] < 0.4 < 0.7 < shares["held-out text"] < 1
    assert demo.judge([held_out])["samples"] == demo.judge([held_out])["held-out text"]
    with pytest.raises(ValueError, match="no texts"):
        demo.judge([])
    tables = demo.compare({"plain": [train[1000:3000]], "shuffled": ["".join(sorted(train[1000:3000]))]})
    words, copies = tables.values()
    assert list(words) == list(copies) == ["plain", "shuffled", "independent tokens", "held-out text"]
    assert copies["plain"] == 1
    assert copies["shuffled"] == copies["independent tokens"] == 0


def test_characters_as_an_alternative(tmp_path: Path, printed: list[str]) -> None:
    """Its text is made first, with U+FFFD for what the alphabet lacks: the ids are those of the reference itself, and
    nothing is lost after that. Control: the same characters in a text of one's own are lost."""
    data = DemoText(encoding="characters", folder=str(tmp_path), length=64)
    assert data.num_classes == 97
    data.prepare_data()
    data.setup("fit")
    train, held_out = reference_text()
    for split, text in (("train", train), ("val", held_out)):
        ids = data.shards.read(split, np.array([0]), data.shards.tokens(split))
        assert ids[0].tolist() == Characters().encode(text)
        assert data.decode(ids) == ["".join([c if c in PRINTABLE else "\ufffd" for c in text])]
    strange = sum(c not in PRINTABLE for c in train + held_out)
    assert printed[-1].endswith(f"; the text has U+FFFD for {strange:,} characters outside the alphabet")
    assert (data.characters_per_token, data.shards.loss.exact, data.losses()) == (1.0, True, "")
    _, loss = Characters().encode_measured([train, held_out])
    assert (loss.lost, loss.exact) == (strange, False)
    assert data.references()["order-1 characters"] == pytest.approx(3.35, abs=0.1)
    assert data.codec.num_classes == 97


def test_a_preparation_from_before_losses_were_measured_has_bits_per_character(
    tmp_path: Path, printed: list[str]
) -> None:
    DemoText(encoding="characters", folder=str(tmp_path)).prepare_data()
    header = read_header(tmp_path)
    del header["loss"]
    (tmp_path / HEADER).write_bytes(sealed(header))
    assert TokenShards(tmp_path).characters_per_token("val") is None  # control: of any other text nothing is known
    old = DemoText(encoding="characters", folder=str(tmp_path))
    old.prepare_data()
    assert "kept (" in printed[-1]
    assert "bits/character" not in printed[-1]
    assert old.characters_per_token == 1.0
