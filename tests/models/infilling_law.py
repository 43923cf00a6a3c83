"""One law of four sites of three classes, two of them known, and its exact network for every family.

Every network here is Bayes' rule over the 81 clean states: what distinguishes the families is the probability of a
site's noisy value given its clean one (`reach` below). So all samplers are asked to fill in the same thing, with no
error but their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ggm_lightning.exact import glauber, latent
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.networks import Deaths, Exact, HollowMasked, Masked, Reached, TimedMasked
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.diladd import DiLADD
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4

N, V = 4, 3
LAW = JointLaw.random(N, V, seed=0)
P, CLEAN = LAW.p, LAW.x  # Float64[81], Int64[81, 4]
ONE_HOT = LAW.one_hot

VALUES = torch.tensor([1, 0, 0, 2])
KNOWN = torch.tensor([True, False, False, True])
UNKNOWN = torch.nonzero(~KNOWN)[:, 0]
# Whether the networks of MarkovDiffusion and Blackout (output: distribution) count the noisy value of the asked site
# itself: True where the family reads softmax(logits) as p(x_0 | x_t), False where it adds log P(x_t | x_0) to them.
OWN = False
EXPONENTS = torch.tensor([0.5, 1.0, 2.5], dtype=torch.float64)  # of GenMD4

_agrees = ((CLEAN == VALUES) | ~KNOWN).all(-1)
GIVEN = VALUES, KNOWN
TARGET = LAW.given(GIVEN)[_agrees]  # Float64[9], the exact conditional law of the unknown sites

_code = CLEAN.double() @ torch.tensor([1.0, -0.6, 0.8, 0.5], dtype=torch.float64)
_code = _code - P @ _code
CODE = _code / (P @ _code**2).sqrt()  # the latent of each clean state, Float64[81]


def cell(x: Tensor) -> Tensor:
    """The number 0..8 of the unknown sites' values in TARGET."""
    return x[:, UNKNOWN] @ torch.tensor([V, 1])


# what is drawn with the known sites ignored, and with the unknown ones independent given them: the scale of an error
IGNORANT = torch.zeros(len(TARGET), dtype=torch.float64).index_add(0, cell(CLEAN), P)
INDEPENDENT = (TARGET.reshape(V, V).sum(1)[:, None] * TARGET.reshape(V, V).sum(0)).flatten()


def filled(law: Tensor) -> Tensor:
    """Float64[9] of a law on all 81 states: what has another value at a known site is lost and seen in the sum."""
    return law[_agrees]


class Coded(Exact):
    """Di-LADD's: logits given tokens and the sign of CODE."""

    num_latents, latent_dim = 1, 1

    def forward(
        self, z: Tensor, t: Tensor, label: Tensor | None = None, *, latent: Tensor, latent_time: Tensor
    ) -> tuple[Tensor, Tensor]:
        agrees = ((z[:, None] == CLEAN) | (z[:, None] == V)).all(-1)
        other = (latent.flatten(1) > 0) != (CODE > 0)
        p = torch.where(agrees, P.log() - 1e3 * other, -torch.inf).softmax(-1)
        return LAW.marginals(p).log(), latent


def diladd(infill_latents: int = 16) -> DiLADD:
    """Two codes: the sign of CODE."""
    mass = torch.stack([P[CODE <= 0].sum(), P[CODE > 0].sum()])
    prior = MD4(Masked(JointLaw(mass)), 2, (1,))
    model = DiLADD(Coded(LAW), latent.Code(CLEAN, CODE), prior, V, (N,), num_codes=2, infill_latents=infill_latents)
    model.codebook.vectors.copy_(torch.tensor([[-1.0], [1.0]]))
    return model


def md4() -> MD4:
    return MD4(Masked(LAW), V, (N,))


def md4_hollow() -> MD4:
    return MD4(HollowMasked(LAW), V, (N,))


def genmd4() -> GenMD4:
    model = GenMD4(TimedMasked(LAW, EXPONENTS), V, (N,))
    model.raw_exponents = nn.Parameter(torch.log(torch.expm1(EXPONENTS)))
    return model


def ggm(**options: object) -> GGM:
    return glauber.with_network(LAW, glauber.Hidden(LAW), **{"block_size": N, **options})


def markov(process: object = "uniform", own: bool = OWN) -> MarkovDiffusion:
    network = Reached(LAW, lambda t: model.process.transition(model.tau(t)), own)
    model = MarkovDiffusion(network, V, (N,), process=process)
    return model


def blackout(distribution: bool = False, own: bool = OWN) -> Blackout:
    output, loss = ("distribution", "cross_entropy") if distribution else ("deaths", "likelihood")
    network = Deaths(LAW, output, own, counts=True)
    return Blackout(network, V, (N,), output, loss, time_input="logit", network_input="counts")


def fuji(infill_latents: int = 16) -> FujiLDDM:
    options = {"recipe": Recipe(stage1_steps=0), "infill_latents": infill_latents}
    return latent.fuji(LAW, CODE, independent_clocks=True, **options)


def seq(infill_latents: int = 16) -> SeqLDDM:
    return latent.seq(LAW, CODE, recipe=Recipe(stage1_steps=0), infill_latents=infill_latents)
