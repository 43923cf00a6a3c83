"""`lightning evaluate`: from a checkpoint to bounds on several sets, and one line for each mistake."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from ggm_lightning.cli import evaluate as evaluation
from ggm_lightning.cli.evaluate import Bound, Settings, evaluate, nats_of_rows, table
from ggm_lightning.cli.loading import load_family
from ggm_lightning.cli.main import main
from ggm_lightning.core.schedules import Linear
from ggm_lightning.data.header import read_header, sealed
from ggm_lightning.data.rows import Rows
from ggm_lightning.models.md4 import MD4

ROOT = Path(__file__).parents[2]
DEBUG = ["--config", str(ROOT / "configs" / "trainer" / "debug.yaml")]
TINY = ["--model.network.init_args.feature_dim=8", "--model.network.init_args.num_layers=1"]
PTB = "".join(f" the <unk> company 's shares rose N to $ {i} \n" for i in range(60))
LAMBADA = "".join(json.dumps({"text": f"\u201cNo,\u201d she said to number {i}"}) + "\n" for i in range(40))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on bytes, two zero-shot sets and the file of each."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "books.txt").write_text("All happy families are alike. " * 200)
    (folder / "ptb.test.txt").write_text(PTB)
    (folder / "lambada_test.jsonl").write_text(LAMBADA)
    text = {"train": str(folder / "books.txt"), "length": 16, "folder": str(folder / "shards")}
    write(folder / "mine.yaml", "ggm_lightning.data.text.TextData", {**text, "global_batch_size": 4})
    for name in ("ptb", "lambada"):
        given = {"dataset": name, "path": str(folder), "folder": str(folder / name)}
        write(folder / f"{name}.yaml", "ggm_lightning.data.zeroshot.ZeroShotText", given)
    demo = str(ROOT / "experiments" / "md4_demo.yaml")
    fitted = ["--config", demo, "--config", str(folder / "mine.yaml"), *DEBUG, *TINY]
    main(["fit", *fitted, "--runs", str(folder / "runs"), "--name", "toy"])
    return folder


def write(path: Path, class_path: str, init_args: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump({"data": {"class_path": class_path, "init_args": init_args}}))


def checkpoint(place: Path) -> str:
    return str(place / "runs" / "toy" / "last.ckpt")


def run(place: Path, *arguments: str, name: str = "figures") -> list[dict[str, Any]]:
    """The files of all sets, in the order of their writing."""
    out = place / "evaluated" / name
    shutil.rmtree(out, ignore_errors=True)
    main(["evaluate", "--ckpt_path", checkpoint(place), "--out", str(out), "--prepare", "true", *arguments])
    files = sorted(out.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    return [json.loads(file.read_text()) for file in files]


def error_of(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *arguments])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(lines)
    return lines[-1]


# a model that is known exactly


class Independent(nn.Module):
    """Logits that do not depend on the state: tokens drawn independently from `law` [n, V]."""

    def __init__(self, law: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(law.log())
        self.num_classes = law.shape[1]

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.logits.expand(len(z), *self.logits.shape)


def independent(law: Tensor) -> MD4:
    return MD4(Independent(law), law.shape[1], (law.shape[0],), schedule=Linear(), count_prior=False)


LAW = torch.from_numpy(np.random.default_rng(3).dirichlet(np.ones(7), 5)).float()
X = torch.stack(
    [torch.multinomial(LAW[i], 1000, True, generator=torch.Generator().manual_seed(i)) for i in range(5)], 1
)


def test_the_bound_of_a_known_model_is_its_likelihood() -> None:
    """Control: with another law it is that law's cross-entropy, and far away."""
    rows = Rows(X.numpy())
    found = nats_of_rows(independent(LAW), rows, Settings("val", 64, 0, 100, None))
    true = -torch.stack([LAW[i, X[:, i]].double().log() for i in range(5)]).sum(0)
    stderr = float((found - true).std() / math.sqrt(len(X)))
    assert abs(float((found - true).mean())) < 4 * stderr + 1e-3
    wrong = nats_of_rows(independent(LAW.flip(0)), rows, Settings("val", 64, 0, 100, None))
    assert float((wrong - true).mean()) > 40 * stderr


