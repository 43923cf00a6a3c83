"""A whole training step of each family: eager, its blocks compiled, with the fused loss, with the fused optimiser.

One change at a time, all from the same weights, in alternating order. Networks of 2 blocks of width 128 over 8,192
classes (Blackout: 16x16 counts), 16 rows of 128 sites: small enough for two cores, large enough for the head to matter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ggm_lightning.models.base import Family
from ggm_lightning.models.blackout import Blackout
from ggm_lightning.models.genmd4 import GenMD4
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.lddm import FujiLDDM, SeqLDDM
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.latent import JointDenoiser, LatentDenoiser
from ggm_lightning.networks.latent_encoder import LatentEncoder
from ggm_lightning.networks.ncsnpp import NCSNpp
from ggm_lightning.networks.transformer import Transformer
from tests.benchmarks import heads

V, N, ROWS = 8192, 128, 16
WIDTH: dict[str, Any] = {"feature_dim": 32, "num_heads": 4, "num_layers": 2}
LATENT: dict[str, Any] = {"num_latents": 8, "latent_dim": 8}
WAYS = ("eager", "compiled", "+ fused loss", "+ fused optimiser")


def family(name: str, compiled: bool) -> Family:
    torch.manual_seed(0)
    if name == "MD4":
        return MD4(Transformer(V, **WIDTH, compile_blocks=compiled), V, (N,))
    if name == "GenMD4":
        return GenMD4(Transformer(V, **WIDTH, compile_blocks=compiled), V, (N,))
    if name == "GGM":
        return GGM(Transformer(V, **WIDTH, visited_bits=True, compile_blocks=compiled), V, (N,), loss="bce")
    if name == "Blackout":
        network = NCSNpp((1, 16, 16), 32, (1, 2), 1, attention_sizes=(8,), compile_blocks=compiled)
        return Blackout(network, 256, (1, 16, 16))
    parts = {
        "network": JointDenoiser(V, **WIDTH, **LATENT, compile_blocks=compiled),
        "encoder": LatentEncoder(V, **WIDTH, **LATENT, compile_blocks=compiled),
    }
    if name == "LDDM, SEQ":
        parts["latent_network"] = LatentDenoiser(**WIDTH, **LATENT, compile_blocks=compiled)
        return SeqLDDM(**parts, num_classes=V, shape=(N,))
    return FujiLDDM(**parts, num_classes=V, shape=(N,))


FAMILIES = ("MD4", "GenMD4", "GGM", "LDDM, FUJI", "LDDM, SEQ", "Blackout")


def steps(name: str) -> dict[str, Callable[[int], Tensor]]:
    """One optimiser step on the rows of a fixed batch, in each way; step 0 begins with the first weights. All compiled
    ways share a model: compiling takes longer than measuring."""
    models = [family(name, compiled) for compiled in (False, True)]
    first = copy.deepcopy(models[0].state_dict())
    shape = models[0].shape
    x = torch.randint(models[0].num_classes, (ROWS, *shape), generator=torch.Generator().manual_seed(0))
    for model in models:
        model.configure_model()

    def way(number: int) -> Callable[[int], Tensor]:
        model = models[number >= 1]
        fused = number >= 2
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=number >= 3)

        def run(i: int) -> Tensor:
            if i == 0:
                model.load_state_dict(first)
            model.fused = None if fused and name != "Blackout" else fused
            optimizer.zero_grad(set_to_none=True)
            loss = model.loss(x, step=i)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return run

    return {name: way(number) for number, name in enumerate(WAYS)}


def measure(rounds: int = 5, families: tuple[str, ...] = FAMILIES) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds per step of each family in each way, and tokens (pixels, of Blackout) per second from the median."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in families:
        calls = steps(name)
        first = {way: float(call(0)) for way, call in calls.items()}
        for way, loss in first.items():  # all ways begin with the same weights and draws
            if abs(loss - first["eager"]) > 1e-4 * abs(first["eager"]):
                raise ValueError(f"{name}, {way}: loss {loss}, eager {first['eager']}; the ways must agree")
        times = heads.taking_turns(calls, rounds, "cpu")
        sites = ROWS * (256 if name == "Blackout" else N)
        found[name] = {way: heads.summary(t) for way, t in times.items()}
        for row in found[name].values():
            row["sites/s"] = sites / row["median_s"]
    return found
