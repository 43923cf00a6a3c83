"""The sets of the zero-shot tables: which examples, which tokens, which blocks, and one line for each mistake."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from ggm_lightning.codecs.text import END_OF_TEXT, Subwords
from ggm_lightning.data import zeroshot
from ggm_lightning.data.detokenise import DETOKENISERS
from ggm_lightning.data.tokens import TokenShards
from ggm_lightning.data.toy.demo import train_bpe
from ggm_lightning.data.zeroshot import ZeroShotText, divided
from ggm_lightning.data.zeroshot_sets import SETS

WIKI = " \n = Robert = \n \n He had a guest @-@ starring role , in 2000 . \n \n = = Life = = \n \n Born 1 @,@ 900 . \n"
PTB = " no it was n't black monday \n but <unk> rose N N to $ N billion \n it \\/ she said <unk> \n"
LM1B = "But now , it 's here .\nWho knows ?\nAll of $ 5 .\n"
LAMBADA = ["\u201cNo,\u201d she said.\n\nThen he left ", "A stone is \u2018clear\u2019", "The end of it"]
FILES = {"wikitext103": "wiki.test.raw", "ptb": "ptb.test.txt", "lm1b": "news.en.heldout-00000-of-00050"}
TEXTS = {"wikitext103": WIKI, "ptb": PTB, "lm1b": LM1B}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level tokenizer with <|endoftext|>, id 300."""
    trained = json.loads(train_bpe(" ".join([*TEXTS.values(), *LAMBADA]) * 9, 300))
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    size = max(trained["model"]["vocab"].values()) + 1
    trained["added_tokens"] = [{"id": size, "content": END_OF_TEXT, **special}]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(trained))
    return path


def raw_file(folder: Path, dataset: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILES.get(dataset, "lambada_test.jsonl")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in LAMBADA)
    path.write_text(TEXTS.get(dataset, lines), encoding="utf-8")
    return path


def hub_rows(dataset: str) -> list[str]:
    """As the hub has them: WikiText's lines with their ends and blank ones empty, the others' stripped."""
    if dataset == "lambada":
        return LAMBADA
    lines = TEXTS[dataset].splitlines(keepends=True)
    return [line if line.strip() else "" for line in lines] if dataset == "wikitext103" else [s.strip() for s in lines]


def prepared(path: Any, dataset: str, tokenizer: Path, **kwargs: Any) -> ZeroShotText:
    place = Path(path).parent if isinstance(path, Path) else Path(path[0]).parent
    given = {"tokenizer": str(tokenizer), "length": 5, "group": None, "folder": str(place / "shards"), **kwargs}
    data = ZeroShotText(dataset, [str(p) for p in path] if isinstance(path, list) else str(path), **given)
    data.prepare_data()
    data.setup("test")
    return data


def stream(data: ZeroShotText) -> list[int]:
    shards = TokenShards(data.folder)
    return shards.read("test", np.array([0]), shards.tokens("test"))[0].tolist()


@pytest.mark.parametrize("dataset", ["lambada", "wikitext103", "ptb", "lm1b"])
def test_an_example_is_detokenised_encoded_alone_and_ended(tmp_path: Path, tokenizer: Path, dataset: str) -> None:
    """Against the pipeline written out here: rows of the hub, rule, tokens, end-of-text behind each, in one row."""
    codec = Subwords(tokenizer.read_text())
    rule = DETOKENISERS[SETS[dataset].detokeniser]
    end = codec.token_id(END_OF_TEXT)
    wanted: list[int] = []
    for row in hub_rows(dataset):
        wanted += [*codec.encode(rule(row) if row else ""), end]
    data = prepared(raw_file(tmp_path, dataset), dataset, tokenizer, length=1)
    assert stream(data) == wanted
    assert wanted.count(end) == len(hub_rows(dataset)) == TokenShards(data.folder).documents("test")
    texts = codec.decode(np.array([wanted]))[0].split(END_OF_TEXT)
    assert texts[:-1] == [rule(row) if row else "" for row in hub_rows(dataset)]
    assert TokenShards(data.folder).characters("test") == sum(map(len, texts))
    assert data.characters_per_token == sum(map(len, texts)) / len(wanted)
    assert (data.num_classes, data.shape) == (codec.num_classes, (1,))