def test_figures_and_their_errors() -> None:
    nats = torch.tensor([3.0, 5.0, 4.0, 6.0], dtype=torch.float64)
    one = Bound("a", {}, "val", nats, 2, True, 9, 4.0, 0.0)
    figures = one.figures()
    error = nats.std().item() / 2  # of the mean of four
    assert figures["nelbo"] == 4.5
    assert figures["nats_per_token"] == pytest.approx(2.25)
    assert figures["nats_per_token_stderr"] == pytest.approx(error / 2)
    assert figures["bpd"] == pytest.approx(2.25 / math.log(2))
    assert figures["ppl"] == pytest.approx(math.exp(2.25))
    assert figures["ppl_stderr"] == pytest.approx(math.exp(2.25) * error / 2)
    assert figures["bits_per_character"] == pytest.approx(2.25 / math.log(2) / 4)
    lines = table([one], "MD4", Settings("val", 3, 5, 1, None)).splitlines()
    assert "upper bounds on -log p, 3 samples per row, seed 5" in lines[0]
    assert lines[2].split()[:5] == ["a", "val", "4", "of", "9"]
    assert f"{math.exp(2.25):.3f} ± {math.exp(2.25) * error / 2:.3f}" in lines[2]
    alone = Bound("a", {}, "val", nats[:1], 2, False, 1, None, 0.0)
    assert alone.figures()["bpd_stderr"] is None
    assert "ppl" not in alone.figures()
    assert "±" not in table([alone], "MD4", Settings("val", 1, 5, 1, None))


def test_batch_size_and_limit_change_nothing(place: Path) -> None:
    """Bit for bit where the logits are equal; with a network, whose own sums depend on the batch, to their rounding."""
    rows = Rows(X[:50].numpy())
    model = independent(LAW)
    whole = nats_of_rows(model, rows, Settings("val", 3, 1, 50, None))
    for size in (1, 3, 7):
        assert torch.equal(nats_of_rows(model, rows, Settings("val", 3, 1, size, None)), whole)
    assert torch.equal(nats_of_rows(model, rows, Settings("val", 3, 1, 4, 10)), whole[:10])
    assert not torch.equal(nats_of_rows(model, rows, Settings("val", 3, 2, 50, None)), whole)
    trained = load_family(checkpoint(place), "cpu").model
    text = Rows(torch.randint(256, (20, 16), generator=torch.Generator().manual_seed(0)).numpy())
    one, two = (nats_of_rows(trained, text, Settings("val", 2, 1, size, None)) for size in (20, 3))
    assert torch.allclose(one, two, rtol=1e-5)


# the command


def test_several_sets_with_the_checkpoints_tokenizer(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(place / f"{name}.yaml") for name in ("ptb", "lambada")]
    found = run(place, "--data", *files, "--num_samples", "2", "--seed", "5")
    printed = capsys.readouterr()
    assert "upper bounds on -log p, 2 samples per row, seed 5 and the set's name\n" in printed.out
    assert [line.split()[:2] for line in printed.out.splitlines()[2:4]] == [["ptb", "test"], ["lambada", "test"]]
    assert "ptb.json" in printed.err
    ptb, lambada = found
    assert len({5, ptb["set_seed"], lambada["set_seed"]}) == 3
    assert (ptb["weights"], ptb["precision"], ptb["device"], ptb["estimator"]) == ("average", "32", "cpu", "times")
    assert (ptb["seed"], ptb["num_samples"], ptb["step"], ptb["limit"], ptb["format"]) == (5, 2, 2, None, 2)
    assert ptb["model"]["class_path"] == "ggm_lightning.models.md4.MD4"
    prices = [f"${i}" if str(i).startswith("1") else f"$ {i}" for i in range(60)]  # only "$ 1" loses its space
    characters = sum(len(f"the ? company's shares rose 1 to {price}\n") for price in prices)
    assert ptb["rows"] == characters // 16
    assert ptb["tokens"] == 16 * ptb["rows"]
    assert lambada["rows"] == sum(len(f'\n"No," she said to number {i}\n') for i in range(40)) // 16
    for one in found:
        assert one["bpd"] == pytest.approx(one["nelbo"] / (16 * math.log(2)))
        assert one["ppl"] == pytest.approx(math.exp(one["nats_per_token"]))
        assert one["bits_per_character"] == one["bpd"]  # bytes
        assert one["data"]["init_args"]["dataset"] == one["name"]
        assert one["data"]["init_args"]["group"] == 1000  # defaults, too
        assert (one["protocol"], "protocol" in one["data"]["init_args"]) == ("sedd", False)  # as in older files
        assert min(one["nelbo_stderr"], one["nelbo_stderr_masks"]) > 0
        nats = np.load(place / "evaluated" / "figures" / f"{one['name']}.npy")
        assert (len(nats), nats.mean()) == (one["rows"], pytest.approx(one["nelbo"]))
    assert not list((place / "evaluated" / "figures").glob(".*"))


