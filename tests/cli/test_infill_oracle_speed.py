"""Infill, oracle and speed as measures of `lightning evaluate`: rows and files, what is kept, and what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggm_lightning.cli import measure_speed
from ggm_lightning.cli.evaluation_command import run
from ggm_lightning.cli.measure import Measure, Sampling
from ggm_lightning.cli.measure_infill import Infill
from ggm_lightning.cli.measure_oracle import Oracle
from ggm_lightning.cli.measure_speed import Speed
from ggm_lightning.cli.measures import evaluate_measures
from ggm_lightning.data.toy.synthetic import MarkovChain
from ggm_lightning.report.evaluation_rows import Row
from tests.cli import small_checkpoints

draw, law = MarkovChain.draw, MarkovChain.law  # as they are, for tests that put others in their place
QUICK = Sampling(num_steps=[2], num_drawn=12)


def evaluated(
    folder: Path, family: str, measures: Sequence[Measure], sampling: Sampling = QUICK, **more: Any
) -> list[Row]:
    path = folder / "run" / "last.ckpt"
    if not path.is_file():
        small_checkpoints.write(path, family)
    return evaluate_measures(str(path), measures, sampling, limit=9, **more)


def figures(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Of each line, named by its sampler; that of the set alone is 'set'."""
    found: dict[str, dict[str, float | None]] = {}
    for row in rows:
        found.setdefault(row.key.sampler or "set", {}).update(row.figures)
    return found


