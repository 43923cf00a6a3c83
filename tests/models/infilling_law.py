"""One law of four sites of three classes, two of them known, and its exact network for every family.

Every network here is Bayes' rule over the 81 clean states: what distinguishes the families is the probability of a
site's noisy value given its clean one (`reach` below). So all samplers are asked to fill in the same thing, with no
error but their own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ggm_lightning.core import counting, gaussian
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.diladd import DiLADD
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.lddm_stages import Recipe
from ggm_lightning.models.markov import MarkovDiffusion
from ggm_lightning.models.md4 import MD4
from tests.models.exact_law import ExactLaw
from tests.models.latent_law import Code

N, V = 4, 3
_LAW = ExactLaw.random(N, V, seed=0)
P, CLEAN = _LAW.p, _LAW.x  # Float64[81], Int64[81, 4]
ONE_HOT = nn.functional.one_hot(CLEAN, V).double()

VALUES = torch.tensor([1, 0, 0, 2])
KNOWN = torch.tensor([True, False, False, True])
UNKNOWN = torch.nonzero(~KNOWN)[:, 0]
# Whether the networks of MarkovDiffusion and Blackout (output: distribution) count the noisy value of the asked site
# itself: True where the family reads softmax(logits) as p(x_0 | x_t), False where it adds log P(x_t | x_0) to them.
OWN = False
EXPONENTS = torch.tensor([0.5, 1.0, 2.5], dtype=torch.float64)  # of GenMD4

_agrees = ((CLEAN == VALUES) | ~KNOWN).all(-1)
TARGET = P[_agrees] / P[_agrees].sum()  # Float64[9], the exact conditional law of the unknown sites

_code = CLEAN.double() @ torch.tensor([1.0, -0.6, 0.8, 0.5], dtype=torch.float64)
_code = _code - P @ _code
CODE = _code / (P @ _code**2).sqrt()  # the latent of each clean state, Float64[81]


def distance(p: Tensor, q: Tensor) -> float:
    """Total variation."""
    return 0.5 * float((p - q).abs().sum())


def cell(x: Tensor) -> Tensor:
    """The number 0..8 of the unknown sites' values in TARGET."""
    return x[:, UNKNOWN] @ torch.tensor([V, 1])


# what is drawn with the known sites ignored, and with the unknown ones independent given them: the scale of an error
IGNORANT = torch.zeros(len(TARGET), dtype=torch.float64).index_add(0, cell(CLEAN), P)
INDEPENDENT = (TARGET.reshape(V, V).sum(1)[:, None] * TARGET.reshape(V, V).sum(0)).flatten()


def log_posterior(reach: Tensor, weight: Tensor = P, own: bool = True) -> Tensor:
    """log p(x_n = v | z), Float64[b, n, V], from reach Float64[b, n, V] = P(z_n | x_n = v) and the weights of the clean
    states, Float64[81] or [b, 81].

    own: False leaves the site's own factor out, p(x_n = v | all sites of z but n): what a network returns where the
    family adds log P(z_n | x_n = v) itself.
    """
    factors = reach[:, torch.arange(N), CLEAN]  # [b, 81, n]
    if own:
        return log_marginals(weight * factors.prod(-1))
    others = [[m for m in range(N) if m != n] for n in range(N)]
    return torch.stack([log_marginals(weight * factors[..., some].prod(-1))[:, n] for n, some in enumerate(others)], 1)


def log_marginals(weight: Tensor) -> Tensor:
    """log p(x_n = v), Float64[b, n, V], of the law on clean states with these weights, Float64[b, 81]."""
    joint = (weight @ ONE_HOT.flatten(1)).reshape(-1, N, V)
    return torch.log(joint / joint.sum(-1, keepdim=True))


class Exact(nn.Module):
    """An exact network: told the time in float64, because its parameter is."""

    def __init__(self) -> None:
        super().__init__()
        self.precision = nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)


