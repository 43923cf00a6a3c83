"""Names of before: modules, class paths in configurations and in checkpoints."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml

from ggm_lightning import moved
from ggm_lightning.cli import config
from ggm_lightning.rundir import checkpoint

CLASSES = {
    "ggm_lightning.callbacks.report": "Report",
    "ggm_lightning.data.demo": "DemoText",
    "ggm_lightning.data.dictionary": "Dictionary",
    "ggm_lightning.data.digits": "Digits",
    "ggm_lightning.data.synthetic": "MarkovChain",
    "ggm_lightning.data.vqgan": "VQGANCodes",
    "ggm_lightning.models.vqgan": "VQGAN",
    "ggm_lightning.networks.vqgan": "Autoencoder",
}


def test_every_moved_module_is_tried() -> None:
    assert CLASSES.keys() == moved.MOVED.keys()


@pytest.mark.parametrize("old", CLASSES)
def test_an_old_name_is_the_module_of_today(old: str) -> None:
    module = importlib.import_module(old)
    assert module is importlib.import_module(moved.MOVED[old])
    assert module.__spec__.name == module.__name__ == moved.MOVED[old]
    assert getattr(module, CLASSES[old]).__module__ == moved.MOVED[old]


def test_the_codecs_are_found_where_they_were() -> None:
    from ggm_lightning.codecs.text import Characters
    from ggm_lightning.data import codecs

    assert codecs.Characters is Characters
    names = {"Characters", "Bytes", "Subwords", "Integers", "Images", "Codec", "codec_from_dict", "dict_hash", "BLANK"}
    assert names <= set(codecs.__all__)
    described = {"class_path": "ggm_lightning.data.codecs.Integers", "init_args": {"num_classes": 7}}
    assert codecs.codec_from_dict(described).num_classes == 7


def test_class_paths_of_before(tmp_path: Path) -> None:
    callbacks = [{"class_path": "ggm_lightning.callbacks.report.Report", "init_args": {"class_path": "kept.as.it.is"}}]
    section = {"data": {"class_path": "ggm_lightning.data.demo.DemoText"}, "trainer": {"callbacks": callbacks}}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(section), encoding="utf-8")
    found = config.load_file(str(tmp_path / "old.yaml"))
    assert found["data"]["class_path"] == "ggm_lightning.data.toy.demo.DemoText"
    assert found["trainer"]["callbacks"][0]["class_path"] == "ggm_lightning.report.callback.Report"
    assert found["trainer"]["callbacks"][0]["init_args"] == {"class_path": "kept.as.it.is"}
    assert checkpoint.about({checkpoint.KEY: {"config": section}})["config"] == found
    assert section["data"]["class_path"] == "ggm_lightning.data.demo.DemoText"  # the caller's own is left as it was
    # control: other names stay
    assert moved.current({"class_path": "my.data.demo.DemoText"}) == {"class_path": "my.data.demo.DemoText"}


def test_a_section_of_any_depth_ends() -> None:
    section: dict = {}
    for _ in range(100_000):
        section = {"deeper": section}
    assert moved.current(section).keys() == {"deeper"}