def test_all_three_on_one_page(tmp_path: Path) -> None:
    """The figures, the same from the files, and computed once. The bound needs no sampler, the oracle a real row."""
    measures = [Infill(patterns=["random", "span"], shares=[0.3], infill_rows=5, infill_states=2), Oracle("exact")]
    rows = evaluated(tmp_path, "md4", [*measures, Speed(repeats=1, timed_samples=2)])
    found = figures(rows)
    assert set(found) == {"set", "real", "ancestral", "ancestral (exact denoiser)"}
    for pattern in ("random", "span"):
        assert found["set"][f"infill_bits_{pattern}_0.3"] > 1  # type: ignore[operator]
        assert 0 <= found["ancestral"][f"infill_accuracy_{pattern}_0.3"] <= 1  # type: ignore[operator]
    for name in ("real", "ancestral", "ancestral (exact denoiser)"):
        own = found[name]
        assert own["oracle_excess"] == pytest.approx(own["oracle_gap_at_most"] + own["oracle_kl_at_least"])  # type: ignore[operator]
    assert found["ancestral"]["oracle_excess"] > found["ancestral (exact denoiser)"]["oracle_excess"]  # type: ignore[operator]
    assert found["real"]["oracle_bound_excess"] > 5  # type: ignore[operator] - random weights
    assert found["ancestral"]["seconds_per_sample"] > 0  # type: ignore[operator]
    (folder,) = (tmp_path / "run" / "evaluation").iterdir()
    content = json.loads((folder / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert {row["about"]["measure"] for row in content["rows"]} == {"infill", "oracle", "speed"}
    assert all({"seconds", "device", "weights", "version", "what"} <= row["about"].keys() for row in content["rows"])
    lines = list(csv.DictReader((folder / "evaluation.csv").read_text().splitlines()))
    assert [line["sampler"] for line in lines] == ["", "ancestral", "real", "ancestral (exact denoiser)"]
    assert float(lines[1]["oracle_excess"]) == found["ancestral"]["oracle_excess"]
    page = (folder / "report.html").read_text()
    assert "infill bits span 0.3" in page
    assert "median of 1 runs of 2 samples" in page


def test_what_is_there_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluated(tmp_path, "md4", [Speed(repeats=1, timed_samples=1)])
    monkeypatch.setattr(measure_speed.speed, "measure", lambda *_: pytest.fail("measured again"))
    assert figures(evaluated(tmp_path, "md4", [Speed(repeats=1, timed_samples=1)])) == figures(first)
    with pytest.raises(pytest.fail.Exception):
        evaluated(tmp_path, "md4", [Speed(repeats=2, timed_samples=1)])


def test_kept_figures_of_another_seed_rows_or_law_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in the same folder. The seed is of the bound, and the law is the measure of all three lines."""

    def oracle(**more: Any) -> dict[str, dict[str, float | None]]:
        rows = evaluated(tmp_path, "md4", [Oracle("exact")], out=str(tmp_path / "kept"), **more)
        assert all(row.about["seed"] == more.get("seed", 0) for row in rows)
        return figures(rows)

    first = oracle()
    assert oracle() == first, "control"
    seeded = oracle(seed=5)["real"]
    assert seeded["oracle_excess"] == first["real"]["oracle_excess"], "the same rows"
    assert seeded["oracle_bound_excess"] != first["real"]["oracle_bound_excess"]

    def last_changed(data: MarkovChain, count: int, rng: np.random.Generator) -> Any:
        x = draw(data, count, rng)
        x[8] = (x[8] + 1) % 7  # the ninth is the last one that is measured
        return x

    with monkeypatch.context() as changed:
        changed.setattr(MarkovChain, "draw", last_changed)
        assert oracle()["real"]["oracle_excess"] != first["real"]["oracle_excess"]
    section = {"num_symbols": 7, "length": 11, "source_seed": 3}
    monkeypatch.setattr(MarkovChain, "law", lambda _: law(MarkovChain(**section)))  # type: ignore[arg-type]
    second = oracle()
    assert set(second) == {"real", "ancestral", "ancestral (exact denoiser)"}
    assert all(second[line]["oracle_entropy"] != first[line]["oracle_entropy"] for line in first)
    assert len(list((tmp_path / "kept" / "draws").glob("exact-*"))) == 2


def test_infilling_is_a_function_of_the_rows_and_the_seed(tmp_path: Path) -> None:
    """Whatever the batch, and however many rows there are beside them."""
    measure = Infill(patterns=["random"], shares=[0.5], infill_rows=3)
    one = figures(evaluated(tmp_path, "md4", [measure], batch_size=2))
    again = figures(evaluated(tmp_path, "md4", [measure], batch_size=64, again=True))
    for line, found in one.items():
        assert found == pytest.approx(again[line], abs=1e-6)
    other = figures(evaluated(tmp_path, "md4", [measure], seed=5))
    assert other["set"]["infill_bits_random_0.5"] != one["set"]["infill_bits_random_0.5"]


def test_from_left_to_right_the_end_is_filled_in(tmp_path: Path) -> None:
    found = figures(evaluated(tmp_path, "ar", [Infill(shares=[0.3])]))
    assert "infill_bits_end_0.3" in found["set"]
    assert "infill_accuracy_end_0.3" in found["ancestral"]
    with pytest.raises(ValueError, match=r"--patterns span: .* goes on from a known beginning alone; give end"):
        evaluated(tmp_path, "ar", [Infill(patterns=["span"])])


def test_a_family_without_a_bound_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(evaluated(tmp_path, "ggm", [Infill(patterns=["span"], shares=[0.3], infill_rows=1)]))
    assert set(found["set"]) == {"infill_guess_span_0.3"}
    assert any("infill_accuracy" in name for line in found.values() for name in line)
    assert "GGM has no bound given known sites: its states are noisy everywhere" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("family", "measure", "said"),
    [
        ("md4", Infill(shares=[1.5]), r"share is 1.5"),
        ("md4", Infill(infill_rows=0), "--infill_rows is 0"),
        ("md4", Infill(patterns=["top"]), "pattern is 'top'; choose random or span or end"),
        ("md4", Oracle("best"), "--denoiser best: choose network or exact"),
        ("ggm", Oracle("exact"), "--denoiser exact: what the network of GGM says"),
        ("md4", Speed(repeats=0), "--repeats is 0"),
    ],
)
def test_what_cannot_be_meant_is_said_before_any_work(tmp_path: Path, family: str, measure: Measure, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluated(tmp_path, family, [measure])
    assert [file.name for file in (tmp_path / "run").rglob("*") if file.is_file()] == ["last.ckpt"]


def test_data_without_a_law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MarkovChain, "law", lambda _: None)
    with pytest.raises(ValueError, match="--measures oracle: the law of MarkovChain is not known; leave it out"):
        evaluated(tmp_path, "md4", [Oracle()])


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_checkpoints.write(tmp_path / "run" / "last.ckpt", "md4")
    words = f"--ckpt_path {path} --measures [infill, oracle] --denoiser exact --patterns end span --shares .4"
    words += " --infill_rows 2 --num_steps 1 --num_drawn 4 --limit 4"
    run({}, words.split(), {})
    said = capsys.readouterr()
    assert "infill bits span 0.4" in said.out
    assert "ancestral (exact denoiser), 1 steps" in said.out
    with pytest.raises(ValueError, match="--denoiser is of the measure oracle"):
        run({}, f"--ckpt_path {path} --measures infill --denoiser exact".split(), {})
