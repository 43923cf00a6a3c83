"""Codecs: text to ids and back, masks shown, nothing replaced silently, nothing needed but their own dict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ggm_lightning.codecs.codec import BLANK, Codec
from ggm_lightning.codecs.pictures import MASKED_GREY, MIDDLE_GREY, Images
from ggm_lightning.codecs.text import REPLACEMENT, Bytes, Characters, Integers, Subwords
from ggm_lightning.data.toy.demo import train_bpe
from ggm_lightning.rundir.codecs import codec_from_dict

TEXT = "Größe ½ 7 naïve snowmen ☃☃ and a cow\n  indented\ttab"


@pytest.fixture(scope="module")
def subwords() -> Subwords:
    return Subwords(train_bpe("the cat sat on the mat\n" * 50 + TEXT, 277))


def _codecs(subwords: Subwords) -> list[Codec]:
    return [Bytes(), Characters(), Characters("ab c", unknown=None), Integers(7), subwords]


def test_bytes_and_subwords_round_trip_any_text(subwords: Subwords) -> None:
    for codec in (Bytes(), subwords):
        ids = codec.encode(TEXT)
        assert codec.decode(torch.tensor([ids, ids])) == [TEXT, TEXT]
        assert max(ids) < codec.num_classes
    assert subwords.num_classes == 277
    assert len(subwords.encode(TEXT)) < len(Bytes().encode(TEXT))


def test_characters_round_trip_and_count_what_they_replace() -> None:
    codec = Characters()
    assert codec.num_classes == 97
    plain = "def f(x):\n    return ~x\n"
    assert codec.decode(torch.tensor([codec.encode(plain)])) == [plain]
    assert codec.replaced == 0
    ids = codec.encode(TEXT)
    assert codec.replaced == sum(not (c == "\n" or " " <= c <= "~") for c in TEXT) == 7
    assert codec.decode(np.array([ids]))[0].count(REPLACEMENT) == 7
    assert codec.encode(REPLACEMENT) == [96]
    assert codec.replaced == 7  # it is a symbol of the codec, not a replacement


def test_characters_without_an_unknown_name_the_first_stranger() -> None:
    codec = Characters("ab c", unknown=None)
    assert codec.num_classes == 4
    assert codec.encode("cab b") == [3, 0, 1, 2, 1]
    with pytest.raises(ValueError, match=r"'X' at position 2 "):
        codec.encode("abXa")


def test_masks_are_shown_as_blanks(subwords: Subwords) -> None:
    for codec, text in ((Bytes(), "ab cd"), (Characters(), "ab cd"), (subwords, "the cat")):
        ids = codec.encode(text)
        masked = [codec.num_classes, *ids, codec.num_classes]
        assert codec.decode(torch.tensor([masked])) == [BLANK + text + BLANK]
        assert codec.decode(torch.tensor([masked]), blank="_") == [f"_{text}_"]
        assert codec.pieces(masked, blank="?")[0] == "?"
        assert "".join(codec.pieces(ids)) == text
    assert Integers(7).decode(torch.tensor([[3, 1, 7, 1, 5]])) == ["3 1 · 1 5"]
    assert Integers(7).pieces([3, 7]) == ["3 ", f"{BLANK} "]


def test_integers_read_what_they_write_and_flatten_images() -> None:
    codec = Integers(10)
    assert codec.decode(torch.tensor([[[3, 1], [4, 1]], [[5, 9], [2, 6]]])) == ["3 1 4 1", "5 9 2 6"]
    assert codec.encode("3 1 4 1 5") == [3, 1, 4, 1, 5]
    for wrong in ("3 x", "3 10", "-1"):
        with pytest.raises(ValueError, match="not a whole number"):
            codec.encode(wrong)


def test_ids_of_another_vocabulary_are_refused(subwords: Subwords) -> None:
    for codec in _codecs(subwords):
        for wrong in (-1, codec.num_classes + 1):
            with pytest.raises(ValueError, match="row 1, place 2"):
                codec.decode(torch.tensor([[0, 0, 0], [0, 0, wrong]]))


def test_the_dict_is_plain_json_and_gives_the_codec_back(subwords: Subwords) -> None:
    hashes = set()
    for codec in _codecs(subwords):
        again = codec_from_dict(json.loads(json.dumps(codec.to_dict())))
        assert type(again) is type(codec)
        assert again.num_classes == codec.num_classes
        assert again.tokenizer_hash == codec.tokenizer_hash
        ids = torch.arange(codec.num_classes)[None]
        assert again.decode(ids) == codec.decode(ids)
        hashes.add(codec.tokenizer_hash)
    assert len(hashes) == 5
    assert Characters("ab").tokenizer_hash != Characters("ba").tokenizer_hash
    with pytest.raises(ValueError, match="'runes' is unknown"):
        codec_from_dict({"kind": "runes"})


def test_the_hash_ignores_the_spacing_of_a_tokenizer_file(subwords: Subwords) -> None:
    spaced = json.dumps(json.loads(subwords.to_dict()["init_args"]["tokenizer_json"]), indent=3)
    assert Subwords(spaced).tokenizer_hash == subwords.tokenizer_hash


def test_padding_and_truncation_asked_for_by_a_file_are_ignored(subwords: Subwords) -> None:
    wanted = json.loads(subwords.to_dict()["init_args"]["tokenizer_json"])
    wanted["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    wanted["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    cut = Subwords(json.dumps(wanted))
    assert cut.encode(TEXT) == subwords.encode(TEXT)
    assert [ids.tolist() for ids in cut.encode_batch([TEXT, "a"])] == [subwords.encode(TEXT), subwords.encode("a")]


def test_bad_arguments_are_named() -> None:
    for wrong in ("", "aba"):
        with pytest.raises(ValueError, match="name each once"):
            Characters(wrong)
    with pytest.raises(ValueError, match="unknown is"):
        Characters("ab", unknown="a")
    for wrong in ("not json", "{}"):
        with pytest.raises(ValueError, match=r"not a `tokenizers` JSON"):
            Subwords(wrong)
    with pytest.raises(ValueError, match="num_classes is 0"):
        Integers(0)


def test_gpt2_encodes_as_published(real_data: Path) -> None:
    codec = Subwords((real_data / "gpt2_bpe" / "tokenizer.json").read_text(encoding="utf-8"))
    assert codec.num_classes == 50257
    assert codec.encode("Hello world") == [15496, 995]
    assert codec.separator == ([50256], 0)
    assert codec.pieces([15496, 995, 50257]) == ["Hello", " world", BLANK]
    assert codec.decode(torch.tensor([codec.encode(TEXT)])) == [TEXT]


def test_levels_are_evenly_spaced_from_black_to_white() -> None:
    x = torch.arange(17)[None, None, None].expand(2, 1, 1, 17)
    pictures = Images(17, (1, 1, 17)).decode(x)
    assert (pictures.dtype, pictures.shape) == (np.uint8, (2, 1, 17, 3))
    assert pictures[1, 0, :, 0].tolist() == [round(255 * i / 16) for i in range(17)]
    assert (pictures == pictures[..., :1]).all()
    assert Images(2, (1, 1, 2)).decode(np.array([[0, 1]]))[0, 0, :, 0].tolist() == [0, 255]
    colours = np.random.default_rng(0).integers(256, size=(2, 3, 7, 5))
    codec = Images(256, (3, 7, 5))
    assert (codec.decode(colours) == colours.transpose(0, 2, 3, 1)).all()
    assert (codec.decode(torch.from_numpy(colours).flatten(1)) == codec.decode(colours)).all()


def test_masked_pixels_are_told_from_levels() -> None:
    grey = Images(17, (1, 2, 2)).decode(np.array([[[[17, 8], [0, 16]]]]))
    assert grey[0].tolist() == [[list(MASKED_GREY), [128] * 3], [[0] * 3, [255] * 3]]
    assert len(set(MASKED_GREY)) == 3
    colour = Images(256, (3, 1, 2)).decode(np.array([[[[256, 9]], [[256, 256]], [[256, 5]]]]))
    assert colour[0, 0].tolist() == [[MIDDLE_GREY] * 3, [9, MIDDLE_GREY, 5]]


def test_pictures_go_where_samples_are_shown(tmp_path: Path) -> None:
    from PIL import Image

    from ggm_lightning.report.pictures import grid, save_png

    for shape in ((1, 8, 8), (3, 4, 6)):
        x = torch.from_numpy(np.random.default_rng(0).integers(5, size=(6, *shape)))
        codec = codec_from_dict(json.loads(json.dumps(Images(5, shape).to_dict())))
        assert (type(codec), codec.num_classes) == (Images, 5)
        assert codec.tokenizer_hash == Images(5, shape).tokenizer_hash != Images(6, shape).tokenizer_hash
        pictures = codec.decode(x)
        save_png(grid(pictures), tmp_path / "grid.png", smallest_side=1)
        read = np.asarray(Image.open(tmp_path / "grid.png"))
        assert (read[: shape[1], : shape[2]] == pictures[0]).all()
        assert (read[-shape[1] :, -shape[2] :] == pictures[5]).all()


def test_pictures_of_another_kind_are_refused() -> None:
    codec = Images(17, (1, 2, 2))
    with pytest.raises(ValueError, match=r"Images: id 18 in row 1, place 2 is outside 0..17"):
        codec.decode(np.array([[0, 0, 0, 17], [0, 0, 18, 0]]))
    with pytest.raises(ValueError, match=r"Images: 3 sites per row, but pictures of shape \[1, 2, 2\] have 4"):
        codec.decode(np.zeros((2, 3), dtype=int))
    with pytest.raises(ValueError, match="does not encode text"):
        codec.encode("a")
    with pytest.raises(ValueError, match="decode the whole state"):
        codec.pieces([1])
    with pytest.raises(ValueError, match="at least 2 levels"):
        Images(1, (1, 2, 2))
    for shape in ((2, 2), (2, 2, 2), (3, 0, 2)):
        with pytest.raises(ValueError, match=r"\[channels, height, width\]"):
            Images(17, shape)
