"""`lightning evaluate --measures image` on a small model of the digits, with a network of the user's own file."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_lightning.cli import drawn, measure_image, ranks
from ggm_lightning.cli.main import main
from ggm_lightning.cli.measure import Sampling
from ggm_lightning.cli.measures import evaluate_measures
from ggm_lightning.codecs.codec import Codec
from ggm_lightning.data.toy.digits import Digits
from ggm_lightning.metrics import images
from ggm_lightning.metrics.images import Features
from ggm_lightning.models.base import Family
from ggm_lightning.models.md4 import MD4
from ggm_lightning.rundir import building
from ggm_lightning.rundir import checkpoint as checkpoint_files
from tests.cli import small_checkpoints
from tests.cli.test_main import error_of
from tests.cli.test_ranks import together

EXTRACTOR = """
import torch
from torch import nn

CALLS = []

class Halves(nn.Module):
    def forward(self, pictures):
        CALLS.append(len(pictures))
        x = pictures.float() / 255
        values = torch.stack([x[..., :4].mean((1, 2, 3)), x[..., 4:].mean((1, 2, 3)), x.std((1, 2, 3))], 1)
        return values, 5 * values

class Broken(nn.Module):
    def forward(self, pictures):
        return pictures.float().mean((2, 3)) * float("nan")

class Wide(nn.Module):
    def forward(self, pictures):
        return pictures.float().flatten(1).repeat(1, 40)[:, :1500]
