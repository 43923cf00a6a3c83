"""What networks/codebook.py promises: nearest directions, averages by hand, dead codes, micro-batches, being kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ggm_lightning.networks.codebook import Codebook

B, S, K, D = 6, 3, 5, 4


def units(seed: int, rows: int = B) -> Tensor:
    return F.normalize(torch.randn(rows, S, D, generator=torch.Generator().manual_seed(seed)), dim=-1)


def book(**changes: float) -> Codebook:
    torch.manual_seed(0)
    return Codebook(K, D, **({"dead_below": 0.0} | changes))


def step(made: Codebook, number: int, e: Tensor, *parts: slice) -> None:
    """One optimiser step with these rows, in these micro-batches."""
    row = torch.arange(len(e))
    for part in parts or (slice(None),):
        made.begin(number)
        made.observe(e[part], made.codes(e[part]), seed=1, row=row[part], total=len(e))


def test_a_code_is_the_nearest_direction_and_an_entry_has_coordinates_of_size_one() -> None:
    made, e = book(), units(1)
    cosine = torch.einsum("bsd,kd->bsk", 3 * e, made.vectors)
    assert torch.equal(made.codes(3 * e), cosine.argmax(-1))
    assert len(made.codes(e).unique()) > 1
    entries = made.entries(made.codes(e))
    torch.testing.assert_close(entries.square().mean(-1), torch.ones(B, S))
    assert torch.equal(made.codes(entries), made.codes(e))


def test_vectors_are_the_averages_by_hand() -> None:
    """Eq. (2), two steps. Control: nothing moves before the next step begins."""
    made, counts, sums = book(decay=0.8), torch.zeros(K), torch.zeros(K, D)
    first = made.vectors.clone()
    for number, e in enumerate((units(1), units(2))):
        step(made, number, e)
        if number == 0:
            assert torch.equal(made.vectors, first)
        codes = (e @ made.vectors.T).argmax(-1)  # as they were met: moved by the step before alone
        own = F.one_hot(codes, K).float()
        counts = 0.8 * counts + 0.2 * own.sum((0, 1))
        sums = 0.8 * sums + 0.2 * torch.einsum("bsk,bsd->kd", own, e)
    made.settle()
    torch.testing.assert_close(made.counts, counts)
    used = counts > 0
    torch.testing.assert_close(made.vectors[used], F.normalize(sums[used], dim=-1))
    assert torch.equal(made.vectors[~used], first[~used])
    assert (made.vectors[used] - first[used]).abs().max() > 0.05


def test_a_dead_code_becomes_a_latent_of_its_step_and_lives_on() -> None:
    """All latents lie near one vector: the other four codes are replaced, by latents of that step. Control: with
    dead_below 0 they stay."""
    e = F.normalize(F.one_hot(torch.zeros(B, S).long(), D) + 0.1 * units(3), dim=-1)
    made, kept = book(dead_below=0.5), book()
    first = made.vectors.clone()
    for one in (made, kept):
        step(one, 0, e)
        one.settle()
    used = made.codes(e).unique()
    dead = made.counts == B * S / K  # as if each had been used as often as the others
    assert int(dead.sum()) >= K - 1
    nearest = (made.vectors[dead] @ e.flatten(0, 1).T).amax(1)
    torch.testing.assert_close(nearest, torch.ones_like(nearest))
    assert len(used) > 1
    untouched = [k for k in range(K) if torch.equal(kept.vectors[k], first[k])]
    assert len(untouched) == K - 1


@pytest.mark.parametrize("dead_below", [0.0, 4.0])
def test_micro_batches_are_one_batch(dead_below: float) -> None:
    """Uneven ones, in another order; the dead codes' latents are the same. Control: a step of other rows."""
    whole, parts, other = (book(dead_below=dead_below) for _ in range(3))
    step(whole, 7, units(4))
    step(parts, 7, units(4), slice(4, 6), slice(0, 1), slice(1, 4))
    step(other, 7, units(5))
    for one in (whole, parts, other):
        one.settle()
    torch.testing.assert_close(parts.vectors, whole.vectors)
    torch.testing.assert_close(parts.counts, whole.counts)
    assert (other.vectors - whole.vectors).abs().max() > 0.05


def test_what_is_pending_is_kept_with_the_rest() -> None:
    """Cut after a step, before the next one begins. Control: without it the vectors are others."""
    whole, cut = book(dead_below=0.5), book(dead_below=0.5)
    step(whole, 0, units(1))
    step(cut, 0, units(1))
    again = book()
    again.dead_below = 0.5
    again.load_state_dict(cut.state_dict())
    for one in (whole, again):
        step(one, 1, units(2))
        one.settle()
    assert torch.equal(again.vectors, whole.vectors)
    assert not torch.equal(again.vectors, cut.vectors)


def test_fit_is_lloyds_algorithm() -> None:
    """A round by hand, with a code that nothing is nearest to; and rounds bring what is fitted nearer."""
    made, e = book(), units(6, 40).flatten(0, 1)
    made.vectors[2] = -F.normalize(e.sum(0), dim=0)  # behind all that there is, once the others are gone there
    e = e[(e @ made.vectors.T).argmax(-1) != 2]
    cosine, codes = (e @ made.vectors.T).max(-1)
    made.fit(e, rounds=1)
    for k in range(K):
        mine = e[codes == k]
        expected = F.normalize(mine.sum(0), dim=0) if len(mine) else e[cosine.argmin()]
        torch.testing.assert_close(made.vectors[k], expected)
    assert not (codes == 2).any()
    near = float((e @ made.vectors.T).amax(-1).mean())
    made.fit(e)
    assert float((e @ made.vectors.T).amax(-1).mean()) > near + 0.005
    assert len(made.codes(e).unique()) == K


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"decay": 1.0}, "decay is 1.0"), ({"dead_below": -1.0}, "dead_below is -1.0; it must be at least 0")],
)
def test_wrong_arguments_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        book(**changes)
    with pytest.raises(ValueError, match="num_codes is 0; a codebook has at least 1 code"):
        Codebook(0, D)
