"""docs/trainer_flags.md: complete, what the program writes, and true."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ggm_lightning.cli.trainer_checks import with_remedy
from tests.trainer_callbacks import CALLBACKS, callbacks_of_lightning
from tests.trainer_flags import FLAGS, PAGE, Case, flags_of_lightning, page, plain, try_out

CASES = [*FLAGS, *CALLBACKS]
FAST = [case for case in CASES if case.fast]


def title(case: Case) -> str:
    return f"{case.name}={case.value}"


def test_the_page_is_what_the_program_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.trainer_flags writes it anew"


def test_every_flag_and_every_stock_callback_has_a_row() -> None:
    assert {case.name for case in FLAGS} == set(flags_of_lightning())
    assert {case.name for case in CALLBACKS} == set(callbacks_of_lightning())


@pytest.mark.parametrize("case", FAST, ids=title)
def test_some_rows(case: Case, tmp_path: Path) -> None:
    assert not try_out(case, tmp_path / "runs", resumed=case.name == "val_check_interval" and not case.refused)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=title)
def test_all_rows(case: Case, tmp_path: Path) -> None:
    if not case.applies:
        pytest.skip(f"{case.absent} is there")
    assert not try_out(case, tmp_path / "runs")


def test_a_row_can_fail(tmp_path: Path) -> None:
    """Controls: a flag that does not what the row says, and one that is not refused."""
    wrong = Case("val_check_interval", "2", "", plain)
    assert "validated [2, 4, 6, 8]" in try_out(wrong, tmp_path / "wrong", resumed=False)[0]
    assert "not refused" in try_out(Case("max_steps", "2", "", refused="no"), tmp_path / "taken", resumed=False)[0]


def test_an_accelerator_that_is_not_there_is_named_with_what_helps() -> None:
    """Lightning's words alone do not say it. Control: words of another mistake stay as they are."""
    for words in (
        "No supported gpu backend found!",
        "`CUDAAccelerator` can not run on your system since the accelerator is not available. The following",
    ):
        said = with_remedy(MisconfigurationException(words))
        assert said.startswith(words)
        assert "--config configs/trainer/cpu.yaml behind the experiment" in said
    assert with_remedy(ValueError("devices is 0")) == "devices is 0"