"""
EVALUATE = [
    "evaluate",
    "--ckpt_path",
    "runs/d/last.ckpt",
    "--measures",
    "image",
    "--num_drawn",
    "40",
    "--num_steps",
    "2",
]
OWN = ["--extractor", "halves:Halves"]


DIGITS = {"class_path": "ggm_lightning.data.toy.digits.Digits", "init_args": {}}


def write_model(
    path: Path,
    num_labels: int = 0,
    num_classes: int = 17,
    shape: tuple[int, ...] = (1, 8, 8),
    data: dict[str, Any] = DIGITS,
    codec: Codec | None = None,
) -> None:
    """MD4 of the digits with a tiny transformer of random weights."""
    network = {"class_path": "ggm_lightning.networks.transformer.Transformer"}
    network["init_args"] = {"num_classes": num_classes, "feature_dim": 4, "num_heads": 2, "num_layers": 1}  # type: ignore[assignment]
    network["init_args"] |= {"num_labels": num_labels}  # type: ignore[operator]
    section = {"class_path": "ggm_lightning.models.md4.MD4"}
    section["init_args"] = {"network": network, "num_classes": num_classes, "shape": list(shape)}  # type: ignore[assignment]
    torch.manual_seed(0)
    model: Any = building.build(section, Family)
    model.resolved_config, model.codec = {"model": section, "data": data}, codec or Digits().codec
    path.parent.mkdir(parents=True)
    about = checkpoint_files.describe(model)
    torch.save({"state_dict": model.state_dict(), "global_step": 3, checkpoint_files.KEY: about}, path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "halves", raising=False)
    (tmp_path / "halves.py").write_text(EXTRACTOR)
    write_model(Path("runs/d/last.ckpt"))
    return tmp_path


def of_pictures(ids: np.ndarray | torch.Tensor) -> Features:
    x = torch.from_numpy(Digits().codec.decode(np.asarray(ids)).copy()).permute(0, 3, 1, 2).float() / 255
    values = torch.stack([x[..., :4].mean((1, 2, 3)), x[..., 4:].mean((1, 2, 3)), x.std((1, 2, 3))], 1).double()
    return Features(values, 5 * values)


def shown(split: str, count: int) -> np.ndarray:
    return Digits().codec.decode(Digits().load(split)[np.arange(count)]["x"].numpy())


def write_pictures(folder: str, pictures: np.ndarray) -> None:
    Path(folder).mkdir()
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(Path(folder, f"{i:04}.png"))


@pytest.mark.usefixtures("folder")
def test_the_figures_are_those_of_the_samples(capsys: pytest.CaptureFixture[str]) -> None:
    main([*EVALUATE, *OWN])
    (file,) = Path("runs/d/evaluation").glob("*/evaluation.json")
    (row,) = json.loads(file.read_text())["rows"]
    x = np.load(next(file.parent.glob("draws/*/samples.npz")))["x"]
    real = of_pictures(Digits().load("train")[np.arange(1500)]["x"])
    drawn = of_pictures(x)
    figures = row["figures"]
    assert figures["fid"] == pytest.approx(images.frechet_distance(real, drawn), rel=1e-5)
    assert figures["kid"] == pytest.approx(images.kernel_distance(real, drawn)[0], rel=1e-5)
    assert figures["inception_score"] == pytest.approx(images.inception_score(drawn)[0], rel=1e-5)  # type: ignore[index]
    assert {"kid_stderr", "inception_score_stderr"} <= figures.keys()
    assert "1,500 of train beside 40; halves:Halves" in json.dumps(row)
    assert images.frechet_distance(real, of_pictures(np.zeros_like(x))) > 2 * figures["fid"], "control"
    calls = sys.modules["halves"].CALLS
    before = len(calls)
    main([*EVALUATE, *OWN, "--temperature", "0.5"])
    (reference,) = Path("runs/reference").iterdir()
    assert reference.name.startswith("Digits-train-1500-")
    assert sum(calls[before:]) < 50, "the real pictures went through once"
    said = capsys.readouterr().out
    assert "fid" in said
    assert "image: 1,500 of train beside 40; halves:Halves\n" in said
    assert "departs from the protocol: image: the features of halves:Halves are not Inception's\n" in said
    assert "departs from the protocol: image: 40 pictures are measured, not 50,000; FID of fewer is larger" in said
    assert len(row["about"]["departures"]) == 2, "all of train"
    main([*EVALUATE, *OWN, "--reference", "val", "--reference_count", "100"])
    said = capsys.readouterr().out
    assert "departs from the protocol: image: the real pictures are of val, not of train\n" in said
    assert "departs from the protocol: image: 100 of 297 real pictures are taken, not 50,000" in said


def test_an_extractor_whose_file_has_changed_is_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have no weights by which to tell, and answer only to dark pictures in another way."""
    fids = []
    for change in (("", ""), ("", ""), ("/ 255", "/ (255 + (pictures.float().mean() < 100))")):
        (folder / "halves.py").write_text(EXTRACTOR.replace(*change))
        monkeypatch.delitem(sys.modules, "halves", raising=False)
        main([*EVALUATE, *OWN])
        (file,) = Path("runs/d/evaluation").glob("*/evaluation.json")
        fids.append(json.loads(file.read_text())["rows"][0]["figures"]["fid"])
    assert fids[0] == fids[1] != fids[2]
    assert len(list(Path("runs/reference").iterdir())) == 2


