"""What `lightning evaluate` says of a model whose answer is known, by each estimator, and of its own error."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_lightning.cli import evaluate as evaluation
from ggm_lightning.cli.bound_files import BoundFile
from ggm_lightning.cli.evaluate import Bound, Settings, nats_of_rows, table
from ggm_lightning.data.rows import Rows
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Masked
from ggm_lightning.metrics.likelihood import error_of_states
from ggm_lightning.models.md4 import MD4
from tests.cli.test_evaluate import independent

N, V = 5, 7
LAW = torch.from_numpy(np.random.default_rng(3).dirichlet(np.ones(V), N)).float()
X = torch.stack(
    [torch.multinomial(LAW[i], 1000, True, generator=torch.Generator().manual_seed(i)) for i in range(N)], 1
)
TRUE = -torch.stack([LAW[i, X[:, i]].double().log() for i in range(N)]).sum(0)


@pytest.fixture(scope="module")
def model() -> MD4:
    return independent(LAW)


def measured(model: MD4, x: Tensor, estimator: str, num_samples: int = 4, times: int = 1) -> list[dict[str, Any]]:
    """The figures of x, measured so many times: with rows' numbers of its own, each has noise of its own."""
    states: list[Tensor] = []
    settings = Settings("val", num_samples, 0, times * len(x), None, estimator)
    nats = nats_of_rows(model, Rows(x.repeat(times, 1).numpy()), settings, "known", states)
    return [figures(*one) for one in zip(nats.chunk(times), torch.cat(states).chunk(times), strict=True)]


def figures(nats: Tensor, states: Tensor) -> dict[str, Any]:
    masks = error_of_states(states)
    return Bound("known", {}, "val", nats, N, True, len(nats), None, 0.0, masks_stderr=masks).figures()


def errors(model: MD4, estimator: str) -> Tensor:
    return nats_of_rows(model, Rows(X.numpy()), Settings("val", 4, 0, 1000, None, estimator)) - TRUE


def test_masks_of_a_drawn_size_have_the_same_mean_and_less_noise(model: MD4) -> None:
    found = {estimator: errors(model, estimator) for estimator in model.estimators}
    for error in found.values():
        assert abs(float(error.mean())) < 4 * float(error.std() / math.sqrt(len(X))) + 1e-3
    assert float(found["counts"].var()) < float(found["times"].var()) / 3


def quadratic_mean(found: list[dict[str, Any]], name: str) -> float:
    return float(torch.tensor([one[name] for one in found], dtype=torch.float64).square().mean().sqrt())


@pytest.mark.parametrize("estimator", ["times", "counts"])
def test_the_printed_error_and_its_parts_are_those_of_the_figure(model: MD4, estimator: str) -> None:
    """The same rows 100 times: their spread, known to 7 %, is that of the masks and less than the whole error."""
    x, true = X[:101], TRUE[:101]
    found = measured(model, x, estimator, times=100)
    errors = torch.tensor([one["nelbo"] for one in found], dtype=torch.float64) - true.mean()
    printed = torch.tensor([one["nelbo_stderr"] for one in found], dtype=torch.float64)
    assert int((errors.abs() < 2 * printed).sum()) >= 90
    spread, whole = float(errors.std()), quadratic_mean(found, "nelbo_stderr")
    rows, masks = quadratic_mean(found, "nelbo_stderr_rows"), quadratic_mean(found, "nelbo_stderr_masks")
    assert 0.5 < spread / whole < 1.1
    assert 0.8 < spread / masks < 1.2
    assert whole == pytest.approx(math.hypot(rows, masks), rel=0.05)
    if estimator == "counts":  # a hundred rows tell little of the heavy tails of times
        assert rows == pytest.approx(float(true.std()) / math.sqrt(101), rel=0.1)


@pytest.mark.parametrize("num_samples", [2, 4, 16])
def test_the_masks_part_where_sites_are_nearly_copies(num_samples: int) -> None:
    """All that is to be said of a row is said where all its sites are masked: a state's nats follow its time."""
    table = torch.zeros(3, 3, 3, 3)
    for value in range(3):
        table[value, value, value, value] = 1
    law = JointLaw(table + 1e-3)
    copies = MD4(Masked(law), 3, (4,))
    x = law.x[torch.multinomial(law.p, 101, True, generator=torch.Generator().manual_seed(0))]
    found = measured(copies, x, "times", num_samples, times=100)
    spread = float(torch.tensor([one["nelbo"] for one in found], dtype=torch.float64).std())
    assert 0.8 < spread / quadratic_mean(found, "nelbo_stderr_masks") < 1.25


