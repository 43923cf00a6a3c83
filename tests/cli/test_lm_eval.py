"""The model class of lm-evaluation-harness: scores against enumeration, too long requests, and one task offline."""

from __future__ import annotations

import itertools
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ggm_lightning.codecs.text import Characters
from ggm_lightning.sampling import conditional
from tests.cli import small_checkpoints

# `make test-slow` installs it, and says so: there nothing is passed over
if "GGM_EXTRAS" not in os.environ:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed: make test-slow installs it")

from ggm_lightning.cli.lm_eval import Harness

pytestmark = pytest.mark.slow

LETTERS = "abcdefg"


@dataclass
class Asked:
    """As an Instance of the harness, which is slow to import."""

    args: tuple[Any, ...]
    doc_id: int | None = None


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, codec = tmp_path_factory.mktemp("harness"), Characters(LETTERS, unknown=None)
    return {name: small_checkpoints.write(folder / f"{name}.ckpt", name, codec=codec) for name in ("md4", "ar", "ggm")}


def test_one_token_more_adds_up_to_one(checkpoints: dict[str, str]) -> None:
    """p of all continuations of one token, of either family; and of two, where it is exact. Control: with less
    context other scores."""
    for family, length in (("md4", 1), ("ar", 2)):
        model = Harness(checkpoints[family], num_samples=1)
        ends = ["".join(letters) for letters in itertools.product(LETTERS, repeat=length)]
        found = model.loglikelihood([Asked(("abca", end)) for end in ends])
        p = torch.tensor([score for score, _ in found], dtype=torch.float64).exp()
        assert float(p.sum()) == pytest.approx(1, abs=1e-5)
        if length == 1:
            assert [greedy for _, greedy in found] == (p == p.max()).tolist()
        assert sum(greedy for _, greedy in found) == 1
        other = model.loglikelihood([Asked(("bca", end)) for end in ends])
        assert max(abs(a - b) for (a, _), (b, _) in zip(found, other, strict=True)) > 1e-2


def test_the_sum_over_tokens_by_enumeration(checkpoints: dict[str, str]) -> None:
    """Three tokens behind two: minus eq. (1) of sampling/conditional.py, summed over all states. Controls: the mean
    over the tokens, and what lies behind them counted as well."""
    harness = Harness(checkpoints["md4"], num_samples=3, batch_size=600)
    model = harness.loaded.model
    n = model.num_sites
    x = torch.zeros(1, n, dtype=torch.int64)
    x[0, :5] = torch.tensor([0, 1, 2, 3, 4])
    known, asked = torch.arange(n) < 2, (torch.arange(n) >= 2) & (torch.arange(n) < 5)
    right = 0.0
    for size in (1, 2, 3):
        found = []
        for some in itertools.combinations((2, 3, 4), size):
            masked = ~(known | asked)
            masked[list(some)] = True
            with model.evaluating():
                found.append(float(conditional.terms(model, model._plain_denoiser, x, asked[None], masked[None])))
        right -= sum(found) / len(found) / 3
    scores = harness.loglikelihood([Asked(("ab", "cde"), number) for number in range(1200)])
    drawn = torch.tensor([score for score, _ in scores], dtype=torch.float64)
    tolerance = 4 * float(drawn.std()) / math.sqrt(len(drawn))
    assert float(drawn.mean()) == pytest.approx(right, abs=tolerance)
    assert abs(float(drawn.mean()) / 3 - right) > 10 * tolerance
    everything = conditional.bound(model, x.expand(400, n), known.expand(400, n), num_samples=3)
    assert abs(float(everything.mean()) + right) > 10 * tolerance


def test_what_is_too_long_is_cut_or_scored_in_pieces_and_never_free(
    checkpoints: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """11 tokens: a context loses its beginning; a continuation is scored 5 tokens at a time, each behind what is before
    it."""
    model = Harness(checkpoints["ar"])
    long = "abcdefgabcdefg"
    cut, short = model.loglikelihood([Asked((long, "ba")), Asked((long[-9:], "ba"))])
    assert cut == short
    assert "ggm: 1 of 2 contexts lost their beginning to fit into 11 tokens" in capsys.readouterr().err
    (whole,) = model.loglikelihood_rolling([Asked((long,))])
    assert "ggm: 1 of 1 continuations are longer than 11 tokens" in capsys.readouterr().err
    parts = [("", long[:5]), (long[:5], long[5:10]), (long[3:10], long[10:])]
    expected = sum(model.loglikelihood([Asked(part)])[0][0] for part in parts)
    assert whole == pytest.approx(expected, abs=1e-5)
    assert whole < -14  # 14 tokens of 7 kinds
    with pytest.raises(ValueError, match="request 0: the continuation '' has no token to be scored"):
        model.loglikelihood([Asked(("ab", ""))])


def test_noise_is_that_of_the_document_whatever_the_batch(checkpoints: dict[str, str]) -> None:
    requests = [Asked(("abc", "defa"), 5), Asked(("abc", "defb"), 5), Asked(("abc", "defa"), 6)]
    together = Harness(checkpoints["md4"], num_samples=1).loglikelihood(requests)
    alone = Harness(checkpoints["md4"], num_samples=1, batch_size=1).loglikelihood(requests[:1])
    assert alone[0][0] == pytest.approx(together[0][0], abs=1e-4)
    assert abs(together[0][0] - together[2][0]) > 1e-2


def test_continuations_in_text(checkpoints: dict[str, str]) -> None:
    model = Harness(checkpoints["ar"], num_steps=3)
    options = {"until": ["\n"], "max_gen_toks": 4}
    (text,) = model.generate_until([Asked(("abcab", options))])
    assert len(text) == 4
    assert model.loglikelihood([Asked(("abcab", text))])[0][1]  # what is written greedily is greedy
    (stopped,) = model.generate_until([Asked(("abcab", options | {"until": text[2]}))])
    assert stopped == text.split(text[2])[0]


def test_the_harness_s_own_default_is_no_error(
    checkpoints: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without a GPU, whatever this one has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Harness(checkpoints["ar"], device="cuda:0").loaded.model.device.type == "cpu"
    assert "ggm: no cuda:0 here" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--device cuda:99"):
        Harness(checkpoints["ar"], device="cuda:99")


def test_who_has_no_scores(checkpoints: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GGM has no bound given known sites"):
        Harness(checkpoints["ggm"])


TASK = """task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}]
"""


@pytest.mark.slow
def test_a_task_of_the_harness_without_a_network(
    checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its accuracy is that of the scores by hand."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    choices = ["ab", "cd", "ef"]
    documents = [{"context": f"abc{letter}", "choices": choices, "answer": i % 3} for i, letter in enumerate(LETTERS)]
    lines = tmp_path / "letters.jsonl"
    lines.write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    (tmp_path / "letters.yaml").write_text(TASK % lines, encoding="utf-8")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(
        model="ggm", model_args={"ckpt_path": checkpoints["ar"]}, tasks=["letters"], task_manager=manager
    )
    assert found is not None
    model = Harness(checkpoints["ar"])
    right = 0
    for one in documents:
        scores = [model.loglikelihood([Asked((one["context"], choice))])[0][0] for choice in choices]
        right += scores.index(max(scores)) == one["answer"]
    assert found["results"]["letters"]["acc,none"] == pytest.approx(right / len(documents))
