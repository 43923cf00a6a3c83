"""Judges: which tokens count, windows, and the perplexities of a known external model."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ggm_lightning.cli import measure_text, text_judges
from ggm_lightning.codecs.text import Characters, Integers
from ggm_lightning.metrics import text_judge
from ggm_lightning.metrics.text_judge import CausalLM, Scores, counted_targets
from tests.metrics import stories_judge

V, EOS = 7, 0


class Bigram(nn.Module):
    """A judge that is known: the law of a token depends on the one before it. It answers as a model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 5)
        self.head = nn.Linear(5, V)
        self.config = SimpleNamespace(max_position_embeddings=11)
        self.device = torch.device("cpu")
        self.calls = 0

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        self.calls += 1
        assert ids.shape == attention_mask.shape
        return SimpleNamespace(logits=self.head(self.embedding(ids)))


class Digits:
    """A tokeniser: a digit is a token."""

    eos_token_id = EOS

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(digit) for digit in text]}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Bigram:
    torch.manual_seed(3)
    found = Bigram()
    monkeypatch.setattr(text_judge, "_loaded", lambda name: (Digits(), found))
    return found


def nats(model: Bigram, text: str, counted: str) -> float:
    """By hand: `counted` has an x below each target that counts."""
    law = model.head(model.embedding.weight).detach().double().log_softmax(-1)
    ids = [int(digit) for digit in text]
    return -sum(float(law[ids[i - 1], ids[i]]) for i in range(1, len(ids)) if counted[i] == "x")


@pytest.mark.parametrize(
    ("row", "mdlm"),
    [
        ("12345", ".xxxx"),
        ("1230", ".xxx"),  # the first EOS counts
        ("123000", ".xxx.."),  # and none behind it
        ("10203", ".xx.x"),  # text behind the first one counts, as in the published code
        ("0120", ".xx."),  # the first one may stand at the beginning, which is no target
    ],
)
def test_which_targets_count(row: str, mdlm: str) -> None:
    ids = torch.tensor([int(digit) for digit in row])
    assert counted_targets(ids, EOS, "mdlm").tolist() == [sign == "x" for sign in mdlm[1:]]
    assert counted_targets(ids, EOS, "all").all()


def test_a_shorter_text_is_padded_and_the_first_padding_counts(model: Bigram) -> None:
    """As published: the longest text has no padding. By rule `all` padding never counts."""
    found = CausalLM("x").scores(["1234", "12", "203"])
    assert found.counted.tolist() == [3, 2, 2]
    expected = [nats(model, "1234", ".xxx"), nats(model, "120", ".xx"), nats(model, "2030", ".xx.")]
    assert found.nats.tolist() == pytest.approx(expected)
    everything = CausalLM("x", rule="all").scores(["1234", "12", "203"])
    assert everything.counted.tolist() == [3, 1, 2]
    assert everything.nats.tolist() == pytest.approx([expected[0], nats(model, "12", ".x"), nats(model, "203", ".xx")])
    assert found.features.shape == (3, 5)
    assert torch.allclose(found.features[1], model.embedding.weight[2].double())


def test_batches_change_nothing_and_leave_nothing_out(model: Bigram) -> None:
    texts = ["1234", "12", "20312", "5", "66", "", "1" * 30]
    one, all_ = (CausalLM("x").scores(texts, batch_size=size) for size in (2, 7))
    assert torch.equal(one.counted, all_.counted)
    assert torch.allclose(one.nats, all_.nats)
    assert one.features is not None
    assert torch.equal(one.features, all_.features)
    assert one.counted.tolist() == [4, 2, 4, 1, 2, 0, 10]
    assert one.cut == 19


def test_windows_count_every_token_once(model: Bigram) -> None:
    """For a law of the token before, windows are exact. Control: without a stride the rest is cut."""
    text = "".join(str(1 + i % 6) for i in range(40)) + "0" + "12" * 5
    for stride in (1, 3, 10):
        found = CausalLM("x", rule="all", stride=stride).scores([text, "12"])
        assert (found.counted.tolist(), found.cut) == ([50, 1], 0)
        assert found.nats[0].item() == pytest.approx(nats(model, text, "." + "x" * 50))
    assert CausalLM("x", rule="all").scores([text]).cut == 40
    assert CausalLM("x", stride=3).scores([text, "0"]).counted.tolist() == [50, 0]
    with pytest.raises(ValueError, match="--stride is 11; it must be at least 1 and below the judge's 11"):
        CausalLM("x", stride=11)
    with pytest.raises(ValueError, match="--judge_rule is 'mine'; choose mdlm or all"):
        CausalLM("x", rule="mine")


class Pairs:
    """A tokeniser: "1a" and "1b" are the token 1. `is_fast`, it says which characters a token stands for."""

    eos_token_id = EOS

    def __init__(self, is_fast: bool) -> None:
        self.is_fast = is_fast

    def __call__(self, text: str, return_offsets_mapping: bool = False) -> dict[str, list[Any]]:
        starts = range(0, len(text), 2)
        found: dict[str, list[Any]] = {"input_ids": [1, *(int(text[i]) for i in starts)]}  # behind a beginning
        if return_offsets_mapping:
            assert self.is_fast, "the others raise here"
            found["offset_mapping"] = [(0, 0), *((i, i + 2) for i in starts)]
        return found