@pytest.mark.parametrize("estimator", ["times", "counts"])
def test_the_printed_error_is_that_of_other_rows_too(model: MD4, estimator: str) -> None:
    """Rows drawn anew 400 times: the truth is the law's entropy; the spread is known to 3.5 %."""
    entropy = -float((LAW.double() * LAW.double().log()).sum())
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([torch.multinomial(one, 400 * 53, True, generator=generator) for one in LAW], 1)
    nats = nats_of_rows(model, Rows(x.numpy()), Settings("val", 4, 0, len(x), None, estimator))
    found = [figures(one, torch.zeros(53, 4)) for one in nats.chunk(400)]
    errors = torch.tensor([one["nelbo"] for one in found], dtype=torch.float64) - entropy
    printed = torch.tensor([one["nelbo_stderr"] for one in found], dtype=torch.float64)
    assert int((errors.abs() < 2 * printed).sum()) >= 360
    assert 0.9 < float(errors.std()) / quadratic_mean(found, "nelbo_stderr") < 1.1


def test_both_parts_are_printed_where_they_are_known(model: MD4) -> None:
    nats = TRUE[:50]
    bound = Bound("known", {}, "val", nats, N, True, 50, None, 0.0, masks_stderr=0.05)
    found = bound.figures()
    settings = Settings("val", 4, 0, 50, None, "counts")
    printed = table([bound], "MD4", settings)
    assert "4 samples per row, seed 0, by counts" in printed
    assert f"± {found['nats_per_token_stderr_rows']:.4f} ± 0.0100" in printed
    assert found["nelbo_stderr_masks"] == 0.05
    assert found["bpd_stderr_masks"] == pytest.approx(0.01 / math.log(2))
    alone = replace(bound, masks_stderr=None)
    assert "of masks" not in table([alone], "MD4", settings)
    assert "nelbo_stderr_masks" not in alone.figures()
    for rows, num_samples in ((1, 4), (5, 1)):
        states: list[Tensor] = []
        settings = Settings("val", num_samples, 0, 5, None)
        nats_of_rows(model, Rows(X[:rows].numpy()), settings, "known", states)
        assert error_of_states(torch.cat(states)) is None


def test_several_sets_have_independent_noise_and_one_alone_that_of_validation(model: MD4) -> None:
    """A constant model is as wrong on every set with one seed, to the bit (the control). Other sets change nothing."""
    rows = Rows(X[:50].numpy())
    seeds = evaluation.seeds_of_sets(5, ["ptb", "lambada"])
    noise = {seed: nats_of_rows(model, rows, Settings("val", 4, seed, 50, None)) for seed in (*seeds.values(), 5)}
    one, other, alone = (found - TRUE[:50] for found in noise.values())
    assert not torch.equal(one, other)
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.5
    assert torch.equal(nats_of_rows(model, rows, Settings("val", 4, 5, 50, None)) - TRUE[:50], alone)
    assert evaluation.seeds_of_sets(5, ["lambada", "lm1b", "ptb"])["ptb"] == seeds["ptb"]
    assert evaluation.seeds_of_sets(6, ["ptb", "lambada"])["ptb"] != seeds["ptb"]
    assert evaluation.seeds_of_sets(5, ["ptb"]) == {"ptb": 5}


def test_a_family_that_knows_no_estimators_is_refused_in_one_line() -> None:
    class Own(MD4):
        def nelbo(self, x: Tensor, label: Tensor | None = None, **_: Any) -> Tensor:  # type: ignore[override]
            return torch.zeros(len(x))

    own = Own(independent(LAW).network, V, (N,))
    with pytest.raises(ValueError, match=r"Own\.nelbo takes no `estimator`; leave it out"):
        evaluation._settings(own, "val", None, None, 4, None, "counts", None)
    with pytest.raises(ValueError, match="--estimator is 'count'"):
        evaluation._settings(own, "val", None, None, 4, None, "count", None)
    assert evaluation._settings(own, "val", None, None, 4, None, "times", None).num_samples == 1


def test_files_from_before_there_was_a_choice_are_still_read(tmp_path: Path) -> None:
    """Control: those of another choice are not."""
    path = tmp_path / "ptb.json"
    path.write_text(json.dumps({"format": 2, "name": "ptb", "seed": 5}))
    for seed, estimator, known in ((5, "times", True), (6, "times", False), (5, "counts", False)):
        file = BoundFile(path, {"name": "ptb", "seed": 5, "set_seed": seed, "estimator": estimator})
        assert (file._stored() is not None) == known


def test_a_log_file_says_how_long_it_takes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(evaluation, "_PLAIN_SECONDS", 0.0)
    nats_of_rows(independent(LAW), Rows(X[:10].numpy()), Settings("val", 1, 1, 4, None), "known")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["known: 4 of 10 rows", "known: 8 of 10 rows"]
    assert all(line.endswith(" s left") for line in lines)