@pytest.mark.parametrize("dataset", ["lambada", "wikitext103", "ptb", "lm1b"])
def test_parquet_raw_and_hub_give_the_same_tokens(
    tmp_path: Path, tokenizer: Path, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    entry = SETS[dataset]
    of_raw = prepared(raw_file(tmp_path / "raw", dataset).parent, dataset, tokenizer, folder=str(tmp_path / "a"))
    (tmp_path / "hub").mkdir()
    table = pyarrow.table({"number": range(len(hub_rows(dataset))), entry.column: hub_rows(dataset)})
    pyarrow.parquet.write_table(table, tmp_path / "hub" / "test-00000-of-00001.parquet", row_group_size=2)
    of_parquet = prepared(tmp_path / "hub", dataset, tokenizer, folder=str(tmp_path / "b"))
    asked = {}

    def load_dataset(path: str, **how: Any) -> datasets.Dataset:
        asked.update(how, path=path)
        return datasets.Dataset(table)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    of_hub = prepared(Path("hub:"), dataset, tokenizer, folder=str(tmp_path / "c"))
    assert stream(of_raw) == stream(of_parquet) == stream(of_hub)
    assert (asked["path"], asked["name"], asked["split"]) == (*entry.hub[:2], "test")
    monkeypatch.setattr(datasets, "load_dataset", None)  # what was made from a name is kept without asking again
    assert len(prepared(Path("hub:"), dataset, tokenizer, folder=str(tmp_path / "c")).rows("val")) > 0


def test_groups_by_hand(tmp_path: Path) -> None:
    """As bytes a newline ends each example: 4 + 3 + 6 | 2 + 5 characters in blocks of 4."""
    path = tmp_path / "ptb.test.txt"
    path.write_text("abc\nde\nfghij\nk\nlmno\n")

    def texts(group: int | None) -> list[str]:
        data = prepared(path, "ptb", Path("bytes"), length=4, group=group, folder=str(tmp_path / f"s{group}"))
        assert data.characters_per_token == 1.0
        return data.decode(data.rows("test")[list(range(len(data.rows("test"))))]["x"])

    assert texts(None) == ["abc\n", "de\nf", "ghij", "\nk\nl", "mno\n"]
    assert texts(3) == ["abc\n", "de\nf", "ghij", "k\nlm"]  # the newline behind fghij and no\n are left over
    assert texts(2) == ["abc\n", "fghi", "j\nk\n", "lmno"]
    assert texts(1) == ["abc\n", "fghi", "lmno"]
    assert texts(99) == texts(None)


def test_groups_do_not_depend_on_what_is_encoded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = raw_file(tmp_path, "wikitext103")
    whole = prepared(path, "wikitext103", Path("bytes"), length=7)
    tokens, per_token = stream(whole), whole.characters_per_token
    monkeypatch.setattr(zeroshot, "_TOGETHER", 2)
    again = prepared(path, "wikitext103", Path("bytes"), length=7, folder=str(tmp_path / "other"))
    assert (stream(again), again.characters_per_token) == (tokens, per_token)


def test_characters_on_both_sides_of_a_cut() -> None:
    examples = [(np.arange(3), 3), (np.arange(4), 4), (np.arange(2), 2)]
    text_of = lambda ids: "x" * len(ids)  # noqa: E731
    for kept in range(10):
        characters, rest = divided(list(examples), kept, text_of)
        assert characters == kept
        assert sum(length for _, length in rest) == sum(len(ids) for ids, _ in rest) == 9 - kept


def test_kept_until_something_changes(tmp_path: Path, tokenizer: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = raw_file(tmp_path, "ptb")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").propagate = True
    logging.getLogger("lightning.pytorch").propagate = True

    def said(with_tokenizer: Path = tokenizer, **kwargs: Any) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            prepared(path, "ptb", with_tokenizer, **kwargs)
        return caplog.text

    built = said()
    assert "built (no finished shards there): test 3 document(s)" in built
    assert "3 examples, but the test part of PTB has 3,761" in built
    assert "left over at the ends of groups" in built
    path.touch()
    assert "kept (test 3 document(s)" in said()
    for arguments, options in (((), {"length": 4}), ((), {"group": 1000}), ((Path("bytes"),), {})):
        with pytest.raises(ValueError, match="holds data made with"):
            said(*arguments, **options)
    path.write_text(PTB.replace("black", "white"))
    assert "the source files differ" in said()
    assert (
        ZeroShotText("ptb", tokenizer="bytes", length=3).folder
        != ZeroShotText("ptb", tokenizer="bytes", length=4).folder
    )


def test_a_model_completes_what_is_open() -> None:
    data = ZeroShotText("lambada")
    for key in ("num_classes", "shape"):
        with pytest.raises(ValueError, match=r"is open: `lightning evaluate` takes the"):
            getattr(data, key)
    codec = Subwords(train_bpe("abc " * 9, 258))
    data.complete(codec, (13,))
    assert (data.codec, data.shape) == (codec, (13,))
    named = ZeroShotText("lambada", tokenizer="bytes", length=7)
    named.complete(codec, (13,))
    assert (named.num_classes, named.shape) == (256, (7,))
    assert ZeroShotText("wikitext2").part == "train"
    assert ZeroShotText("wikitext2").path == "data/wikitext2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "lambda"}, "data.dataset is 'lambda'; choose one of lambada, wikitext2"),
        ({"dataset": "lm1b", "part": "train"}, "data.part is 'train'; lm1b has test"),
        ({"dataset": "ptb", "length": 0}, "data.length is 0; it must be at least 1"),
        ({"dataset": "ptb", "group": 0}, "data.group is 0; it must be at least 1"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ZeroShotText(**arguments)


def test_wrong_files(tmp_path: Path) -> None:
    def refused(message: str, path: Path, dataset: str = "ptb", **kwargs: Any) -> None:
        with pytest.raises((ValueError, FileNotFoundError)) as stop:
            prepared(path, dataset, Path("bytes"), folder=str(tmp_path / "shards"), **kwargs)
        assert message in str(stop.value)
        assert "\n" not in str(stop.value)
        assert not (tmp_path / "shards" / "header.json").exists()

    refused("has no ptb.test.txt or test-*.parquet or test/*.parquet; get ptb.test.txt of Mikolov's", tmp_path / "no")
    (tmp_path / "ptb.test.txt").write_text("")
    refused("0 characters of text, the file is empty", tmp_path)
    (tmp_path / "ptb.test.txt").write_text("ab\n")
    refused("no text of its 1 examples fills a block of 99 tokens", tmp_path, length=99)
    refused("no group of its 1 examples fills a block of 99 tokens", tmp_path, length=99, group=1000)
    refused("is of the part test, but data.part is valid", tmp_path / "ptb.test.txt", part="valid")
    (tmp_path / "ptb.test.txt").write_bytes(b"fine\nnot \xff fine\n")
    refused("not UTF-8 at byte 9 (line 2", tmp_path)
    (tmp_path / "lambada_test.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(ValueError, match="line 2 is not JSON") as stop:
        prepared(tmp_path, "lambada", Path("bytes"))
    assert "on_error" not in str(stop.value)  # these sets have no such option: an example left out changes the figure
    (tmp_path / "lambada_test.jsonl").write_text('{"body": "fine"}\n')
    refused("has no text in 'text', it has 'body'; set data.text_key", tmp_path, "lambada")
    assert len(prepared(tmp_path, "lambada", Path("bytes"), text_key="body").rows("val")) == 1


def test_wrong_parquet(tmp_path: Path) -> None:
    path = tmp_path / "test-00000.parquet"

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            prepared(path, "ptb", Path("bytes"))

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a b c"]}), path)
    refused("no column 'sentence', it has text; set data.text_key")
    pyarrow.parquet.write_table(pyarrow.table({"sentence": [1, 2]}), path)
    refused("column 'sentence' holds int64, no text")
    pyarrow.parquet.write_table(pyarrow.table({"sentence": ["a", None]}), path)
    refused("row 2 has no text; fill it")
    pyarrow.parquet.write_table(pyarrow.table({"sentence": ["a b c"] * 99}), path)
    path.write_bytes(path.read_bytes()[:-20])
    refused("not a whole parquet file")


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fails(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto the host")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(
        ValueError,
        match=r"hub:ptb-text-only/ptb_text_only: no route to the host; check the name and the network, or get ptb",
    ):
        prepared(Path("hub:"), "ptb", Path("bytes"), folder=str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(ValueError, match=r"no column .sentence., it has text"):
        prepared(Path("hub:mine/ptb"), "ptb", Path("bytes"), folder=str(tmp_path))


def test_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    data = prepared(raw_file(tmp_path, "ptb"), "ptb", Path("bytes"))
    with pytest.raises(ValueError, match="ptb is there to be evaluated on and has no training split; use `lightning"):
        data.setup("fit")
    assert data.rows("val")[[0]]["x"].tolist() == data.rows("test")[[0]]["x"].tolist()
    assert [len(batch["x"]) for batch in data.test_dataloader()] == [len(data.rows("val"))]


@pytest.mark.parametrize(
    ("dataset", "path", "examples", "blocks", "ungrouped", "first"),
    [
        ("lambada", "lambada/lambada_test.first500.jsonl", 500, 40, 40, "\nIn my palm is a clear stone, and inside it"),
        ("wikitext103", "wikitext2", 4358, 267, 268, "<|endoftext|> = Robert Boulter =\n<|endoftext|><|endoftext|> Ro"),
        ("lm1b", "lm1b/1b_benchmark.dev.tokens", 12216, 342, 348, "But now, it's looking like the page that list Reps"),
    ],
)
def test_excerpts_by_gpt2(
    real_data: Path, tmp_path: Path, dataset: str, path: str, examples: int, blocks: int, ungrouped: int, first: str
) -> None:
    gpt2 = real_data / "gpt2_bpe" / "tokenizer.json"
    given = {"length": 1024, "group": 1000, "folder": str(tmp_path)}
    data = prepared(real_data / path, dataset, gpt2, **given)
    x = data.rows("test")[list(range(blocks))]["x"]
    assert len(data.rows("test")) == blocks
    assert TokenShards(tmp_path).documents("test") == examples
    assert data.decode(x[:1])[0].startswith(first)
    assert 0.97 * examples < (x == 50256).sum() <= examples
    if dataset != "lm1b":  # enough to see the other rule once
        strung = {**given, "group": None, "folder": str(tmp_path / "strung")}
        assert len(prepared(real_data / path, dataset, gpt2, **strung).rows("test")) == ungrouped
