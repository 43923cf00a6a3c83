"""Which sites are hidden, and accuracy and bound of fillings against an enumerated law."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ggm_lightning.core import schedules
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Masked
from ggm_lightning.metrics import infilling
from ggm_lightning.models.md4 import MD4
from tests.models import infilling_law

ROWS = torch.tensor([3, 0, 12, 7, 5])


@pytest.mark.parametrize("pattern", infilling.PATTERNS)
@pytest.mark.parametrize("shape", [(13,), (3, 7, 5), (5, 7)])
def test_hidden_sites_are_a_function_of_seed_row_and_site(pattern: str, shape: tuple[int, ...]) -> None:
    """As many as the share says, within those of a larger share, whatever the batch."""
    before = torch.zeros(len(ROWS), *shape, dtype=torch.bool)
    for share in infilling.SHARES:
        hidden = infilling.hidden_sites(pattern, share, shape, ROWS, seed=2)
        assert hidden.shape == before.shape
        count = hidden.flatten(1).sum(1)
        wanted = share * math.prod(shape)
        if pattern == "span" and len(shape) > 1:
            side = [max(1, round(math.sqrt(share) * size)) for size in shape[-2:]]
            wanted = math.prod(side) * math.prod(shape[:-2])
        assert (count - max(1, wanted)).abs().max() <= 0.5
        assert not bool((before & ~hidden).any())
        alone = infilling.hidden_sites(pattern, share, shape, ROWS[[2]], seed=2)
        assert torch.equal(alone[0], hidden[2])
        before = hidden
    assert bool((infilling.hidden_sites(pattern, 1.0, shape, ROWS)).all())
    if pattern != "end":
        other = infilling.hidden_sites(pattern, 0.3, shape, ROWS, seed=3)
        assert not torch.equal(other, infilling.hidden_sites(pattern, 0.3, shape, ROWS, seed=2))


def test_what_the_patterns_look_like() -> None:
    row = torch.arange(400)
    span = infilling.hidden_sites("span", 0.3, (10,), row)
    assert (span.long().diff(dim=1) == 1).sum(1).add(span[:, 0]).eq(1).all()  # one beginning: a single stretch
    assert len(span.unique(dim=0)) == 8  # every place
    box = infilling.hidden_sites("span", 0.25, (3, 8, 4), row)
    assert (box == box[:, :1]).all()  # all channels
    rows, columns = box[:, 0].any(2), box[:, 0].any(1)
    assert torch.equal(box[:, 0], rows[:, :, None] & columns[:, None])
    assert (rows.sum(1) == 4).all()
    assert (columns.sum(1) == 2).all()
    share = infilling.hidden_sites("random", 0.3, (10,), row).double().mean(0)
    assert (share - 0.3).abs().max() < 5 * math.sqrt(0.21 / 400)
    end = infilling.hidden_sites("end", 0.3, (10,), row)
    assert end[5].tolist() == [False] * 7 + [True] * 3
    with pytest.raises(ValueError, match="choose random or span or end"):
        infilling.hidden_sites("middle", 0.3, (10,), row)
    with pytest.raises(ValueError, match=r"lies in \(0, 1\]"):
        infilling.hidden_sites("end", 0.0, (10,), row)


def conditional_law(law: JointLaw, known: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean over the hidden sites of p(x_i | x_K), -log p(x_H | x_K)), each Float64[b]."""
    agrees = (x[:, None, known] == law.x[None, :, known]).all(-1) * law.p
    whole = (x[:, None] == law.x[None]).all(-1) * law.p
    right = (x[:, None] == law.x[None])[..., ~known]
    given = agrees.sum(1)
    return (agrees[..., None] * right).sum(1).mean(1) / given, -(whole.sum(1) / given).log()


def test_accuracy_and_bound_of_the_exact_network() -> None:
    """Draws of the law itself: both means within four standard errors. Control: a wrong temperature."""
    law = JointLaw.random(4, 3, seed=0)
    model = MD4(Masked(law), 3, (4,), schedule=schedules.Linear(0.0))
    x = law.x[torch.multinomial(law.p, 4000, replacement=True, generator=torch.Generator().manual_seed(1))]
    row = torch.arange(len(x))

    def fill(values: Tensor, known: Tensor, rows: Tensor, label: Tensor | None, temperature: float = 1.0) -> Tensor:
        return model.sample(
            len(values), 4, clamp=(values, known), row=rows, sampler="first_hitting", temperature=temperature
        ).x

    found = infilling.measure(model, x, row, "end", 0.5, fill, num_samples=2, batch_size=1500)
    known = torch.tensor([True, True, False, False])
    right, nats = conditional_law(law, known, x)
    assert (found.hidden, found.rows) == (2, 4000)
    assert found.accuracy == pytest.approx(float(right.mean()), abs=4 * found.accuracy_stderr)
    assert found.nats == pytest.approx(float(nats.mean()) / 2, abs=4 * (found.nats_stderr or 0))
    assert found.distance is None
    assert found.accuracy_stderr < 0.01
    assert found.accuracy - found.guess > 6 * found.accuracy_stderr
    modes = infilling.measure(
        model, x, row, "end", 0.5, lambda *a: fill(*a, temperature=0.0), ordered=True, batch_size=4000, bound=False
    )
    assert modes.accuracy - float(right.mean()) > 10 * found.accuracy_stderr
    assert 0 < (modes.distance or 0) < 2
    again = infilling.measure(model, x, row, "end", 0.5, None, num_samples=2, batch_size=977)
    assert (again.nats, math.isnan(again.accuracy)) == (pytest.approx(found.nats, abs=1e-12), True)


def test_a_family_without_a_bound_has_its_accuracy_alone() -> None:
    model, x = infilling_law.markov(), infilling_law.CLEAN[:7]
    found = infilling.measure(model, x, torch.arange(7), "random", 0.5, lambda values, *_: values)
    assert (found.accuracy, found.nats, found.nats_stderr) == (1.0, None, None)