def distinct(t: Tensor, *columns: Tensor) -> tuple[Tensor, Tensor]:
    """(first, back): one row of each kind of (t, integers 0..V), and for every row its kind. Thousands of samples are
    in few states, so that a network has few answers to compute."""
    code = t.unique(return_inverse=True)[1]
    for column in torch.cat(columns, 1).unbind(1):
        code = code * (V + 1) + column.long()
    _, back, count = code.unique(return_inverse=True, return_counts=True)
    return back.argsort(stable=True)[count.cumsum(0) - count], back


def seen(z: Tensor, masked: Tensor | float = 1.0) -> Tensor:
    """reach of masked states: a visible site is what it shows; a masked one has the factor `masked`."""
    hidden = (z == V)[..., None]
    shown = nn.functional.one_hot(torch.where(z == V, 0, z), V).double()
    return torch.where(hidden, masked, shown)


class Masked(Exact):
    """MD4's."""

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        first, back = distinct(torch.zeros_like(t), z)
        return log_posterior(seen(z[first]))[back]


class HollowMasked(Masked):
    """What it says at a site does not depend on the site's own token."""

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return log_posterior(seen(z), own=False)


class TimedMasked(Exact):
    """GenMD4's: that a site is masked at t tells of its value."""

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        first, back = distinct(t, z)
        return log_posterior(seen(z[first], (t[first, None] ** EXPONENTS)[:, None]))[back]


class Hidden(Exact):
    """GGM's: o = log p_t(x | y) - log pi(x) at the hidden sites, given the survivals of `model`."""

    def __init__(self) -> None:
        super().__init__()
        self.model: list[GGM] = []  # in a list, so that it is no submodule

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None, visited: Tensor | None = None) -> Tensor:
        first, back = distinct(t, z, visited)
        return self.answer(z[first], t[first], visited[first])[back]

    def answer(self, z: Tensor, t: Tensor, visited: Tensor) -> Tensor:
        model = self.model[0]
        log_pi, survival = model.log_pi, model.sweeps.survival
        r = torch.round(t * model.sweeps.num_sweeps).long()
        a = survival[r[:, None] + visited.long()][..., None]  # a site that the sweep has visited is one sweep ahead
        shown = torch.where(z == V, 0, z)
        noisy = a * nn.functional.one_hot(shown, V) + (1 - a) * log_pi.exp()[shown][..., None]
        p0 = log_posterior(torch.where((z == V)[..., None], 1.0, noisy)).exp()
        own = survival[r][:, None, None]
        return torch.log(own * p0 + (1 - own) * log_pi.exp()) - log_pi


class Through(Exact):
    """MarkovDiffusion's; own: see log_posterior."""

    def __init__(self, own: bool = True) -> None:
        super().__init__()
        self.own = own
        self.model: list[MarkovDiffusion] = []

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        model, (first, back) = self.model[0], distinct(t, z)
        K = model.process.transition(model.tau(t[first]))[..., :V]  # [b, x_t, x_0]
        return log_posterior(K.gather(1, z[first][..., None].expand(-1, -1, V)), own=self.own)[back]


class Counts(Exact):
    """Blackout's: expected deaths, or with `distribution` the logits of x_0; own: see log_posterior."""

    def __init__(self, distribution: bool, own: bool = True) -> None:
        super().__init__()
        self.distribution, self.own = distribution, own

    def forward(self, z: Tensor, f: Tensor, label: Tensor | None = None) -> Tensor:
        first, back = distinct(f, z)
        return self.answer(z[first], f[first])[back]

    def answer(self, z: Tensor, f: Tensor) -> Tensor:
        p = torch.sigmoid(f)[:, None, None]
        x0 = torch.arange(V, dtype=torch.float64)
        log_reach = counting.log_pmf(z[..., None].double().clamp(max=V - 1), x0, p, 1 - p)
        reach = torch.where(x0 >= z[..., None], log_reach.exp(), 0.0)
        if self.distribution:
            return log_posterior(reach, own=self.own)
        return log_posterior(reach).exp() @ x0 - z


