"""`lightning evaluate --measures`: nothing is computed twice, mistakes are found before work, nonsense is seen."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ggm_lightning.cli import evaluate as evaluation
from ggm_lightning.cli import measure_text, text_judges
from ggm_lightning.cli.loading import load_family
from ggm_lightning.cli.main import main
from ggm_lightning.cli.measure import Sampling
from ggm_lightning.cli.measure_files import CellFile
from ggm_lightning.cli.measure_likelihood import Likelihood
from ggm_lightning.cli.measure_text import Text
from ggm_lightning.cli.measures import evaluate_measures
from ggm_lightning.codecs.text import Characters
from ggm_lightning.data.fingerprints import hash_of_ids, hash_of_rows
from ggm_lightning.data.rows import Rows
from ggm_lightning.data.toy.synthetic import MarkovChain
from ggm_lightning.metrics.jensen_shannon import jensen_shannon
from ggm_lightning.report.evaluation_rows import Key, Row
from ggm_lightning.rundir import exported
from tests.cli.small_checkpoints import SOURCE, N, V, model_and_judge, write
from tests.cli.test_sweep import Killer, linear_calls

MD4 = ["--ckpt_path", "runs/md4/last.ckpt"]
DRAWN = ["--num_steps", "2", "5", "--num_drawn", "6"]
BOTH = [*MD4, "--measures", "[likelihood, text]", "--judge", "runs/ar/last.ckpt", *DRAWN]
_TIMES = ("_seconds", "_date")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return model_and_judge(tmp_path)


def run(*arguments: str) -> None:
    main(["evaluate", *arguments])


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line, before the network was called."""
    capsys.readouterr()
    with linear_calls() as calls, pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert (stop.value.code, calls) == (2, [])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def table(folder: Path) -> list[dict[str, str]]:
    """evaluation.csv without times."""
    with (folder / "evaluation.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.endswith(_TIMES)} for row in csv.DictReader(file)]


DEFAULT = Path("runs/md4/evaluation/step3-val-seed0")


def test_every_row_says_what_it_depends_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*BOTH)
    content = json.loads((DEFAULT / "evaluation.json").read_text())
    told = [(row["about"]["measure"], row["key"]["sampler"], row["key"]["num_steps"]) for row in content["rows"]]
    assert told == [
        ("likelihood", None, None),
        ("text", "real", None),
        ("text", "ancestral", 2),
        ("text", "ancestral", 5),
    ]
    real = MarkovChain(**SOURCE).rows("val")
    for row in content["rows"]:
        about = row["about"]
        assert (about["device"], about["precision"], about["precision_of_draws"]) == ("cpu", "32", "float64")
        assert (about["weights"], about["version"]) == ("raw", "0.1.0")
        assert about["seconds"] >= 0
        assert about["protocol"]
    bound, text, drawn, _ = content["rows"]
    assert bound["about"]["reference_hash"] == hash_of_rows(real)
    assert text["about"]["samples_hash"] != text["about"]["reference_hash"]
    assert drawn["about"]["reference_hash"] == text["about"]["reference_hash"]
    assert (drawn["about"]["seed"], drawn["about"]["sampler"], drawn["about"]["samples"]) == (0, "ancestral", 6)
    assert 0 < drawn["about"]["rows_per_sample"] <= 2
    with np.load(next(DEFAULT.glob("draws/*-2steps-*/samples.npz"))) as arrays:
        assert drawn["about"]["samples_hash"] == hash_of_ids(torch.from_numpy(arrays["x"]))
    for name in ("gen_ppl", "entropy_nats", "entropy_bits", "distinct_4", "repeated_4_grams", "duplicates", "js_4"):
        assert f"{name}_stderr" in drawn["figures"]
        assert name in text["figures"]
    low, mean, high = (drawn["figures"][name] for name in ("mauve_lowest", "mauve", "mauve_highest"))
    assert low - 1e-9 <= mean <= high + 1e-9
    page = (DEFAULT / "report.html").read_text()
    for words in ("MD4-S 22.13", "gpt2-large", "real text", "ancestral, 5 steps", "MAUVE of 6 texts"):
        assert words in page
    printed = capsys.readouterr().out
    assert "departs from the protocol: text: judge runs/ar/last.ckpt by its own tokens" in printed
    assert "departs from the protocol: text: MAUVE of 6 samples, published 5,000" in printed


