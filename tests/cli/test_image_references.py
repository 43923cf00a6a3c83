"""`lightning evaluate --measures image`: what the real pictures are, rows, reconstructions of a VQGAN or files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_lightning.cli import measure_image
from ggm_lightning.cli.main import main
from ggm_lightning.cli.measure import Sampling
from ggm_lightning.cli.measures import evaluate_measures
from ggm_lightning.report.evaluation_rows import Row
from ggm_lightning.vqgan.codes import VQGANCodes
from tests.cli.test_measure_image import EVALUATE, EXTRACTOR, OWN, shown, write_model, write_pictures
from tests.vqgan import released_vqgan


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the network by which pictures are compared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "halves", raising=False)
    Path("halves.py").write_text(EXTRACTOR)


def test_files_in_the_place_of_the_real_rows() -> None:
    """The same pictures: the same figures. Another picture among them is another reference, and the count takes the
    first."""
    write_model(Path("runs/d/last.ckpt"))
    write_pictures("real", shown("train", 60))
    common = [*EVALUATE[:5], "--num_drawn", "40", "--num_steps", "2", *OWN]

    def fid(*more: str) -> float:
        main([*common, *more])
        (file,) = Path("runs/d/evaluation").glob("*/evaluation.json")
        (row,) = json.loads(file.read_text())["rows"]
        if "--reference_pictures" in more:
            assert f"{more[-1]} files of real beside 40" in row["about"]["protocol"]
        return float(row["figures"]["fid"])

    from_rows = {count: fid("--reference_count", count) for count in ("50", "60")}
    for count, expected in from_rows.items():
        assert fid("--reference_pictures", "real", "--reference_count", count) == pytest.approx(expected, rel=1e-9)
    assert from_rows["50"] != pytest.approx(from_rows["60"], rel=1e-3), "control"
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save("real/0007.png")
    changed = fid("--reference_pictures", "real", "--reference_count", "50")
    assert changed != pytest.approx(from_rows["50"], rel=1e-3)
    kept = sorted(path.name.rpartition("-")[0] for path in Path("runs/reference").iterdir())
    assert kept == ["Digits-train-50", "Digits-train-60", "real-50", "real-50", "real-60"]


def test_of_codes_the_reference_are_reconstructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said, and of another decoder others, though the codes are the same. Files are the pictures themselves."""
    Path("source").mkdir()
    for i in range(40):
        released_vqgan.picture(i, 16).save(f"source/{i:02}.png")

    def evaluated(name: str, **more: Any) -> Row:
        data = {"source": "source", "vqgan": name, "folder": f"codes-{name}"}
        section = {"class_path": "ggm_lightning.vqgan.codes.VQGANCodes", "init_args": data}
        made = VQGANCodes(**data)  # type: ignore[arg-type]
        made.prepare_data()
        write_model(Path(f"runs/{name}/last.ckpt"), num_classes=37, shape=(1, 8, 8), data=section, codec=made.codec)
        measure = measure_image.Image(extractor="halves:Halves", **more)
        (row,) = evaluate_measures(f"runs/{name}/last.ckpt", [measure], Sampling(num_steps=[1], num_drawn=20))
        return row

    original = released_vqgan.network

    def brighter(**sizes: Any) -> torch.nn.Module:
        network = original(**sizes)
        with torch.no_grad():
            network.decoder.conv_out.bias += 0.5
        return network

    released_vqgan.released(Path("v"))
    monkeypatch.setattr(released_vqgan, "network", brighter)
    released_vqgan.released(Path("w"))
    one, other = evaluated("v"), evaluated("w")
    assert "38 reconstructions of train by the VQGAN beside 20" in one.about["protocol"]
    assert any("published figures compare with the pictures themselves" in text for text in one.about["departures"])
    assert one.about["reference_hash"] == other.about["reference_hash"], "the codes are the same"
    assert len(list(Path("runs/reference").iterdir())) == 2
    shutil.rmtree("runs/v")
    files = evaluated("v", reference_pictures="source")
    assert "40 files of source beside 20" in files.about["protocol"]
    assert not any("VQGAN" in text for text in files.about["departures"])
    assert files.figures["fid"] != pytest.approx(one.figures["fid"], rel=1e-2)


def test_a_damaged_reference_is_computed_anew() -> None:
    write_model(Path("runs/d/last.ckpt"))
    fids = []
    for damage in (cut_in_half, emptied, moved, None):
        main([*EVALUATE, *OWN, "--again", "true"])
        (file,) = Path("runs/d/evaluation").glob("*/evaluation.json")
        fids.append(json.loads(file.read_text())["rows"][0]["figures"]["fid"])
        (kept,) = Path("runs/reference").iterdir()
        if damage:
            damage(kept)
    assert fids[0] == fids[1] == fids[2]
    assert fids[3] != fids[0], "control: what is whole is read"


def cut_in_half(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def moved(file: Path) -> None:
    np.save(file, np.load(file) + 1)