def test_bits_per_character_are_of_the_characters_that_were_read(
    model: Bigram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cut text: 10 tokens of two characters behind one that stands for none. Control: of the whole text the figure
    is another, and where the tokenizer does not say what was cut, there is none."""
    codec = Characters("123456ab")
    long, short = "".join(f"{1 + i % 5}a" for i in range(23)), "2a3a"
    digits = "1" + long[::2]

    def found(is_fast: bool, text: str, stride: int | None = None) -> tuple[float | None, Scores]:
        monkeypatch.setattr(text_judge, "_loaded", lambda name: (Pairs(is_fast), model))
        judge = text_judges.OfTransformers(CausalLM("x", rule="all", stride=stride), "contents")
        x = torch.tensor([codec.encode(text)] * 2)
        scores = judge.scores(x, codec.decode(x))
        trial: Any = SimpleNamespace(judge=judge, scores=lambda rows: scores)
        figures = {name: value for name, (value, _) in measure_text._judged(trial, x)}
        return figures.get("judge_bits_per_character"), scores

    value, scores = found(True, long)
    assert (scores.cut, scores.characters) == (26, 2 * 20)
    assert value == pytest.approx(nats(model, digits[:11], "." + "x" * 10) / 20 / math.log(2))
    whole, scores = found(True, long, stride=3)
    assert (scores.cut, scores.characters) == (0, 2 * 46)
    assert whole == pytest.approx(nats(model, digits, "." + "x" * 23) / 46 / math.log(2))
    assert found(False, long)[0] is None
    assert found(False, short)[0] == found(True, short)[0] == pytest.approx(nats(model, "123", ".xx") / 4 / math.log(2))


def test_the_error_is_that_of_a_ratio() -> None:
    """Texts of different lengths, drawn 300 times."""
    generator = torch.Generator().manual_seed(0)
    counted = torch.randint(1, 50, (300, 53), generator=generator)
    drawn = counted * 2.0 + counted.sqrt() * torch.randn(300, 53, generator=generator)
    found = [Scores(a.double(), c, 0, None).per_token() for a, c in zip(drawn, counted, strict=True)]
    values, errors = torch.tensor(found, dtype=torch.float64).T
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.15)
    assert math.isnan(Scores(torch.zeros(2), torch.zeros(2, dtype=torch.int64), 0, None).per_token()[0])


@pytest.mark.slow
def test_the_external_judge(real_data: Path, tmp_path: Path) -> None:
    """stories260K: a story of its kind, and the same words shuffled."""
    source = real_data / "stories260K"
    if not source.is_dir():
        pytest.skip(f"no stories260K in {real_data}")
    judge = CausalLM(stories_judge.make(source, tmp_path / "judge"))
    words = stories_judge.STORY.split()
    random.Random(0).shuffle(words)
    for text, perplexity in ((stories_judge.STORY, 1.58), (" ".join(words), 349)):
        found = judge.scores([text])
        assert (found.counted.tolist(), found.cut) == ([65], 0)
        assert math.exp(found.per_token()[0]) == pytest.approx(perplexity, rel=0.01)
    long = judge.scores([stories_judge.STORY * 15])
    assert (long.cut, long.counted.tolist()) == (492, [511])
    with pytest.raises(ValueError, match="no causal language model that can be loaded"):
        CausalLM(str(tmp_path))


def test_a_judge_of_the_command_is_loaded_once_and_known_by_its_weights(
    model: Bigram, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def load(name: str) -> tuple[Digits, Bigram]:
        loads.append(name)
        return Digits(), model

    monkeypatch.setattr(text_judge, "_loaded", load)
    family: Any = SimpleNamespace(codec=Characters("12345"), device="cpu")
    found = [text_judges.find("a_judge", family, "x", "mdlm", None, 8, "auto", ()) for _ in range(2)]
    assert loads == ["a_judge"]
    x, texts = torch.zeros(2, 4, dtype=torch.int64), ["1234", "12"]
    assert found[0].scores(x, texts).counted.tolist() == [3, 2]
    assert [one.split(" (")[0] for one in found[0].departures(1024)] == ["judge a_judge"]
    assert found[0].identity["longest"] == 11
    text_judges._of_transformers.cache_clear()
    with torch.no_grad():
        model.head.bias[0] += 1
    other = text_judges.find("a_judge", family, "x", "all", 3, 8, "auto", ())
    assert other.identity["weights"] != found[0].identity["weights"]
    names = ["judge a_judge (None layers", "rule all", "long texts in windows"]
    assert [one.split(",")[0] for one in other.departures(7)] == names
    text_judges._of_transformers.cache_clear()
    for codec in (None, Integers(7)):
        nameless: Any = SimpleNamespace(codec=codec, device="cpu")
        with pytest.raises(ValueError, match="reads texts, and the checkpoint's ids have none"):
            text_judges.find("a_judge", nameless, "x", "mdlm", None, 8, "auto", ())


def test_what_departs_from_the_published_judge(model: Bigram) -> None:
    """It is known by its shape: a folder may be called anything."""
    shape = {"num_hidden_layers": 36, "hidden_size": 1280, "vocab_size": 50257}
    model.config = SimpleNamespace(max_position_embeddings=11, **shape)
    judge = text_judges.OfTransformers(CausalLM("mine/any_name"), "contents")
    assert judge.departures(1024) == []
    assert judge.departures(512) == ["rows of 512 tokens, published 1,024"]
    judge = text_judges.OfTransformers(CausalLM("mine/gpt2-large"), "contents")
    model.config.num_hidden_layers = 5
    (line,) = judge.departures(1024)
    assert line == (
        "judge mine/gpt2-large (5 layers, width 1280, vocabulary 50257), "
        "published gpt2-large (36 layers, width 1280, vocabulary 50257)"
    )


@pytest.mark.parametrize("name", ["runs/ar_demo/last.ckpt", "last.ckpt", "a/b/c"])
def test_a_file_that_is_not_there_is_no_name_of_a_model(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"--judge {name}: there is no such file or folder"):
        text_judge._loaded(name)
