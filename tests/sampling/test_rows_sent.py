"""Only rows that need it are sent to the network, and it changes no draw: against the loop of whole batches, with
networks whose answer at a site depends on that row alone, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.core import noise, times
from ggm_lightning.core.categorical import Sharpening
from ggm_lightning.core.schedules import Linear
from ggm_lightning.models.base import Family
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4
from ggm_lightning.sampling import sweeping
from ggm_lightning.sampling.contract import Denoiser
from ggm_lightning.sampling.request import Request, Samples, checked

B, N, V, S, D = 7, 5, 3, 2, 11


def table(z: Tensor, t: Tensor) -> Tensor:
    """Float64[b, n, V] by single additions and multiplications: the same bits alone and in a batch."""
    site = torch.arange(1, N + 1, dtype=torch.float64)[:, None]
    left = z.roll(1, 1).double()
    classes = torch.arange(V, dtype=torch.float64)
    return 0.125 * (site * classes + left[..., None] * (classes - 1) - 3 * t.double()[:, None, None] * classes)


class Counted(nn.Module):
    """`table`; counts the rows that it gets."""

    num_latents, latent_dim = S, D

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.calls = 0, 0

    def seen(self, z: Tensor) -> None:
        self.calls += 1
        self.rows += len(z)

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, **more: Tensor) -> Tensor:
        self.seen(z)
        return table(z, t)


class Joint(Counted):
    def forward(
        self, z: Tensor, t: Tensor, label: Tensor | None = None, latent: Tensor | None = None, **more: Tensor
    ) -> tuple[Tensor, Tensor]:
        self.seen(z)
        assert latent is not None
        return table(z, t) * (1 + latent.double()[:, :1, :1]), 0.5 * latent


class OfLatent(Counted):
    def forward(self, latent: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return 0.5 * latent


class Code(nn.Module):
    num_latents, latent_dim = S, D

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        return torch.zeros(len(x), S, D)


FLOOR = Linear(0.2)  # so that the end fills what is left
VALUES = torch.arange(B * N).reshape(B, N) % V
KNOWN = torch.tensor([[i < k for i in range(N)] for k in (0, 5, 1, 4, 2, 3, 5)])  # rows that finish at all times
CLAMP = torch.where(KNOWN, VALUES, 0), KNOWN
SEED, SHARPER = 3, Sharpening(0.9, 0.95)
uniform = partial(noise.uniform, seed=SEED, row=torch.arange(B), num_sites=N)
alone = partial(noise.uniform, seed=SEED, row=torch.arange(B), num_sites=1)


def put_back(z: Tensor) -> Tensor:
    return torch.where(KNOWN, CLAMP[0], z)


def grid(model: Family, num_steps: int) -> list[tuple[Tensor, Tensor]]:
    times_ = torch.tensor(times.sampling_grid(num_steps, model.grids[0]), dtype=torch.float64)
    return list(pairwise(times_[:, None].expand(-1, B)))


def request(model: Family, num_steps: int) -> Request:
    options = {"latent_sampler": "ddpm"} if isinstance(model, SeqLDDM) else {}
    return checked(model, B, num_steps, clamp=CLAMP, seed=SEED, sharpening=SHARPER, options=options)


def finished(model: Family, z: Tensor, num_steps: int, denoiser: Denoiser | None = None) -> Tensor:
    return model.finish(z, None, partial(uniform, step=num_steps), SHARPER, denoiser)


# ------------------------------------------------------------------ the loops of whole batches


def by_law(model: Family, num_steps: int) -> Tensor:
    """Every row in every step, drawn from `reverse_law`."""
    with model.evaluating():
        more = {"denoiser": model.denoiser(request(model, num_steps))} if isinstance(model, SeqLDDM) else {}
        z = put_back(torch.full((B, N), V))
        for i, (t, s) in enumerate(grid(model, num_steps)):
            z = put_back(model.reverse_law(z, t, s, None, SHARPER, **more).draw(partial(uniform, step=i)))
        return finished(model, z, num_steps, more.get("denoiser"))


def together(model: FujiLDDM, num_steps: int) -> Tensor:
    def normal(stream: str, step: int) -> Tensor:
        return noise.normal(stream, seed=SEED, step=step, row=torch.arange(B), num_sites=S * D).reshape(B, S, D)

    with model.evaluating():
        z, latent = put_back(torch.full((B, N), V)), normal("latent prior", 0)
        for i, (t, s) in enumerate(grid(model, num_steps)):
            law = model.joint_law(z, t, s, None, SHARPER, latent=latent, sampler="ddpm")
            z, latent = put_back(law.tokens.draw(partial(uniform, step=i))), law.latent.draw(normal("latent", i))
        return finished(model, z, num_steps, model.given(latent))


def bridged(model: MarkovDiffusion, num_steps: int) -> Tensor:
    with model.evaluating():
        z = model.prior_sample(B, partial(uniform, step=0))
        z = torch.where(KNOWN, model.corrupt(CLAMP[0], torch.ones(B).double(), uniform("known", step=0)), z)
        for i, (t, s) in enumerate(grid(model, num_steps)):
            z = model.reverse_law(z, t, s, None, SHARPER, known=CLAMP).draw(partial(uniform, step=i))
        return z


def hitting(model: Family, num_steps: int) -> Tensor:
    """All rows in every call, at any site where a row is finished; what they are told is not used."""
    with model.evaluating():
        denoiser = model.denoiser(request(model, num_steps))
        z = put_back(model.prior_sample(B, partial(uniform, step=0)))
        ends = model.schedule.masked_fraction(torch.tensor([1.0, 0.0], dtype=torch.float64))
        u = ends[:1].expand(B)
        most = int((z == V).sum(1).max())
        for i in range(most):
            masked = z == V
            u = u * alone("time", step=i)[:, 0] ** (1 / masked.sum(1).clamp(min=1))
            rank = (alone("site", step=i)[:, 0] * masked.sum(1)).long()
            site = (masked.cumsum(1) == rank[:, None] + 1).long().argmax(1)
            here = torch.nn.functional.one_hot(site, N).bool()
            logits = denoiser(z, model.schedule.inverse(u), None, here, torch.arange(B))
            values = SHARPER.draw(logits, alone("value", step=i)[:, 0])
            z = torch.where(here & masked & (u > ends[1])[:, None], values[:, None], z)
        return finished(model, z, most, denoiser)


def visits(model: GGM, num_steps: int, kernel: str) -> Tensor:
    size = 1 if kernel == "gated" else sweeping.visits_at_once(num_steps, model.sweeps, model.block_size)
    path = model.sweeps.grid(size) + model.redenoise * model.sweeps.grid(size, first_sweeps=1)
    with model.evaluating():
        z = put_back(model.prior_sample(B, partial(uniform, step=0)))
        for i, when in enumerate(pairwise(path)):
            t, s = torch.tensor(when)[:, None].expand(2, B)
            u = partial(uniform, step=i)
            if when[1] > when[0]:
                z = put_back(model.corrupt(z, s, u))
            else:
                z = put_back(model.reverse_law(z, t, s, None, SHARPER, kernel, KNOWN).draw(u))
        return z


def seq() -> SeqLDDM:
    return SeqLDDM(Joint(), Code(), OfLatent(), V, (N,), schedule=FLOOR, infill_latents=3)


def fuji() -> FujiLDDM:
    return FujiLDDM(Joint(), Code(), V, (N,), schedule=FLOOR, independent_clocks=True, infill_latents=3)


# name -> (family, sampler, num_steps, the loop of whole batches)
CASES: dict[str, tuple[Callable[[], Any], str, int, Callable[..., Tensor]]] = {
    "md4": (lambda: MD4(Counted(), V, (N,), FLOOR), "ancestral", 13, by_law),
    "md4, hitting": (lambda: MD4(Counted(), V, (N,), FLOOR), "first_hitting", 1, hitting),
    "genmd4": (lambda: GenMD4(Counted(), V, (N,)), "ancestral", 13, by_law),
    "seq": (seq, "ddpm", 13, by_law),
    "seq, hitting": (seq, "first_hitting", 1, hitting),
    "fuji": (fuji, "ddpm", 13, together),
    "fuji, hitting": (fuji, "first_hitting", 1, hitting),
    "markov": (lambda: MarkovDiffusion(Counted(), V, (N,), "absorbing"), "ancestral", 13, bridged),
    "markov, hitting": (lambda: MarkovDiffusion(Counted(), V, (N,), "absorbing"), "first_hitting", 1, hitting),
    "markov, uniform": (lambda: MarkovDiffusion(Counted(), V, (N,)), "ancestral", 5, bridged),
    "ggm": (lambda: GGM(Counted(), V, (N,)), "gated", 1, partial(visits, kernel="gated")),
    "ggm, blocks": (
        lambda: GGM(Counted(), V, (N,), block_size=2), "parallel", 12, partial(visits, kernel="parallel"),
    ),
}  # fmt: skip
EVERY_ROW_MOVES = {"markov, uniform"}


def drawn(model: Family, sampler: str, num_steps: int, **more: object) -> Samples:
    if isinstance(model, SeqLDDM) and sampler == "first_hitting":
        more["latent_sampler"] = "ddpm"
    options = {"temperature": SHARPER.temperature, "top_p": SHARPER.top_p, "seed": SEED}
    return model.sample(B, num_steps, clamp=CLAMP, sampler=sampler, **options, **more)


@pytest.mark.parametrize("name", CASES)
def test_rows_that_are_not_sent_change_no_draw(name: str) -> None:
    build, sampler, num_steps, whole = CASES[name]
    model, reference = build(), build()
    few, expected = drawn(model, sampler, num_steps), whole(reference, num_steps)
    assert torch.equal(few.x, expected)
    assert not torch.equal(few.x, drawn(build(), sampler, num_steps, row=torch.arange(B) + 1).x)  # control
    assert (few.rows, few.network_calls) == (model.network.rows, model.network.calls)
    if name in EVERY_ROW_MOVES:
        assert few.rows == few.network_calls * B
    else:
        assert few.rows < reference.network.rows


def test_exactly_the_rows_in_which_a_site_is_revealed_are_sent() -> None:
    """Counted in the trace: of the plans, and not only at most."""
    for build, sampler, num_steps, _ in (CASES["md4"], CASES["md4, hitting"], CASES["markov, hitting"]):
        of_run = drawn(build(), sampler, num_steps, trace=True)
        changed = sum(int((a != b).any(1).sum()) for a, b in pairwise(of_run.trace))
        assert of_run.rows == changed
        assert 0 < changed < of_run.network_calls * B


def test_counts_of_one_run_are_its_own() -> None:
    model = seq()
    first, second = drawn(model, "ddpm", 13), drawn(model, "ddpm", 13)
    assert (first.network_calls, first.rows, first.other_calls) == (
        second.network_calls, second.rows, second.other_calls,
    )  # fmt: skip
    assert first.other_calls == {"latent_network": 32}
    assert MD4(Counted(), V, (N,)).sample(2, 3).other_calls == {}