def test_interrupted_at_any_cell_it_goes_on_with_the_same_figures(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*BOTH, "--out", "undisturbed")
    killer = Killer(monkeypatch)
    real = measure_text._judged
    judged: list[int] = []

    def stop_at(number: int) -> None:
        def once(*given: Any) -> Any:
            judged.append(1)
            if len(judged) == number:
                raise KeyboardInterrupt
            return real(*given)

        monkeypatch.setattr(measure_text, "_judged", once)

    for number in (1, 2, 1):  # of the cells of text that are left: before the first, after one, before the last
        judged.clear()
        stop_at(number)
        with pytest.raises(SystemExit) as stop:
            run(*BOTH, "--out", "out")
        assert stop.value.code == 130
        monkeypatch.setattr(measure_text, "_judged", real)
    run(*BOTH, "--out", "out")
    assert killer.calls == 2  # each plan is drawn once
    assert table(Path("out")) == table(Path("undisturbed"))
    with linear_calls() as calls:
        run(*BOTH, "--out", "out")
    assert calls == []


def test_figures_that_were_there_before_are_taken(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of `lightning evaluate` alone. Control: a file that says other rows is not."""
    run(*MD4)
    file = Path("runs/md4/evaluation-step3-val-1samples-seed0/MarkovChain.json")
    content = json.loads(file.read_text())
    old = {key: value for key, value in content.items() if key != "measured_rows_hash"}
    file.write_text(json.dumps(old))
    with linear_calls() as calls:
        run(*MD4, "--measures", "likelihood")
    assert calls == []
    assert "measured already" in capsys.readouterr().err
    assert table(DEFAULT)[0]["nelbo"] == repr(content["nelbo"])
    file.write_text(json.dumps(content | {"measured_rows_hash": "0"}))
    with linear_calls() as calls:
        run(*MD4, "--measures", "likelihood")
    assert calls != []


def test_a_hash_covers_every_row() -> None:
    x = np.arange(2 * 1500 * 3).reshape(-1, 3) % V
    changed = x.copy()
    changed[2101, 1] += 1
    assert hash_of_rows(Rows(x)) == hash_of_ids(torch.from_numpy(x))
    assert hash_of_rows(Rows(changed)) != hash_of_rows(Rows(x))
    assert hash_of_rows(Rows(changed), 2101) == hash_of_rows(Rows(x), 2101) == hash_of_rows(Rows(x[:2101]))
    assert hash_of_ids(torch.zeros(2, 3)) != hash_of_ids(torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--measures", "text,beauty"], "'beauty' is unknown; there are likelihood, text"),
        (["--measures", "text", "text"], "give each measure once"),
        (["--measures", "likelihood", "--judge", "runs/ar/last.ckpt"], "--judge is of the measure text"),
        (["--measures", "likelihood", "--num_drawn", "5"], "no measure looks at samples"),
        (["--num_drawn", "5"], "are for --measures that look at samples"),
        (["--measures", "text", "--num_drawn", "1"], "--num_drawn is 1; it must be at least 2"),
        (["--measures", "text", "--num_steps", "5", "5"], "none twice"),
        (["--measures", "text", "--sampler", "nothing"], "unknown"),
        (["--measures", "text", "--limit", "3"], "of 40 and --limit 3 there are too few"),
        (["--measures", "text", "--judge", "runs/md4/last.ckpt"], "give an AutoregressiveModel"),
        (["--measures", "text", "--judge", "other/last.ckpt"], "is a model of 11 tokens of Characters"),
        (["--measures", "text", "--judge", "some/folder"], "reads texts, and the checkpoint's ids have none"),
        (["--measures", "text", "--judge_rule", "all"], "without a --judge"),
        (["--measures", "text", "--samples", "nowhere"], "no file of .jsonl, .json, .txt, .npz there"),
        (["--measures", "text", "--samples", "nan.npz"], "x is float64 of shape (5, 11); give whole numbers"),
        (["--measures", "text", "--samples", "nan.jsonl"], "sample 1 is nan, not a text"),
        (["--measures", "text", "--samples", "short.jsonl"], "sample 1 has 2 tokens, and rows of the data have 11"),
        (["--measures", "text", "--samples", "wide.npz"], "ids lie in 0..7, not in 0..6"),
        (["--measures", "text", "--samples", "ids.npz", "--num_steps", "5"], "no measure looks at samples"),
        (["--measures", "text", "--out", "runs/md4"], "holds a report.html that is none of an evaluation"),
    ],
)
def test_refused_before_any_work(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    write(Path("other/last.ckpt"), "ar", codec=Characters("abcdef"))
    Path("runs/md4/report.html").write_text("of the run")
    np.savez("nan.npz", x=np.full((5, N), np.nan))
    np.savez("wide.npz", x=np.arange(5 * N).reshape(5, N) % (V + 1))
    np.savez("ids.npz", x=np.arange(5 * N).reshape(5, N) % V)
    row = " ".join(map(str, [1] * N))
    Path("nan.jsonl").write_text(f'{{"text": "{row}"}}\n{{"text": NaN}}\n')
    Path("short.jsonl").write_text(f'{{"text": "{row}"}}\n"1 1"\n')
    assert said in error_of(capsys, *MD4, *arguments)
    assert not list(Path().rglob("draws"))
    assert not list(Path().rglob("cells"))


def test_another_checkpoint_has_a_folder_of_its_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*MD4, "--measures", "likelihood")
    run(*MD4, "--measures", "likelihood", "--out", "out")
    before = (DEFAULT / "evaluation.json").read_bytes()
    write(Path("runs/md4/last.ckpt"), "md4", seed=1)
    assert "holds the evaluation of another checkpoint" in error_of(
        capsys, *MD4, "--measures", "likelihood", "--out", "out"
    )
    run(*MD4, "--measures", "likelihood")
    assert (DEFAULT / "evaluation.json").read_bytes() == before
    assert len(list(Path("runs/md4/evaluation").iterdir())) == 2


def test_samples_from_elsewhere_in_every_form(place: Path) -> None:
    """The same samples have the same figures, whatever the file."""
    x = MarkovChain(**SOURCE).rows("train")[np.arange(8)]["x"]
    texts = MarkovChain(**SOURCE).codec.decode(x)
    np.savez("ids.npz", x=x.numpy())
    Path("lines.txt").write_text("\n".join(texts))
    Path("ours.txt").write_text("".join(f"----- sample {i} -----\n{text}\n\n" for i, text in enumerate(texts)))
    Path("seqs.json").write_text(json.dumps({"gen_ppl": 3.0, "generated_seqs": texts}))
    Path("many").mkdir()
    for i, text in enumerate(texts):
        Path("many", f"{i}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    found = []
    for name in ("ids.npz", "lines.txt", "ours.txt", "seqs.json", "many"):
        rows = evaluate_measures("runs/md4/last.ckpt", [Text(samples=name)], device="cpu", out=f"of-{name}")
        found.append(dict(rows[1].figures))
        assert rows[1].about["samples_hash"] == hash_of_ids(x)
    assert all(one == found[0] for one in found[1:])
    assert found[0]["training_rows"] == 1  # they are


def test_a_judge_that_was_exported(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures as by its checkpoint. Control: a folder of `transformers` is none."""
    main(["export", "--ckpt_path", "runs/ar/last.ckpt", "--out", "judge", "--licence", "mit"])
    np.savez("ids.npz", x=np.arange(5 * N).reshape(5, N) % V)
    found, expected = (
        evaluate_measures("runs/md4/last.ckpt", [Text(judge=name, samples="ids.npz")], device="cpu", out=out)[1].figures
        for name, out in (("judge", "a"), ("runs/ar/last.ckpt", "b"))
    )
    assert found == expected
    assert found["gen_ppl"] > 1
    monkeypatch.setattr(exported, "fetched", lambda name, files: Path("judge"))
    model = load_family("runs/md4/last.ckpt", "cpu").model
    forms = ("judge", "judge/model.safetensors", "hub:owner/judge")
    judges = [text_judges.find(form, model, "runs/md4", "mdlm", None, 8, "cpu", ()) for form in forms]
    assert len({json.dumps(one.identity) for one in judges}) == 1
    config = json.loads(Path("judge/config.json").read_text())
    Path("judge/config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert not text_judges._is_checkpoint("judge")


def test_naive_samplers_are_seen(place: Path) -> None:
    """One row again and again, the most predictable row, and single tokens drawn from their frequencies, beside a
    model that is exact (the chain's own rows). Control: for the predictable row the judge alone is pleased."""
    data = MarkovChain(**(SOURCE | {"num_val": 600, "num_train": 400}))
    real = data.rows("val")[np.arange(600)]["x"].numpy()
    x = data.rows("train")[np.arange(300)]["x"].numpy()
    reference, other = torch.from_numpy(real[0::2]), torch.from_numpy(real[1::2])
    frequencies = np.bincount(x.ravel(), minlength=V) / x.size
    likely = x[np.argmin(minus_log_p(data, x))]
    naive = {
        "one row": np.repeat(x[:1], 300, 0),
        "predictable": np.repeat(likely[None], 300, 0),
        "1-gram": np.random.default_rng(0).choice(V, (300, N), p=frequencies),
    }
    exact = {n: jensen_shannon(other, reference, n) for n in (1, 2, 3, 4)}
    for name, rows in naive.items():
        found = {n: jensen_shannon(torch.from_numpy(rows), reference, n) for n in exact}
        gaps = [(found[n][0] - exact[n][0]) / math.hypot(found[n][1], exact[n][1]) for n in exact]
        assert max(gaps) > 5, name
    assert minus_log_p(data, naive["predictable"]).mean() < minus_log_p(data, real).mean() / 1.5


def minus_log_p(data: MarkovChain, x: np.ndarray) -> np.ndarray:
    """Of each row but its first token, nats."""
    return -np.log(data.transition.numpy())[x[:, :-1], x[:, 1:]].sum(1)


def test_as_a_function(place: Path) -> None:
    sampling = Sampling(num_steps=[5], temperature=[0.5, 1.0], num_drawn=6)
    rows = evaluate_measures("runs/md4/last.ckpt", [Likelihood(), Text()], sampling, seed=3, device="cpu")
    assert [row.key.temperature for row in rows] == [None, None, 0.5, 1.0]
    assert "gen_ppl" not in rows[2].figures
    assert any("no judge" in note for note in rows[2].about["notes"])
    (bound,) = evaluation.evaluate("runs/md4/last.ckpt", seed=3, device="cpu")
    assert rows[0].figures["nelbo"] == bound.figures()["nelbo"]
    with pytest.raises(ValueError, match="no measure"):
        evaluate_measures("runs/md4/last.ckpt", [], device="cpu")


def test_figures_of_other_settings_are_not_taken(tmp_path: Path) -> None:
    """Even where a file has their name."""
    file = CellFile.of(tmp_path, "text", "a name / of it", {"seed": 1})
    row = Row(Key("a", "b", 3, 0.5, 1.0), {"x": 1.0, "x_stderr": None, "y": math.nan}, {"measure": "text"})
    file.write([row])
    assert file.read() == [Row(row.key, {"x": 1.0, "x_stderr": None, "y": None}, row.about)]
    assert CellFile(file.path, {"seed": 2}).read() is None
    assert CellFile.of(tmp_path, "text", "a name / of it", {"seed": 2}).path != file.path
    file.path.write_text(file.path.read_text()[:50])
    assert file.read() is None