def latent_law(latent: Tensor, latent_time: Tensor, z: Tensor) -> Tensor:
    """p(x | latent, visible tokens of z), Float64[b, 81]; normalised in logs, for latents far out."""
    schedule = gaussian.Sqrt()
    signal, noise = schedule.alpha(latent_time)[:, None], schedule.masked_fraction(latent_time)[:, None]
    log_weight = P.log() - 0.5 * (latent.flatten(1) - signal.sqrt() * CODE) ** 2 / noise
    agrees = ((z[:, None] == CLEAN) | (z[:, None] == V)).all(-1)
    return torch.where(agrees, log_weight, -torch.inf).softmax(-1)


class Joint(Exact):
    """LDDM's: logits and E[z_0], given tokens and latent."""

    num_latents, latent_dim = 1, 1

    def forward(
        self, z: Tensor, t: Tensor, label: Tensor | None = None, *, latent: Tensor, latent_time: Tensor
    ) -> tuple[Tensor, Tensor]:
        p = latent_law(latent, latent_time, z)
        return log_marginals(p), (p @ CODE).reshape(-1, 1, 1)


class Latent(Exact):
    """The latent's own, without tokens."""

    num_latents, latent_dim = 1, 1

    def forward(self, latent: Tensor, latent_time: Tensor, label: Tensor | None = None) -> Tensor:
        masked = torch.full((len(latent), N), V)
        return (latent_law(latent, latent_time, masked) @ CODE).reshape(-1, 1, 1)


class Coded(Exact):
    """Di-LADD's: logits given tokens and the sign of CODE."""

    num_latents, latent_dim = 1, 1

    def forward(
        self, z: Tensor, t: Tensor, label: Tensor | None = None, *, latent: Tensor, latent_time: Tensor
    ) -> tuple[Tensor, Tensor]:
        agrees = ((z[:, None] == CLEAN) | (z[:, None] == V)).all(-1)
        other = (latent.flatten(1) > 0) != (CODE > 0)
        p = torch.where(agrees, P.log() - 1e3 * other, -torch.inf).softmax(-1)
        return log_marginals(p), latent


def diladd(infill_latents: int = 16) -> DiLADD:
    """Two codes: the sign of CODE."""
    mass = torch.stack([P[CODE <= 0].sum(), P[CODE > 0].sum()])
    prior = MD4(ExactLaw(mass.numpy()), 2, (1,))
    model = DiLADD(Coded(), Code(CLEAN, CODE), prior, V, (N,), num_codes=2, infill_latents=infill_latents)
    model.codebook.vectors.copy_(torch.tensor([[-1.0], [1.0]]))
    return model


def md4() -> MD4:
    return MD4(Masked(), V, (N,))


def md4_hollow() -> MD4:
    return MD4(HollowMasked(), V, (N,))


def genmd4() -> GenMD4:
    model = GenMD4(TimedMasked(), V, (N,))
    model.raw_exponents = nn.Parameter(torch.log(torch.expm1(EXPONENTS)))
    return model


def ggm(**options: object) -> GGM:
    network = Hidden()
    model = GGM(network, V, (N,), **{"block_size": N, **options})
    network.model.append(model)
    return model


def markov(process: object = "uniform", own: bool = OWN) -> MarkovDiffusion:
    network = Through(own)
    model = MarkovDiffusion(network, V, (N,), process=process)
    network.model.append(model)
    return model


def blackout(distribution: bool = False, own: bool = OWN) -> Blackout:
    output, loss = ("distribution", "cross_entropy") if distribution else ("deaths", "likelihood")
    network = Counts(distribution, own)
    return Blackout(network, V, (N,), output, loss, time_input="logit", network_input="counts")


def fuji(infill_latents: int = 16) -> FujiLDDM:
    options = {"recipe": Recipe(stage1_steps=0), "infill_latents": infill_latents}
    return FujiLDDM(Joint(), Code(CLEAN, CODE), V, (N,), independent_clocks=True, **options)


def seq(infill_latents: int = 16) -> SeqLDDM:
    options = {"recipe": Recipe(stage1_steps=0), "infill_latents": infill_latents}
    return SeqLDDM(Joint(), Code(CLEAN, CODE), Latent(), V, (N,), **options)
