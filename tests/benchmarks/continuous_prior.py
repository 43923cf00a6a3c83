"""SEQ's continuous latent on the demo's text, in the ways that later work names, for the seconds of text_families.py.

    python -m tests.benchmarks.continuous_prior [--seconds 110] [--seed 0] [--models ...]

The question is whether a prior of continuous latents can be learnt at this size. What is tried, alone and together:

- fewer numbers, and noise on what the decoder reads (max_snr);
- an encoder and a decoder that begin as a trained MD4 (DiLaDiff, arXiv 2605.23605: an auto-encoder made from a masked
  model); MD4's own seconds count;
- encoder, decoder and prior trained together, on the true bound in which the latent's cost reaches the encoder, warmed
  up (LDLM, arXiv 2605.07933); the encoder is fixed for the last 30 % of the seconds.

Of both papers no more than the abstracts was at hand. Each run is kept below runs/, and the same command goes on with
what is missing; the table is results/continuous_prior.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ggm_lightning.core import gaussian, times
from ggm_lightning.core.noise import StepNoise
from ggm_lightning.core.schedules import Polynomial
from ggm_lightning.models.lddm import SeqLDDM
from ggm_lightning.models.lddm_stages import Recipe, TrainingTimes
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.latent import JointDenoiser, LatentDenoiser
from ggm_lightning.networks.latent_encoder import LatentEncoder
from ggm_lightning.networks.transformer import Transformer
from tests.benchmarks import text_families as families
from tests.benchmarks import text_latents
from tests.benchmarks.text_latents import LATENTS

RESULTS = families.RESULTS / "continuous_prior.json"
KEPT = families.KEPT.parent / "continuous_prior"
STEPS = (1, 2, 4, 16)
OF_MD4, STAGE1, TOGETHER = 0.3, 0.35, 0.7  # shares of the seconds
WARM_UP = 500  # steps until the latent's cost has its whole weight
_WIDE = {"feature_dim": 16, "num_heads": 4, "mlp": "geglu"}


@dataclass(frozen=True)
class Variant:
    """A way to train it.

    Attributes:
        numbers: d, of a latent.
        max_snr: of the cleanest latent.
        from_md4: encoder and decoder begin as a trained MD4.
        together: the latent's cost reaches the encoder.
        normalise: of the encoder (networks/latent_encoder.py).
    """

    numbers: int = 16
    max_snr: float = 64.0
    from_md4: bool = False
    together: bool = False
    normalise: str = "coordinate"


VARIANTS = {
    "as in text_latents": Variant(),
    "4 numbers, noisier": Variant(4, 16.0),
    "16 numbers, far noisier": Variant(16, 2.0),
    "from MD4": Variant(from_md4=True),
    "from MD4, 4 numbers, noisier": Variant(4, 16.0, from_md4=True),
    "from MD4, 2 numbers, noisier": Variant(2, 16.0, from_md4=True),
    "together": Variant(together=True),
    "together, from MD4, 4 numbers, noisier": Variant(4, 16.0, from_md4=True, together=True),
    "together, size free": Variant(together=True, normalise="none"),
    "together, size free, from MD4": Variant(from_md4=True, together=True, normalise="none"),
    "together, size free, from MD4, 4 numbers": Variant(4, from_md4=True, together=True, normalise="none"),
}


class Together(SeqLDDM):
    """The whole bound is the loss, as of a variational auto-encoder, until the encoder is fixed."""

    def learning(self, step: int) -> tuple[bool, bool]:
        return not self.is_fixed, True

    def training_times(self, step: int, row: Tensor, total: int) -> TrainingTimes:
        t = times.stratified(seed=self.seed, step=step, row=row, total=total)
        u = gaussian.independent_times(seed=self.seed, step=step, row=row, total=total)
        return TrainingTimes(t, torch.zeros_like(t), *self.clock.importance(u))

    def training_loss(self, x: Tensor, label: Tensor | None, draws: StepNoise) -> Tensor:
        self.recipe = replace(self.recipe, c_z=min(1.0, (draws.step + 1) / WARM_UP))
        return super().training_loss(x, label, draws)


def model_of(variant: Variant, text: families.Text, seed: int) -> SeqLDDM:
    v, length = text.num_classes, families.LENGTH
    sizes = {"num_latents": LATENTS, "latent_dim": variant.numbers}
    encoder = LatentEncoder(v, num_layers=2, chunk=length // LATENTS, normalise=variant.normalise, **sizes, **_WIDE)
    network = JointDenoiser(v, num_layers=2, condition_dim=32, latent_positions="aligned", **sizes, **_WIDE)
    latent = LatentDenoiser(32, 4, 3, condition_dim=32, **sizes)
    kind, latent_loss = (Together, "elbo") if variant.together else (SeqLDDM, "plain")
    recipe = Recipe(stage1_steps=10**9, latent_loss=latent_loss)
    common = {"schedule": Polynomial(2.0), "recipe": recipe, "seed": seed, "max_snr": variant.max_snr}
    return kind(network, encoder, latent, v, (length,), **common)


def begin_as(md4: MD4, model: SeqLDDM) -> int:
    """Blocks, embeddings and head of the decoder, blocks and embeddings of the encoder; how many tensors were taken."""
    trained = md4.network.state_dict()
    taken = 0
    for name, own in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part not in ("network", "encoder"):
            continue
        theirs = trained.get(rest.replace(".tokens.", "."))
        if theirs is None or theirs.shape[1:] != own.shape[1:] or len(theirs) < len(own):
            continue
        own.copy_(theirs[: len(own)])  # the encoder has no row for the mask
        taken += 1
    return taken


def one_run(name: str, text: families.Text, seconds: float, seed: int) -> dict[str, Any]:
    """Trained, bounded, sampled and judged."""
    variant = VARIANTS[name]
    torch.manual_seed(seed)
    model = model_of(variant, text, seed)
    left = seconds
    begin = time.process_time()
    if variant.from_md4:
        network = Transformer(text.num_classes, num_layers=2, time_features="none", **_WIDE)
        md4 = MD4(network, text.num_classes, (families.LENGTH,), schedule=Polynomial(2.0), seed=seed)
        families.trained(md4, text, OF_MD4 * seconds, seed)
        taken = begin_as(md4, model)
        assert taken > 20, f"only {taken} tensors of MD4 fit"
        left *= 1 - OF_MD4
    stage1 = TOGETHER if variant.together else STAGE1
    steps = families.trained(model, text, left, seed, stage1=stage1)
    spent = time.process_time() - begin
    bits = families.bits_of_rows(model, text.rows(families.HELD_OUT))
    found: dict[str, Any] = {"model": name, "seed": seed, "seconds": round(spent, 1), "steps": steps}
    found |= {"bits": round(float(bits.mean()), 4), "stderr": round(float(bits.std()) / len(bits) ** 0.5, 4)}
    found |= {"latent": text_latents.of_the_latent(model, text.rows(families.HELD_OUT)), "samples": {}}
    order3 = text.judge()
    for calls in STEPS:
        drawn = model.sample(families.SAMPLES, calls, seed=1)
        found["samples"][str(calls)] = families.judged(drawn.x, text, order3, None)
    return found


def show(runs: list[dict[str, Any]]) -> None:
    for run in runs:
        own = ", ".join(f"{key} {value:.3f}" for key, value in run["latent"].items())
        samples = ", ".join(
            f"{calls}: {row['order_3']:.2f} ({row['distinct_4']:.2f})" for calls, row in run["samples"].items()
        )
        print(f"{run['model']}, seed {run['seed']}: {run['bits']:.3f} bits/character; {own}\n  order 3 {samples}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=110.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    text = families.texts()["demo"]
    for name in given.models:
        path = KEPT / f"{name.replace(' ', '_')}-{given.seed}.json"
        if not path.is_file():
            run = one_run(name, text, given.seconds, given.seed)
            show([run])
            part = path.with_suffix(".part")
            part.write_text(json.dumps(run))
            part.replace(path)  # a run that was killed leaves none
    runs = [json.loads(path.read_text()) for path in KEPT.glob("*.json")]
    runs.sort(key=lambda run: (list(VARIANTS).index(run["model"]), run["seed"]))
    about = {"command": f"python -m tests.benchmarks.continuous_prior --seconds {given.seconds:g}"}
    RESULTS.write_text(json.dumps({"about": about | {"torch": torch.__version__}, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
