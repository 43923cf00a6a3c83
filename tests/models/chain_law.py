"""The 27-state law of the specification of GGM, and its exact network with the mistakes of the controls."""

from __future__ import annotations

import torch
from torch import Tensor

from ggm_lightning.exact import glauber
from ggm_lightning.exact.law import JointLaw
from ggm_lightning.exact.states import all_states
from ggm_lightning.models.ggm import GGM

V = N = 3
_x = all_states(V, N)
_first = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
_step = torch.tensor([[0.80, 0.15, 0.05], [0.10, 0.70, 0.20], [0.30, 0.05, 0.65]], dtype=torch.float64)
JOINT = JointLaw((_first[_x[:, 0]] * _step[_x[:, 0], _x[:, 1]] * _step[_x[:, 1], _x[:, 2]]).reshape(V, V, V))
LAW, STATES, index = JOINT.p, JOINT.x, JOINT.index
SKEWED = [0.5, 0.3, 0.2]


class Mistaken(glauber.Hidden):
    """mistake: "late" (the conditional of P_{t+1}), "blind" (no visited bits), "bare" (no log pi in the softmax),
    "clean" (p0 in place of p_t)."""

    def __init__(self, mistake: str) -> None:
        super().__init__(JOINT)
        self.mistake = mistake

    def answer(self, z: Tensor, visited: Tensor, r: Tensor) -> Tensor:
        survival, log_pi = self.model.sweeps.survival, self.model.log_pi
        seen = torch.zeros_like(visited) if self.mistake == "blind" else visited
        p0 = self.clean(z, survival[r[:, None] + seen.long()])
        if self.mistake == "clean":
            return p0.log() - log_pi
        o = self.read(p0, survival[r + (self.mistake == "late")][:, None, None])
        return o - log_pi if self.mistake == "bare" else o


def exact(mistake: str = "", **options: object) -> GGM:
    network = Mistaken(mistake) if mistake else glauber.Hidden(JOINT)
    return glauber.with_network(JOINT, network, **{"last_survival": 0.02, "block_size": N, **options})
