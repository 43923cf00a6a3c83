"""GGM's sampler "parallel": with hide: own it converges in sweeps, with hide: block it does not, and says so.

By enumeration of the 81 states of infilling_law.py with an exact network, with nothing known: the table of
docs/exactness.md.
"""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ggm_lightning.exact.states import all_states, product, total_variation
from ggm_lightning.models.ggm import GGM
from ggm_lightning.sampling import sweeping
from tests.models.infilling_law import ONE_HOT, N, P, V, ggm

PAGE = (Path(__file__).parents[2] / "docs" / "exactness.md").read_text(encoding="utf-8")
SWEEPS = (1, 2, 4, 8, 16)
STATES = all_states(V, N)
MARGINALS = torch.einsum("s,snv->nv", P, ONE_HOT)
ROWS = list(itertools.product(("own", "block"), (2, 3, 4)))


def parallel_law(model: GGM, size: int) -> Tensor:
    """Float64[81], from pi^n down in blocks of `size`."""
    p = product(model.log_pi.exp().expand(1, N, V), STATES)[0]
    for t, s in itertools.pairwise(model.sweeps.grid(size)):
        at = torch.tensor([[t], [s]]).expand(2, len(STATES))
        p = p @ product(model.reverse_law(STATES, *at, sampler="parallel").probs(), STATES)
    return p


def errors(hide: str, size: int) -> list[float]:
    return [total_variation(parallel_law(ggm(num_sweeps=R, hide=hide), size), P) for R in SWEEPS]


def head(hide: str, size: int) -> str:
    return f"| `hide: {hide}`, blocks of {size} of 4 |"


@pytest.mark.parametrize(("hide", "size"), ROWS)
def test_the_page_has_the_measured_table(hide: str, size: int) -> None:
    found = [line for line in PAGE.splitlines() if line.startswith(head(hide, size))]
    assert len(found) == 1
    figures = [float(figure) for figure in found[0].removeprefix(head(hide, size)).strip(" |").split(" | ")]
    assert errors(hide, size) == pytest.approx(figures, abs=6e-4)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_own_converges_in_sweeps_and_block_does_not(size: int) -> None:
    own, block = errors("own", size), errors("block", size)
    assert own[0] == pytest.approx(block[0], abs=1e-3)
    assert own[3] / own[4] == pytest.approx(2, abs=0.15)  # the error is of order 1/R
    assert block[4] > 0.85 * block[0]


def test_one_hidden_block_is_the_product_of_the_marginals_at_any_number_of_sweeps() -> None:
    independent = product(MARGINALS[None], STATES)[0]
    assert total_variation(independent, P) > 0.4
    for num_sweeps in SWEEPS:
        # a last survival of 1e-9: the chain starts where the noise ends
        model = ggm(num_sweeps=num_sweeps, hide="block", last_survival=1e-9)
        assert total_variation(parallel_law(model, N), independent) < 1e-8
    assert total_variation(parallel_law(ggm(num_sweeps=4, last_survival=1e-9), N), independent) > 0.1


def said(model: GGM, sampler: str, num_steps: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.sample(3, num_steps, sampler=sampler)
    return [str(w.message) for w in caught if "does not converge" in str(w.message)]


def test_the_sampler_says_so_once_and_only_then() -> None:
    block = ggm(hide="block", num_sweeps=2)
    assert said(block, "parallel", 4) == [sweeping.HIDDEN_BLOCK]
    assert "\n" not in sweeping.HIDDEN_BLOCK
    assert "within a block sites are independent" in sweeping.HIDDEN_BLOCK
    assert said(block, "parallel", 2 * N) == []  # blocks of one site are exact
    assert said(block, "gated", 1) == []
    assert said(ggm(num_sweeps=2), "parallel", 4) == []


if __name__ == "__main__":
    for hide, size in ROWS:
        print(head(hide, size), " | ".join(f"{error:.3f}" for error in errors(hide, size)), "|")