def test_it_is_what_validation_measures(place: Path) -> None:
    """Row by row the bounds of `lightning predict`, which validation adds up, with the same seeds and batches."""
    demo = str(ROOT / "experiments" / "md4_demo.yaml")
    common = ["--config", demo, "--config", str(place / "mine.yaml"), *DEBUG, *TINY]
    main(["predict", *common, "--runs", str(place / "runs"), "--name", "toy"])
    with (place / "runs" / "toy" / "bounds.csv").open() as file:
        nats = [float(row["nats"]) for row in csv.DictReader(file)]
    (found,) = evaluate(checkpoint(place), batch_size=min(64, len(nats)), device="cpu")  # all at once, as there
    assert found.nats.tolist() == nats
    assert found.figures()["nelbo"] == pytest.approx(np.mean(nats), rel=1e-14)
    assert (found.name, found.characters_per_token) == ("TextData", 1.0)


def test_no_bits_per_character_where_the_tokenizer_loses_something(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither for what is measured now nor for what was measured before this was known. Control: a whole header."""
    header = place / "shards" / "header.json"
    whole = header.read_bytes()
    arguments = ["evaluate", "--ckpt_path", checkpoint(place), "--out", str(place / "evaluated" / "lossy")]
    main(arguments)
    assert "bits/character" in capsys.readouterr().out
    changed = read_header(place / "shards")
    changed["loss"] |= {"changed": 1, "first_changed": "'All' became 'all'"}
    try:
        header.write_bytes(sealed(changed))
        for again in ([], ["--again", "true"]):
            main([*arguments, *again])
            printed = capsys.readouterr()
            assert "bits/character" not in printed.out
            assert "perplexity" in printed.out
            assert "the first: 'All' became 'all'; therefore no bits/character" in printed.err
        written = json.loads((place / "evaluated" / "lossy" / "TextData.json").read_text())
        assert "bits_per_character" not in written
    finally:
        header.write_bytes(whole)


def test_overrides_and_limit(place: Path) -> None:
    arguments = ["--data", str(place / "ptb.yaml"), "--data.init_args.group", "20", "--data.folder=" + str(place / "g")]
    (one,) = run(place, *arguments, "--limit", "5", "--split", "test", "--protocol", "words")
    assert one["data"]["init_args"]["group"] == 20
    assert (one["rows"], one["limit"], one["split"]) == (5, 5, "test")
    assert one["of_rows"] > 5
    assert (one["protocol"], one["nats_per_word"]) == ("words", pytest.approx(one["nelbo"] * 5 / one["words"]))


def test_a_file_without_a_class_changes_the_trainings_data(place: Path) -> None:
    (place / "less.yaml").write_text("data: {init_args: {val_fraction: 0.2, folder: " + str(place / "less") + "}}")
    (whole,) = run(place, "--limit", "1")
    (less,) = run(place, "--data", str(place / "less.yaml"))
    assert less["data"]["class_path"] == "ggm_lightning.data.text.TextData"
    assert less["of_rows"] > 3 * whole["of_rows"]


# nothing is overwritten, nothing is prepared unasked


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_other_sets_and_settings_stand_beside_each_other(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--ckpt_path", checkpoint(place), "--prepare", "true", "--limit", "3"]
    main([*command, "--data", str(place / "ptb.yaml")])
    before = tree(place / "runs" / "toy")
    main([*command, "--data", str(place / "lambada.yaml")])
    main([*command, "--data", str(place / "ptb.yaml"), "--seed", "7"])
    main([*command, "--data", str(place / "ptb.yaml"), "--data.group", "20", "--data.folder", str(place / "h")])
    after = tree(place / "runs" / "toy")
    assert {name: after[name] for name in before} == before
    new = sorted(name for name in after if name not in before and name.endswith(".json"))
    assert [name.split("-seed")[1].split("/")[1][:4] for name in new] == ["lamb", "ptb-", "ptb."]
    capsys.readouterr()
    main([*command, "--data", str(place / "ptb.yaml")])
    printed = capsys.readouterr()
    assert "measured already" in printed.err
    assert "3 of" in printed.out
    assert tree(place / "runs" / "toy") == after
    main([*command, "--data", str(place / "ptb.yaml"), "--again", "true"])
    assert "measured already" not in capsys.readouterr().err


def test_a_set_that_is_missing_is_noticed_before_any_is_measured(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(place / "absent.yaml", "ggm_lightning.data.zeroshot.ZeroShotText", {"dataset": "lm1b", "path": "nowhere"})
    measured: list[str] = []
    monkeypatch.setattr(evaluation, "nats_in_parts", lambda model, rows, settings, name, *_: measured.append(name))
    files = ["--data", str(place / "ptb.yaml"), str(place / "absent.yaml")]
    assert "absent: data.path: 'nowhere'" in error_of(
        capsys, ["--ckpt_path", checkpoint(place), "--prepare", "true", *files]
    )
    (place / "a_file").write_text("x")
    ready = ["--ckpt_path", checkpoint(place), "--data", str(place / "ptb.yaml"), "--out", str(place / "a_file")]
    assert "a file is there; name a folder" in error_of(capsys, ready)
    assert measured == []


def test_what_is_finished_is_kept_when_a_later_set_fails(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = evaluation.nats_in_parts

    def fail(model: Any, rows: Any, settings: Any, name: str, *more: Any) -> Tensor | None:
        if name == "lambada":
            raise ValueError("the second set fails")
        return real(model, rows, settings, name, *more)

    monkeypatch.setattr(evaluation, "nats_in_parts", fail)
    files = ["--data", str(place / "ptb.yaml"), str(place / "lambada.yaml"), "--out", str(place / "kept")]
    command = ["evaluate", "--ckpt_path", checkpoint(place), "--prepare", "true", "--limit", "2", *files]
    with pytest.raises(SystemExit):
        main(command)
    assert "the second set fails" in capsys.readouterr().err
    assert json.loads((place / "kept" / "ptb.json").read_text())["rows"] == 2
    measured: list[str] = []
    monkeypatch.setattr(evaluation, "nats_in_parts", lambda *given: measured.append(given[3]) or real(*given))
    main(command)
    gone_on, undisturbed = capsys.readouterr().out, [*command[:-1], str(place / "undisturbed")]
    assert measured == ["lambada"]
    main(undisturbed)
    assert capsys.readouterr().out == gone_on


def test_a_preparation_is_named_and_a_folder_of_others_left_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data section is the checkpoint's own: whoever made it chose its folder."""
    ckpt = ["--ckpt_path", checkpoint(place), "--limit", "2"]
    before = tree(place / "shards")
    elsewhere = place / "not" / "there"
    error = error_of(capsys, [*ckpt, "--data.folder", str(elsewhere)])
    assert f"`lightning prepare --data=ggm_lightning.data.text.TextData --data.train={place}/books.txt" in error
    assert not elsewhere.parent.exists()
    for prepare in ("false", "true"):
        changed = ["--data.val_fraction", "0.3", "--prepare", prepare]
        assert "holds data made with other options (val_fraction)" in error_of(capsys, [*ckpt, *changed])
    books = (place / "books.txt").read_text()
    (place / "books.txt").write_text(books + "And so on.")
    try:
        error = error_of(capsys, [*ckpt, "--prepare", "true"])
        assert "holds other data (the source files differ), which are left as they are" in error
    finally:
        (place / "books.txt").write_text(books)
    assert tree(place / "shards") == before


def test_embedded_data_are_made_without_asking_in_a_new_folder_below_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fitted = ["--config", str(ROOT / "experiments" / "md4_demo.yaml"), *DEBUG, *TINY]
    main(["fit", *fitted, "--data.global_batch_size", "4", "--name", "toy"])
    ckpt = ["--ckpt_path", "runs/toy/last.ckpt", "--limit", "2"]
    shutil.rmtree("runs/data")
    main(["evaluate", *ckpt])
    assert "DemoText" in capsys.readouterr().out
    for folder in (str(tmp_path / "elsewhere"), "runs/../beside"):
        error = error_of(capsys, [*ckpt, "--data.folder", folder])
        assert "is not prepared (no finished shards there)" in error
    (tmp_path / "runs" / "mine").mkdir()
    (tmp_path / "runs" / "mine" / "notes.txt").write_text("my own")
    assert "is not prepared" in error_of(capsys, [*ckpt, "--data.folder", "runs/mine"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    assert [path.name for path in (tmp_path / "runs" / "mine").iterdir()] == ["notes.txt"]


def test_an_experiment_may_be_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ckpt = ["--ckpt_path", checkpoint(place)]
    main(["evaluate", "--config", str(place / "ptb.yaml"), *ckpt, "--limit", "2", "--prepare", "true"])
    assert "ZeroShotText" in capsys.readouterr().out
    (place / "other.yaml").write_text("model: {init_args: {schedule: {class_path: Cosine}}}")
    assert "model.schedule" in error_of(capsys, ["--config", str(place / "other.yaml"), *ckpt])


def test_mistakes_end_in_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ckpt, ptb = ["--ckpt_path", checkpoint(place)], str(place / "ptb.yaml")
    (place / "none.yaml").write_text("model: {}")
    (place / "typo.yaml").write_text(Path(ptb).read_text().replace("dataset:", "datasets:"))
    (place / "set.yaml").write_text(Path(ptb).read_text().replace("dataset: ptb", "dataset: bnc"))
    write(place / "long.yaml", "ggm_lightning.data.zeroshot.ZeroShotText", {"dataset": "ptb", "length": 17})
    write(place / "markov.yaml", "ggm_lightning.data.toy.synthetic.MarkovChain", {"length": 16})
    write(place / "absent.yaml", "ggm_lightning.data.zeroshot.ZeroShotText", {"dataset": "lm1b", "path": "nowhere"})
    for arguments, message in (
        ([], "missing: ckpt_path; give --ckpt_path VALUE"),
        (["--ckpt_path", "no.ckpt"], "no.ckpt: no such checkpoint file"),
        ([*ckpt, "--num_sample", "3"], "unknown key 'num_sample'; did you mean 'num_samples'?"),
        ([*ckpt, "--split", "train"], "--split is 'train'; choose val or test"),
        ([*ckpt, "--num_samples", "0"], "--num_samples is 0; it must be at least 1"),
        ([*ckpt, "--estimator", "count"], "--estimator is 'count', MD4: choose times or counts"),
        ([*ckpt, "--protocol", "duo"], "--protocol is 'duo'; choose sedd, mdlm or words"),
        ([*ckpt, "--protocol", "mdlm"], "TextData, whose rows are not cut by any protocol"),
        ([*ckpt, "--batch_size", "0"], "--batch_size is 0; it must be at least 1"),
        ([*ckpt, "--device", "tpu9"], "--device tpu9:"),
        ([*ckpt, "--data"], "--data needs at least one file behind it"),
        ([*ckpt, "--data", "no.yaml"], "no.yaml: no such file"),
        ([*ckpt, "--data", str(place / "none.yaml")], "no section `data` in it"),
        ([*ckpt, "--data", ptb, str(place / "typo.yaml")], "datasets"),
        ([*ckpt, "--data", str(place / "set.yaml")], "data.dataset is 'bnc'; choose one of lambada"),
        (
            [*ckpt, "--data", str(place / "markov.yaml")],
            "markov: wrong tokenizer: the checkpoint was trained with Bytes",
        ),
        ([*ckpt, "--data", str(place / "long.yaml")], "long: shape mismatch: the data has (17,), the model (16,)"),
        ([*ckpt, "--data", str(place / "absent.yaml")], "has no news.en.heldout-*"),
        ([*ckpt, "--data", ptb, "--data.seed", "3"], "it is taken from seed_everything; leave it out"),
    ):
        found = error_of(capsys, arguments)
        assert message in found, arguments
        assert found.startswith("lightning: error: ")
