"""What two sections of configurations differ in."""

from __future__ import annotations

from ggm_lightning.rundir.sections import differences


def test_differences_name_keys_without_init_args() -> None:
    ours = {
        "class_path": "M",
        "init_args": {"n": 1, "net": {"class_path": "T", "init_args": {"dim": 2}}, "shape": (3,)},
    }
    theirs = {
        "class_path": "M",
        "init_args": {"n": 1, "net": {"class_path": "T", "init_args": {"dim": 4}}, "shape": [3]},
    }
    assert differences(ours, theirs) == ["model.net.dim is 2, there 4"]
    assert differences(ours, ours) == []
