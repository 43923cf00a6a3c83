"""Codecs from their descriptions: of today, of version 0.1.0, of a stranger; and found out before a training begins."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.pictures import Images
from ggm_lightning.codecs.text import Bytes, Characters, Integers, Subwords
from ggm_lightning.data.tokens import TokenShards, write_shards
from ggm_lightning.data.toy.demo import train_bpe
from ggm_lightning.rundir import restore
from ggm_lightning.rundir.codecs import check_loads_again, codec_from_dict
from tests.fixtures.v1 import unpacked

V = 7
STRANGER = '''
from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.text import Integers


class Words(Codec):
    def __init__(self, words: list[str]) -> None:
        self.words = tuple(words)
        self.num_classes = len(words)

    def text(self, ids):
        return " ".join(self.words[i] for i in ids)


class Shouted(Codec):
    """Another codec, in capitals."""

    def __init__(self, inner: Codec) -> None:
        self.inner, self.num_classes = inner, inner.num_classes

    def text(self, ids):
        return self.inner.text(ids).upper()


class Forgets(Codec):
    def __init__(self, words: list[str]) -> None:
        self.table = words
        self.num_classes = len(words)


class Counted(Codec):
    """Whose state is not in its arguments: the second one made decodes to something else."""

    made = 0

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        Counted.made += 1
        self.number = Counted.made

    def text(self, ids):
        return f"{self.number}: {ids}"


class Grows(Codec):
    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes + 1

    def text(self, ids):
        return str(ids)


class Padded(Codec):
    """Its argument of that name is not V, and its shape not that of an example."""

    def __init__(self, num_classes: int) -> None:
        self.real, self.num_classes, self.shape = num_classes, num_classes + 1, (3, 3)

    def to_dict(self):
        return {"class_path": "stranger_codecs.Padded", "init_args": {"num_classes": self.real}}

    def text(self, ids):
        return str(ids)


class Sets(Codec):
    def __init__(self, words: list) -> None:
        self.words = set(words)
        self.num_classes = len(words)


class Duck:
    num_classes = 7

    def to_dict(self):
        return {"class_path": "stranger_codecs.Duck", "init_args": {}}


def inside():
    class Inner(Integers):
        pass

    return Inner(7)
'''


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "stranger_codecs.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "stranger_codecs", raising=False)
    return importlib.import_module("stranger_codecs")


BEFORE = [
    (Characters("ab c", None), {"kind": "characters", "alphabet": "ab c", "unknown": None}),
    (Bytes(), {"kind": "bytes"}),
    (Integers(V), {"kind": "integers", "num_classes": V}),
    (Images(5, (3, 2, 7)), {"kind": "images", "num_classes": 5, "shape": [3, 2, 7]}),
]


@pytest.mark.parametrize(("codec", "of_before"), BEFORE, ids=[type(codec).__name__ for codec, _ in BEFORE])
def test_descriptions_and_hashes_of_before(codec: Codec, of_before: dict) -> None:
    """A kind is read, and shards that were prepared then still have the codec's hash."""
    again = codec_from_dict(of_before)
    assert type(again) is type(codec)
    assert again.to_dict() == codec.to_dict()
    canonical = json.dumps(of_before, sort_keys=True, separators=(",", ":")).encode()
    assert codec.tokenizer_hash == hashlib.sha256(canonical).hexdigest()
    described = codec.to_dict()
    assert described.keys() == {"class_path", "init_args"}
    assert codec_from_dict(json.loads(json.dumps(described))).to_dict() == described
    check_loads_again(codec)


def test_a_tokenizer_of_before() -> None:
    codec = Subwords(train_bpe("the cat sat on the mat\n" * 50, 263))
    text = codec.to_dict()["init_args"]["tokenizer_json"]
    assert codec_from_dict({"kind": "subwords", "tokenizer": text}).tokenizer_hash == codec.tokenizer_hash
    canonical = json.dumps({"kind": "subwords", "tokenizer": text}, sort_keys=True, separators=(",", ":")).encode()
    assert codec.tokenizer_hash == hashlib.sha256(canonical).hexdigest()


def test_shards_of_version_0_1_0_have_the_codec_that_they_name(tmp_path: Path) -> None:
    shards = TokenShards(unpacked(tmp_path) / "shards")
    assert "kind" in shards.header["codec"]
    assert shards.codec.tokenizer_hash == shards.header["tokenizer_hash"]


