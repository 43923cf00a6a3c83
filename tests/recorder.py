"""Losses, bounds and samples of every family as exact bits: a change that should change no number proves it here.

    python -m tests.recorder record before.json     # in the tree of before
    python -m tests.recorder compare before.json    # in the tree of after: exit code 1 and a line per difference
    python -m tests.recorder against 916eb8f             # both: records that commit in a tree of its own, then compares

Each family takes 12 steps of AdamW, then gives one bound and one sample, once by the plain formulas and once by the
fused losses. Bits differ between processors and between versions of torch, so a record is compared on the machine that
made it, and none is committed. Figures that moved on purpose, and why, stand in CHANGELOG.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ggm_lightning import GGM, MD4, AutoregressiveModel, Blackout, FujiLDDM, GenMD4, MarkovDiffusion, SeqLDDM
from ggm_lightning.models.base import Family
from ggm_lightning.networks.latent import JointDenoiser, LatentDenoiser
from ggm_lightning.networks.latent_encoder import LatentEncoder
from ggm_lightning.networks.transformer import Transformer

V, N = 11, 13
STEPS, ROWS = 12, 8
SMALL = {"feature_dim": 8, "num_heads": 2, "num_layers": 1}
LATENT = {"num_latents": 2, "latent_dim": 3}
ROOT = Path(__file__).parents[1]

Record = dict[str, dict[str, object]]


def transformer(**options: object) -> nn.Module:
    return Transformer(V, **SMALL, **options)


def joint() -> nn.Module:
    return JointDenoiser(V, **SMALL, **LATENT)


def encoder() -> nn.Module:
    return LatentEncoder(V, **SMALL, **LATENT)


def seq() -> Family:
    return SeqLDDM(joint(), encoder(), LatentDenoiser(**SMALL, **LATENT), V, (N,))


def counts() -> Family:
    options = {"output": "distribution", "loss": "cross_entropy", "network_input": "counts", "time_input": "unit"}
    return Blackout(transformer(), V, (N,), **options)


def autoregressive() -> Family:
    return AutoregressiveModel(transformer(time_features="none", causal=True), V, (N,))


def blocks() -> Family:
    return GGM(transformer(visited_bits=True), V, (N,), loss="ce_x0", block_size=4, hide="block")


FAMILIES: dict[str, Callable[[], Family]] = {
    "md4": lambda: MD4(transformer(), V, (N,)),
    "genmd4": lambda: GenMD4(transformer(), V, (N,)),
    "ar": autoregressive,
    "ggm": lambda: GGM(transformer(visited_bits=True), V, (N,)),
    "ggm_blocks": blocks,
    "fuji": lambda: FujiLDDM(joint(), encoder(), V, (N,)),
    "seq": seq,
    "blackout": counts,
    "markov": lambda: MarkovDiffusion(transformer(), V, (N,), num_timesteps=10),
}


def bits(values: Tensor) -> str:
    """The first 16 digits of the sha256 of a tensor's bytes."""
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()[:16]


def record_one(make: Callable[[], Family], fused: bool) -> dict[str, object]:
    torch.manual_seed(0)
    model = make()
    model.fused = fused
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    x = torch.randint(V, (ROWS, N), generator=torch.Generator().manual_seed(1))
    losses = []
    for step in range(STEPS):
        loss = model.loss(x, step=step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()).hex())
    bound = model.nelbo(x, num_samples=2, seed=3)
    return {"losses": losses, "bound": bits(bound), "sample": bits(model.sample(3, 6, seed=5).x)}


def record() -> Record:
    torch.set_num_threads(1)
    return {
        f"{name}, {'fused' if fused else 'plain'}": record_one(make, fused)
        for name, make in FAMILIES.items()
        for fused in (False, True)
    }


def differences(before: Record, after: Record) -> Iterator[str]:
    """One line for each figure that is not the same to the bit; a run that was not there before cannot differ."""
    for run in before:
        if run not in after:
            yield f"{run}: only before"
            continue
        for figure, value in before[run].items():
            if after[run].get(figure) != value:
                yield f"{run}: {figure} was {value}, is {after[run].get(figure)}"


def of_commit(commit: str) -> Record:
    """The record of another commit by this very file, in a tree of its own that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree, file = Path(folder) / "tree", Path(folder) / "record.json"
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--detach", tree, commit], check=True, capture_output=True
        )
        try:
            environment = {**os.environ, "PYTHONPATH": str(tree)}
            command = [sys.executable, str(Path(__file__).resolve()), "record", str(file)]
            subprocess.run(command, cwd=tree, env=environment, check=True)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)
        return json.loads(file.read_text())


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("record", "compare", "against"):
        print(__doc__, file=sys.stderr)
        return 2
    command, where = arguments
    if command == "record":
        Path(where).write_text(json.dumps(record(), indent=1))
        return 0
    before: Record = of_commit(where) if command == "against" else json.loads(Path(where).read_text())
    found = sorted(differences(before, record()))
    print("\n".join(found) if found else f"{len(before)} runs: every loss, bound and sample equal to the bit")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