def test_an_extractor_whose_helper_has_changed_is_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code in another file than that of its class: neither kept features nor kept figures are taken. The cell that is
    kept for the first helper is taken again."""
    own = EXTRACTOR.replace("import torch", "import torch\nfrom helper import scaled", 1)
    (folder / "halves.py").write_text(own.replace("pictures.float() / 255", "scaled(pictures)"))
    fids, asked = [], []
    for power in ("1", "2", "1"):
        (folder / "helper.py").write_text(f"def scaled(pictures):\n    return (pictures.float() / 255) ** {power}\n")
        for name in ("halves", "helper"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        shutil.rmtree("__pycache__", ignore_errors=True)  # by which Python may take a file of the same second as old
        main([*EVALUATE, *OWN])
        (file,) = Path("runs/d/evaluation").glob("*/evaluation.json")
        fids.append(json.loads(file.read_text())["rows"][0]["figures"]["fid"])
        asked.append(sum(sys.modules["halves"].CALLS))
    assert fids[0] == fids[2]
    assert abs(fids[1] - fids[0]) > 0.1 * fids[0]
    assert len(list(Path("runs/reference").iterdir())) == 2
    assert asked[0] == asked[1] > 1500 > 10 > asked[2], "control: what is the same is not measured again"


@pytest.mark.usefixtures("folder")
def test_several_ranks_divide_the_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn ones and the rows of the reference; both from files: figures of one process, and each goes through once."""
    monkeypatch.setattr(measure_image, "_TOGETHER", 8)
    monkeypatch.setattr(measure_image, "_PART", 16)
    of_rank: dict[int, int] = {0: 0, 1: 0}
    features_of = images.features_of

    def counted(network: torch.nn.Module, batches: Any, device: str = "cpu") -> Features:
        own = list(batches)
        of_rank[ranks.current().rank] += sum(map(len, own))
        return features_of(network, own, device)

    monkeypatch.setattr(images, "features_of", counted)
    write_pictures("pictures", shown("val", 70))
    write_pictures("real", shown("train", 100))

    def measure(out: str) -> None:
        shutil.rmtree("runs/reference", ignore_errors=True)
        measures = [
            measure_image.Image(
                extractor="halves:Halves", reference_count=100, reference_pictures=reference, pictures=pictures
            )
            for reference, pictures in ((None, None), ("real", "pictures"))
        ]
        for number, one in enumerate(measures):
            sampling = None if one.pictures else Sampling(num_steps=[2, 3], num_drawn=90)
            evaluate_measures("runs/d/last.ckpt", [one], sampling, out=f"{out}-{number}", device="cpu")

    measure("one")
    probes, of_rank[0] = of_rank[0], 0
    assert together(lambda: measure("several")) == [None, None]
    assert min(of_rank.values()) > 0.4 * sum(of_rank.values())
    assert 0 <= sum(of_rank.values()) - probes < 10, "the two pictures of each rank's check are all that is done twice"
    for number, rows in ((0, 2), (1, 1)):
        one, several = (
            json.loads(Path(f"{name}-{number}/evaluation.json").read_text())["rows"] for name in ("one", "several")
        )
        assert len(one) == rows
        assert [row["figures"] for row in several] == [row["figures"] for row in one]
        assert [name for name in os.listdir(f"several-{number}") if name.startswith(".")] == []