def test_a_strangers_codec_is_built_where_it_is_trusted(stranger: ModuleType) -> None:
    codec = stranger.Shouted(stranger.Words(["one", "two", "three"]))
    described = json.loads(json.dumps(codec.to_dict()))
    assert described["class_path"] == "stranger_codecs.Shouted"
    assert described["init_args"]["inner"]["init_args"] == {"words": ["one", "two", "three"]}
    again = codec_from_dict(described, trust="stranger_codecs")
    assert again.decode(torch.tensor([[2, 0]])) == codec.decode(torch.tensor([[2, 0]])) == ["THREE ONE"]
    assert again.tokenizer_hash == codec.tokenizer_hash != stranger.Words(["one", "two", "three"]).tokenizer_hash
    with pytest.raises(ValueError, match=r"names the class stranger_codecs\..*allow it: --trust stranger_codecs"):
        codec_from_dict(described)
    with pytest.raises(ValueError, match="is no Codec"):
        codec_from_dict({"class_path": "ggm_lightning.networks.transformer.Transformer", "init_args": {}})


def test_shards_of_a_strangers_codec(stranger: ModuleType, tmp_path: Path) -> None:
    codec = stranger.Words(["one", "two", "three"])
    write_shards(tmp_path / "shards", codec, {"train": [torch.tensor([0, 2, 1]).numpy()]})
    assert TokenShards(tmp_path / "shards", "stranger_codecs").codec.to_dict() == codec.to_dict()
    with pytest.raises(ValueError, match="--trust stranger_codecs"):
        _ = TokenShards(tmp_path / "shards").codec


def test_a_codec_that_comes_back_passes(stranger: ModuleType) -> None:
    check_loads_again(stranger.Words(["one", "two", "three"]), (11,))
    check_loads_again(stranger.Shouted(Bytes()), (5000,))


def test_arguments_of_a_strangers_codec_mean_what_they_mean_there(stranger: ModuleType) -> None:
    """Of this package's own the vocabulary is compared before anything of that size is made."""
    codec = stranger.Padded(V)
    check_loads_again(codec, (11,))
    model = SimpleNamespace(num_classes=V + 1, shape=(11,))
    assert restore._codec(codec.to_dict(), model, "x.ckpt", ("stranger_codecs",)).num_classes == V + 1
    with pytest.raises(ValueError, match=r"^x.ckpt: its codec is refused, it names the class stranger_codecs.Padded"):
        restore._codec(codec.to_dict(), model, "x.ckpt", ())
    with pytest.raises(ValueError, match="its codec has 7 classes, its model 8"):
        restore._codec(Integers(V).to_dict(), model, "x.ckpt", ())
    other = SimpleNamespace(num_classes=9, shape=(11,))
    with pytest.raises(ValueError, match="its codec has 8 classes, its model 9"):
        restore._codec(codec.to_dict(), other, "x.ckpt", ("stranger_codecs",))


FAULTY = {
    "Forgets": (lambda m: m.Forgets(["a", "b"]), r"its argument 'words' is not kept, .* write self\.words = words"),
    "Counted": (lambda m: m.Counted(V), "decodes the same ids to something else"),
    "Grows": (lambda m: m.Grows(V), "describes itself as"),
    "Sets": (lambda m: m.Sets(["a", "b"]), "set is not JSON serializable"),
    "Duck": (lambda m: m.Duck(), "is no Codec"),
    "inside a function": (lambda m: m.inside(), "is no name of a class"),
}


@pytest.mark.parametrize("case", FAULTY)
def test_a_codec_that_does_not_come_back_is_one_line(stranger: ModuleType, case: str, tmp_path: Path) -> None:
    make, reason = FAULTY[case]
    with pytest.raises(ValueError, match=reason) as caught:
        check_loads_again(make(stranger), (11,))
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("the codec stranger_codecs.")
    assert "could not be loaded from a checkpoint again" in line
    assert "docs/extend/codec.md" in line
    if case == "Counted":
        return  # what a shard writer sees is the description
    with pytest.raises(ValueError, match=reason):
        write_shards(tmp_path / "shards", make(stranger), {})
    assert not (tmp_path / "shards").exists()


def test_a_class_of_the_running_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has another __main__."""
    own = type("Own", (Integers,), {"__module__": "__main__"})
    monkeypatch.setattr(__import__("__main__"), "Own", own, raising=False)
    with pytest.raises(ValueError, match="stands in the program that runs"):
        check_loads_again(own(V))
