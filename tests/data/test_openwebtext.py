"""A large text: one set of shards from every format, the same bytes after a kill, faults that are named."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ggm_lightning.cli.main import main
from ggm_lightning.codecs.text import Subwords
from ggm_lightning.data import tokenising
from ggm_lightning.data.blocks import BLOCK_BYTES
from ggm_lightning.data.header import sealed
from ggm_lightning.data.openwebtext import OpenWebText
from ggm_lightning.data.order import TrainOrder
from ggm_lightning.data.text import TextData
from ggm_lightning.data.tokens import TokenShards
from ggm_lightning.data.toy.demo import train_bpe
from tests.data.small_text import TEXTS, files, ids, prepared, write


@pytest.mark.parametrize("name", ["a.parquet", "categories.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson"])
@pytest.mark.parametrize("held_out", ["documents", "blocks"])
def test_every_format_gives_the_same_tokens(tmp_path: Path, tokenizer: Path, name: str, held_out: str) -> None:
    how = {"tokenizer": str(tokenizer), "held_out": held_out, "val_fraction": 0.1}
    plain = prepared(write(tmp_path, "b.jsonl"), tmp_path / "plain", **how)
    other = prepared(write(tmp_path, name), tmp_path / "other", **how)
    assert np.array_equal(ids(plain), ids(other))
    expected = TEXTS[: round(0.9 * 211)] if held_out == "documents" else TEXTS
    assert plain.codec.decode(ids(plain)[None])[0] == "<|endoftext|>".join(expected)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_packed_text(tmp_path: Path, name: str) -> None:
    raw = "\n".join(TEXTS).encode()
    packed = gzip.compress(raw) if name.endswith("gz") else pa.compress(raw, "zstd", asbytes=True)
    (tmp_path / name).write_bytes(packed)
    data = prepared(tmp_path / name, tmp_path / "s", held_out="blocks")
    assert bytes(ids(data).tolist()) == raw


def test_lines_as_documents_and_a_separator_by_name(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("one\r\ntwo\n\nthree")
    how = {"document": "line", "held_out": "blocks", "tokenizer": str(tokenizer), "length": 2}
    data = prepared(tmp_path / "a.txt", tmp_path / "s", separator="<|endoftext|>", **how)
    assert data.codec.decode(ids(data)[None])[0] == "one<|endoftext|>two<|endoftext|>three"
    with pytest.raises(ValueError, match=r"data.separator: the tokenizer has no token '\[SEP\]'; give one that it has"):
        prepared(tmp_path / "a.txt", tmp_path / "t", separator="[SEP]", **how)


def test_processes_do_not_change_a_byte(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenising, "_BATCH", 500)
    path = write(tmp_path, "a.jsonl")
    for processes in (1, 2):
        prepared(path, tmp_path / f"{processes}", tokenizer=str(tokenizer), processes=processes)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_blocks_are_cut_once_and_cover_all(tmp_path: Path) -> None:
    """The last share of whole blocks; training windows that overlap stay on their side."""
    data = prepared(write(tmp_path, "a.jsonl"), tmp_path / "s", held_out="blocks", val_fraction=0.25)
    tokens, blocks = ids(data), len(ids(data)) // 8
    cut = round(0.75 * blocks)
    rows = {split: np.stack([row["x"] for row in map(data.rows(split).__getitem__, range(n))])
            for split, n in (("train", cut), ("val", blocks - cut))}  # fmt: skip
    assert (len(data.rows("train")), len(data.rows("val"))) == (cut, blocks - cut)
    assert np.array_equal(np.concatenate([rows["train"], rows["val"]]).reshape(-1), tokens[: blocks * 8])
    dense = TextData(str(tmp_path / "a.jsonl"), length=8, stride=1, folder=str(tmp_path / "s"), held_out="blocks",
                     val_fraction=0.25)  # fmt: skip
    last = dense.rows("train")[len(dense.rows("train")) - 1]["x"]
    assert np.array_equal(last, tokens[cut * 8 - 8 : cut * 8])
    assert data.characters_per_token == (sum(map(len, TEXTS)) + 210) / len(tokens)


def test_wrapped_windows(tmp_path: Path, tokenizer: Path) -> None:
    """[first, tokens, last] of the asked length. Control: without wrap the window has none of the two."""
    how = {"tokenizer": str(tokenizer), "held_out": "blocks"}
    data = prepared(write(tmp_path, "a.jsonl"), tmp_path / "s", wrap=["<|endoftext|>", "!"], **how)
    x = data.rows("train")[[0, 3]]["x"]
    first, last = data.codec.token_id("<|endoftext|>"), data.codec.token_id("!")
    assert x.shape == (2, 8)
    assert x[:, 0].tolist() == [first] * 2
    assert x[:, -1].tolist() == [last] * 2
    assert np.array_equal(x[1, 1:-1], ids(data)[18:24])
    assert data.shape == (8,)
    with pytest.raises(ValueError, match=r"data.wrap: the tokenizer has no token '\[CLS\]'"):
        prepared(tmp_path / "a.jsonl", tmp_path / "s", wrap=["[CLS]", "!"], **how).rows("train")
    with pytest.raises(ValueError, match="they must be at least 3 and 1"):
        prepared(tmp_path / "a.jsonl", tmp_path / "s", wrap=["!", "!"], **{**how, "length": 2}).rows("val")


def test_the_splits_of_the_literature(tmp_path: Path, tokenizer: Path) -> None:
    path, how = write(tmp_path, "a.parquet"), {"tokenizer": str(tokenizer), "length": 8}
    data = OpenWebText(str(path), folder=str(tmp_path / "md4"), **how)
    data.prepare_data()
    assert (data.held_out, data.val_fraction) == ("blocks", 0.02)
    assert list(TokenShards(data.folder).header["splits"]) == ["train"]
    mdlm = OpenWebText(str(path), held_out="documents", val_documents=13, folder=str(tmp_path / "mdlm"), **how)
    mdlm.prepare_data()
    shards = TokenShards(mdlm.folder)
    assert (shards.documents("train"), shards.documents("val")) == (198, 13)
    with pytest.raises(ValueError, match=r"val_documents is 211, but there are 211 documents in all and none would be"):
        prepared(path, tmp_path / "x", val_documents=211)
    with pytest.raises(ValueError, match="goes with neither"):
        OpenWebText(str(path), val_documents=13)
    with pytest.raises(ValueError, match="the text has 1 block"):
        prepared(path, tmp_path / "y", held_out="blocks", length=8000).rows("train")


# ---------------------------------------------------------------- size


def test_nine_billion_tokens_start_at_once(tmp_path: Path) -> None:
    """A sparse file of 18 GB: opened and read in little memory. Time is not asserted; `make bench` measures it."""
    tokens = 9_035_582_198
    codec = Subwords(train_bpe("a b c " * 9, 258))
    with open(tmp_path / "train-00000.bin", "wb") as handle:
        handle.truncate(2 * tokens)
    whole, rest = divmod(2 * tokens, BLOCK_BYTES)
    crc = f"{zlib.crc32(bytes(BLOCK_BYTES)):08x}" * whole + f"{zlib.crc32(bytes(rest)):08x}"
    counts = {"documents": 8_013_769, "tokens": tokens, "characters": 4 * tokens, "largest_id": 0}
    file = {"name": "train-00000.bin", "tokens": tokens, "sha256": "", "crc32": crc}
    header = {
        "num_classes": codec.num_classes, "dtype": "uint16", "block_bytes": BLOCK_BYTES,
        "tokenizer_hash": codec.tokenizer_hash, "options": {}, "source": [], "codec": codec.to_dict(),
        "splits": {"train": {**counts, "files": [file]}},
    }  # fmt: skip
    (tmp_path / "header.json").write_bytes(sealed(header))
    (tmp_path / "tokenizer.json").write_text(codec.to_dict()["init_args"]["tokenizer_json"])
    code = (
        "import resource, torch, numpy, sys\n"
        "from ggm_lightning.data.tokens import TokenShards, Windows\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"rows = Windows(TokenShards({str(tmp_path)!r}), 'train', 1024)\n"
        "assert rows[[0, len(rows) // 2, len(rows) - 1]]['x'].sum() == 0\n"
        "print(len(rows), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(said[0]) == tokens // 1024
    assert int(said[1]) < 100_000, "kilobytes"
    assert len(TrainOrder(tokens // 1024, 512)) == -(-(tokens // 1024) // 512)


# ---------------------------------------------------------------- the command, and the real excerpt


def test_prepare_ahead_of_time(tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "a.jsonl")
    config = Path(__file__).parents[2] / "experiments" / "md4_owt.yaml"
    options = {"train": path, "tokenizer": tokenizer, "folder": tmp_path / "s", "length": 8}
    arguments = ["prepare", "--config", str(config), *(f"--data.{key}={value}" for key, value in options.items())]
    main(arguments)
    assert "train: " in capsys.readouterr().out
    main([*arguments, "--verify", "true"])
    assert "as written (train 211 document(s)" in capsys.readouterr().out
    shard = tmp_path / "s" / "train-00000.bin"
    shard.write_bytes(b"\1" + shard.read_bytes()[1:])
    with pytest.raises(SystemExit):
        main([*arguments, "--verify", "true"])
    assert "train-00000.bin: sha256 " in capsys.readouterr().err
    for wrong, message in (
        (["prepare"], "'data' is missing; give --config"),
        ([*arguments, "--data.trian", "x"], "unknown key 'data.trian'; did you mean --data.train?"),
        ([*arguments, "--verfy", "true"], "unknown key 'verfy'; did you mean --verify?"),
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert message in capsys.readouterr().err


def test_the_real_excerpt_decodes_to_itself(real_data: Path, tmp_path: Path) -> None:
    """GPT-2's own example of its encoding, and all 700 documents there and back."""
    path = real_data / "openwebtext" / "openwebtext-000-699.jsonl"
    tokenizer = real_data / "gpt2_bpe" / "tokenizer.json"
    data = OpenWebText(str(path), tokenizer=str(tokenizer), folder=str(tmp_path))
    data.prepare_data()
    assert data.codec.encode("Hello world") == [15496, 995]
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    tokens = ids(data)
    ends = np.flatnonzero(tokens == 50256)
    found = [data.codec.decode(part[None])[0] for part in np.split(tokens, ends)]
    assert [found[0], *(text.removeprefix("<|endoftext|>") for text in found[1:])] == texts
    assert (len(texts), len(tokens), data.num_classes) == (700, 760_923, 50257)
    assert (len(data.rows("train")), len(data.rows("val"))) == (728, 15)
    assert data.decode(data.rows("train")[[0]]["x"])[0].startswith("A magazine supplement with an image of Adolf")