@pytest.mark.usefixtures("folder")
def test_features_of_other_pictures_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that two ranks have left behind when they were stopped."""
    monkeypatch.setattr(measure_image, "_PART", 16)
    features_of = images.features_of
    stops = [True]

    def stopped(network: torch.nn.Module, batches: Any, device: str = "cpu") -> Features:
        if stops[0] and len(list(Path("several").rglob("rows-*.npz"))) >= 2:
            raise RuntimeError("stopped")
        return features_of(network, batches, device)

    monkeypatch.setattr(images, "features_of", stopped)

    def measure(out: str, num_steps: list[int]) -> None:
        measure = measure_image.Image(extractor="halves:Halves", reference_count=100)
        sampling = Sampling(num_steps=num_steps, num_drawn=90)
        evaluate_measures("runs/d/last.ckpt", [measure], sampling, out=out, device="cpu")

    assert any(isinstance(error, Exception) for error in together(lambda: measure("several", [2])))
    assert len(list(Path("several/.features").glob("rows-*.npz"))) >= 2
    stops[0] = False
    assert together(lambda: measure("several", [3])) == [None, None]
    measure("one", [3])
    one, several = (json.loads(Path(f"{name}/evaluation.json").read_text())["rows"] for name in ("one", "several"))
    assert several[0]["figures"] == one[0]["figures"]


@pytest.mark.usefixtures("folder")
def test_classes_are_drawn_as_in_the_reference(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the split that is the reference; in turn and one alone are drawn where they are asked for."""
    write_model(Path("runs/c/last.ckpt"), num_labels=10)
    told: list[int] = []

    def sample(model: MD4, count: int, *args: Any, label: torch.Tensor, **options: Any) -> Any:
        told.extend(label.tolist())
        return original(model, count, *args, label=label, **options)

    original = MD4.sample
    monkeypatch.setattr(MD4, "sample", sample)
    command = ["runs/c/last.ckpt" if word == "runs/d/last.ckpt" else word for word in EVALUATE]
    cases = (("train", []), ("train", ["--label", "data"]), ("val", ["--reference", "val"]))
    for seed, (split, more) in enumerate(cases):
        main([*command, *OWN, *more, "--num_drawn", "200", "--num_steps", "1", "--seed", str(seed)])
        rows = Digits().load(split)
        labels = rows[np.arange(200) * len(rows) // 200]["label"]  # evenly over the whole split
        assert told == labels.tolist()
        share = np.bincount(rows[np.arange(len(rows))]["label"], minlength=10) / len(rows)
        assert abs(np.bincount(told, minlength=10) / 200 - share).max() < 0.05
        told.clear()
    for label, expected in (("each", [i % 10 for i in range(40)]), ("3", [3] * 40)):
        main([*command, *OWN, "--label", label])
        assert told == expected
        told.clear()
    refused = error_of(capsys, [*EVALUATE, *OWN, "--label", "data"])
    assert "--label data: the model or Digits (train) knows no classes" in refused


@pytest.mark.usefixtures("folder")
def test_as_many_pictures_as_published_where_the_user_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(drawn, "drawn", lambda plan, draws, folder: asked.append(draws.num_samples) or 1 / 0)
    for count, more in ((50_000, []), (300, ["--num_drawn", "300"])):
        with pytest.raises(SystemExit):
            main([*EVALUATE[:5], *OWN, "--num_steps", "2", *more])
        assert asked.pop() == count


@pytest.mark.usefixtures("folder")
def test_files_in_the_place_of_what_is_drawn() -> None:
    """The real pictures themselves: nothing is left of FID; darker ones: much."""
    same = shown("train", 60)
    for name, pictures in (("same", same), ("darker", same // 2)):
        write_pictures(name, pictures)
        main([*EVALUATE[:5], *OWN, "--pictures", name, "--reference_count", "60"])
    (file,) = Path("runs/d/evaluation").glob("*/cells")
    found = [json.loads(path.read_text())["rows"][0]["figures"]["fid"] for path in sorted(file.iterdir())]
    assert max(found) > 0.01
    assert abs(min(found)) < 1e-6


@pytest.mark.usefixtures("folder")
def test_refused_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        ([], "--inception weights-inception-2015-12-05-6726825d.pth: there is no such file; weights"),
        (["--extractor", "halves:Broken"], "--extractor Broken: its features hold NaN or infinity"),
        (["--extractor", "halves:Wide"], "Digits, train: 1,500 pictures are too few for the covariance of 1,500"),
        ([*OWN, "--reference_count", "3"], "Digits, train: 3 pictures are too few"),
        ([*OWN, "--reference", "test"], "--reference test: Digits has train, val"),
        ([*OWN, "--resize", "tf"], "--resize is of Inception"),
        (["--extractor", "halves:None"], "--extractor halves:None: cannot be built"),
        (["--extractor", "nowhere:Net"], "--extractor nowhere:Net: cannot be built"),
        (["--extractor", "halves:torch"], "--extractor halves:torch: cannot be built"),
    ]
    for more, said in cases:
        assert said in error_of(capsys, [*EVALUATE, *more])
    Path("nothing").mkdir()
    write_pictures("small", np.zeros((30, 7, 8, 3), np.uint8))
    folders = (
        ("nowhere", "there is no such folder"),
        ("nothing", "has no .png or .jpg files"),
        ("small", "small/0000.png"),  # before others are drawn
    )
    for folder, said in folders:
        assert said in error_of(capsys, [*EVALUATE[:5], *OWN, "--pictures", folder])
        assert said in error_of(capsys, [*EVALUATE, *OWN, "--reference_pictures", folder])
    few = ["--num_drawn", "19"]
    assert "--num_drawn: 19 pictures are too few for 10 splits" in error_of(capsys, [*EVALUATE, *OWN, *few])
    text = small_checkpoints.write(Path("runs/t/last.ckpt"), "md4")
    line = error_of(capsys, ["evaluate", "--ckpt_path", text, "--measures", "image", *OWN])
    assert "--measures image: the model's rows have shape [11], which are no pictures" in line
    assert not Path("runs/reference").exists()
    assert not list(Path("runs").glob("*/evaluation/*/draws")), "nothing was drawn"
