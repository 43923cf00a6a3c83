"""text8: the published alphabet, split and windows, on generated and on real text of the same format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggm_lightning.data.text8 import ALPHABET, Text8

TEXT = "".join(np.random.default_rng(0).choice(list(ALPHABET), size=1000))


def _data(path: Path, text: str | bytes = TEXT, **kwargs: int) -> Text8:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Text8(str(path), **{"length": 16, "train_chars": 800, "val_chars": 101, "test_chars": 99, **kwargs})


def test_the_defaults_are_the_published_ones() -> None:
    data = Text8("nowhere")
    assert (data.num_classes, data.shape, data.characters_per_token) == (27, (256,), 1.0)
    assert data.stretches == {"train": (0, 90_000_000), "val": (90_000_000, 95_000_000), "test": (95_000_000, 10**8)}
    assert data.codec.encode("az ") == [0, 25, 26]


def test_windows_of_each_split(tmp_path: Path) -> None:
    data = _data(tmp_path / "text8")
    data.prepare_data()
    data.setup()
    assert [len(data.rows(s)) for s in ("train", "val", "test")] == [800 - 15, 101 // 16, 99 // 16]
    assert data.decode(data.rows("train")[[0, 1, 784]]["x"]) == [TEXT[:16], TEXT[1:17], TEXT[784:800]]
    assert data.decode(data.rows("val")[[0, 5]]["x"]) == [TEXT[800:816], TEXT[880:896]]
    assert data.decode(data.rows("test")[[0, 5]]["x"]) == [TEXT[901:917], TEXT[981:997]]
    assert len(list(data.test_dataloader())) == 1


def test_an_absent_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no file '.*text8'; get http://mattmahoney.net/dc/text8.zip and unpack"
    ):
        Text8(str(tmp_path / "text8")).prepare_data()


def test_a_short_file_and_a_stranger_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1000 characters, but train, val and test take 1001"):
        _data(tmp_path / "text8", test_chars=100).prepare_data()
    for at, split in ((555, "train"), (850, "val")):
        data = _data(tmp_path / "text8", TEXT[:at] + "A" + TEXT[at + 1 :])
        with pytest.raises(ValueError, match=rf"text8 \({split} split\): byte b'A' at position {at} is outside"):
            data.setup("fit")
    with pytest.raises(ValueError, match=r"at position 990"):
        _data(tmp_path / "text8", TEXT[:990].encode() + b"\xff" + TEXT[991:].encode()).setup("test")


def test_a_real_excerpt(real_data: Path) -> None:
    path = real_data / "text8_format" / "wikitext2_raw_test.text8style.txt"
    raw = path.read_text()
    data = Text8(str(path), train_chars=1_000_000, val_chars=100_000, test_chars=100_000)
    data.prepare_data()
    data.setup("fit")
    assert data.decode(data.rows("train")[[123_456]]["x"]) == [raw[123_456 : 123_456 + 256]]
    assert data.decode(data.rows("val")[[2]]["x"]) == [raw[1_000_512:1_000_768]]
