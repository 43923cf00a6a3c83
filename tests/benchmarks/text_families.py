"""MD4, GGM with a hollow network, models with a latent and an autoregressive one on text, for equal seconds of one
thread's CPU.

    python -m tests.benchmarks.text_families [--seconds 110] [--seeds 0 1 2] [--texts demo shakespeare] [--models ...]
        [--name text_latents]

Characters, windows of 32, width 64, 3 blocks each (hollow: 1 + 1 streams and 1 merge; with a latent: text_latents.py).
Each run of a model is kept below runs/ as soon as it ends. The same command goes on with what is missing, and puts all
that is there of these models into results/NAME.json, in the place of earlier runs of the same model, text and seed.
Seconds are those of the process (time.process_time), so that other programs count little; stage 1 of a latent's encoder
counts. What is to be compared is run on one machine: results/text_latents.json has MD4 and the models with a latent.

What is compared: the bound on the same held-out rows, whose difference from MD4's is taken row by row; and samples, by
a model of order 3 of the held-out text, by the autoregressive model (seed 0; not itself), by the share of n-grams that
are distinct and by the entropy of single characters: a judge alone is pleased by likely rows that repeat themselves.
tinyshakespeare is read from the folder GGM_DATA (../shared/data), and left out where it is not there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ggm_lightning.core.schedules import Polynomial
from ggm_lightning.data.toy.demo import printable, reference_text
from ggm_lightning.metrics.order_k import OrderK
from ggm_lightning.models.autoregressive import AutoregressiveModel
from ggm_lightning.models.base import Family
from ggm_lightning.models.ggm import GGM
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.hollow import HollowTransformer
from ggm_lightning.networks.transformer import Transformer
from tests.benchmarks import text_latents
from tests.benchmarks.markov_source import ROOT, measured

RESULTS = Path(__file__).parent / "results"
KEPT = ROOT / "runs" / "benchmarks" / "text_families"
LENGTH, BATCH, HELD_OUT, SAMPLES, STATISTICS = 32, 32, 512, 256, 2048
LEARNING_RATE, AVERAGED, WARM_UP, CONSTANT = 4e-3, 0.99, 50, 0.3
MODELS = ("AR", "MD4", "GGM bce", "GGM ce_x0", *text_latents.MODELS)  # the judge of the others comes first
CALLS = (4, 8, 16, 64)
FEW_CALLS = (1, 2, *CALLS)  # of MD4, beside the models with a latent
CORRECTED = (16, 8)  # calls of the chain and of the corrector


class Text:
    """Characters of a training and a held-out part.

    Args:
        name: of the text.
        train, held_out: the parts.
    """

    def __init__(self, name: str, train: str, held_out: str) -> None:
        self.name = name
        self.alphabet = sorted(set(train) | set(held_out))
        number = {character: i for i, character in enumerate(self.alphabet)}
        self._train, self._held_out = (torch.tensor([number[c] for c in part]) for part in (train, held_out))

    @property
    def num_classes(self) -> int:
        return len(self.alphabet)

    def batch(self, generator: torch.Generator) -> Tensor:
        start = torch.randint(len(self._train) - LENGTH, (BATCH,), generator=generator)
        return self._train[start[:, None] + torch.arange(LENGTH)]

    def rows(self, count: int, train: bool = False) -> Tensor:
        """Windows of the held-out (or the training) part, evenly spaced."""
        part = self._train if train else self._held_out
        start = torch.linspace(0, len(part) - LENGTH, count).long()
        return part[start[:, None] + torch.arange(LENGTH)]

    def judge(self) -> OrderK:
        """Counted on the held-out part, so that it knows no more of the training text than a reader does."""
        return OrderK(self._held_out[None].numpy(), self.num_classes, 3)

    def unigram(self) -> list[float]:
        counts = self._train.bincount(minlength=self.num_classes).double() + 1
        return (counts / counts.sum()).tolist()

    def decode(self, x: Tensor) -> list[str]:
        return ["".join(self.alphabet[i] for i in row) for row in x.tolist()]


def texts() -> dict[str, Text]:
    train, held_out = (printable(part)[0] for part in reference_text())
    found = {"demo": Text("demo", train, held_out)}
    path = Path(os.environ.get("GGM_DATA", ROOT.parent / "shared" / "data")) / "tinyshakespeare" / "input.txt"
    if path.is_file():
        whole = path.read_text(encoding="utf-8")
        cut = int(0.9 * len(whole))
        found["shakespeare"] = Text("shakespeare", whole[:cut], whole[cut:])
    else:
        print("tinyshakespeare is left out: no tinyshakespeare/input.txt in the folder GGM_DATA", flush=True)
    return found


def variety(rows: list[str]) -> dict[str, float]:
    """Shares of distinct n-grams within rows, and the entropy of single characters, bits."""
    found = {}
    for n in (2, 4):
        grams = Counter(row[i : i + n] for row in rows for i in range(len(row) - n + 1))
        found[f"distinct_{n}"] = len(grams) / grams.total()
    single = Counter("".join(rows))
    shares = [count / single.total() for count in single.values()]
    return found | {"entropy": -math.fsum(p * math.log2(p) for p in shares)}


def model_of(name: str, text: Text, seed: int) -> Family:
    torch.manual_seed(seed)
    if name in text_latents.MODELS:
        return text_latents.model_of(name, text.num_classes, LENGTH, seed)
    v, shape, width = text.num_classes, (LENGTH,), {"feature_dim": 16, "num_heads": 4, "mlp": "geglu"}
    if name == "MD4":
        return MD4(Transformer(v, num_layers=3, **width), v, shape, schedule=Polynomial(2.0), seed=seed)
    if name == "AR":
        network = Transformer(v, num_layers=3, time_features="none", causal=True, **width)
        return AutoregressiveModel(network, v, shape, seed=seed)
    network = HollowTransformer(v, num_layers=1, num_merges=1, **width)
    loss = name.removeprefix("GGM ")
    return GGM(network, v, shape, loss=loss, order="random", num_sweeps=4, noise_law=text.unigram(), seed=seed)


def trained(
    model: Family,
    text: Text,
    seconds: float,
    seed: int,
    clock: Callable[[], float] = time.process_time,
    stage1: float = 0.0,
) -> int:
    """Trains for so many seconds of CPU (of `clock`) and leaves the averaged weights; the number of steps. The learning
    rate falls with the seconds that have gone by, so that every model ends its schedule. After the share `stage1` of
    them the averaged weights are taken, and the encoder of a latent is fixed."""
    weights = list(model.parameters())
    averages = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.03, foreach=True)
    generator = torch.Generator().manual_seed(seed)
    begin, step, fixed = clock(), 0, 0
    model.train()
    while (share := (clock() - begin) / seconds) < 1:
        if stage1 and not fixed and share > stage1:
            torch._foreach_copy_([weight.detach() for weight in weights], averages)
            text_latents.freeze(model, text.rows(STATISTICS, train=True))
            fixed = step
        falling = 0.5 * (1 + math.cos(math.pi * max(0.0, share - CONSTANT) / (1 - CONSTANT)))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, (step + 1) / WARM_UP) * max(0.02, falling)
        optimizer.zero_grad(set_to_none=True)
        model.loss(text.batch(generator), step=step).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()
        decay = min(AVERAGED, (1 + step - fixed) / (10 + step - fixed))
        torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 1 - decay)
        step += 1
    torch._foreach_copy_([weight.detach() for weight in weights], averages)
    model.eval()
    return step


def draws(name: str, model: Any) -> dict[str, Callable[[], Any]]:
    """What to sample, by its name."""
    if name == "AR":
        return {"left to right": lambda: model.sample(SAMPLES, LENGTH, seed=1)}
    if name == "MD4":
        return {str(calls): lambda calls=calls: model.sample(SAMPLES, calls, seed=1) for calls in FEW_CALLS}
    if name in text_latents.MODELS:
        return text_latents.draws(model, SAMPLES)

    def parallel(calls: int, corrector: int = 0) -> Any:
        model.corrector_steps = corrector
        return model.sample(SAMPLES, calls, sampler="parallel", seed=1)

    found = {str(calls): lambda calls=calls: parallel(calls) for calls in CALLS}
    chain, corrector = CORRECTED
    return found | {f"{chain} + {corrector}": lambda: parallel(chain, corrector)}


def bits_of_rows(model: Family, x: Tensor) -> Tensor:
    """Of the bound, per character, Float64[b]."""
    rows = torch.arange(len(x)).split(128)
    nats = torch.cat([model.nelbo(x[row], num_samples=8, row=row) for row in rows])
    return nats / LENGTH / math.log(2)


def one_run(name: str, text: Text, seconds: float, seed: int, judge: AutoregressiveModel | None) -> dict[str, Any]:
    """Trained, bounded, sampled and judged."""
    model = model_of(name, text, seed)
    has_latent = name in text_latents.MODELS
    stage1 = text_latents.STAGE1.get(name, 0.0)
    steps, spent = measured(lambda: trained(model, text, seconds, seed, stage1=stage1))
    bits = bits_of_rows(model, text.rows(HELD_OUT))
    size = sum(weight.numel() for weight in model.parameters())
    result: dict[str, Any] = {"model": name, "text": text.name, "seed": seed, "parameters": size}
    result |= {"seconds": round(spent, 1), "steps": steps, "bits": [round(b, 4) for b in bits.tolist()], "samples": {}}
    if has_latent:
        result["latent"] = text_latents.of_the_latent(model, text.rows(HELD_OUT))
    if name == "AR" and seed == 0:
        torch.save(model.state_dict(), judge_file(text))
    order3 = text.judge()
    for told, draw in draws(name, model).items():
        drawn, spent = measured(draw)
        row = {"network_calls": drawn.network_calls, "seconds": round(spent, 2)}
        if has_latent:
            row["other_calls"] = drawn.other_calls.total()
        result["samples"][told] = row | judged(drawn.x, text, order3, judge)
    print(f"{text.name}, seed {seed}, {name}: {steps} steps, {bits.mean():.3f} bits/character", flush=True)
    return result


def judged(x: Tensor, text: Text, order3: OrderK, judge: AutoregressiveModel | None) -> dict[str, float]:
    found = {"order_3": float(order3.bits(x.numpy()).mean()), **variety(text.decode(x))}
    if judge is not None:
        found["autoregressive"] = float(bits_of_rows(judge, x).mean())
    return {name: round(value, 4) for name, value in found.items()}


def judge_file(text: Text) -> Path:
    return KEPT / f"{text.name}-judge.pt"


def judge_of(name: str, text: Text) -> AutoregressiveModel | None:
    """The autoregressive model of seed 0; none for its own kind."""
    if name == "AR":
        return None
    if not judge_file(text).is_file():
        raise ValueError(
            f"text_families: no {judge_file(text)}; run --models AR --seeds 0 first, which judges the others"
        )
    model = model_of("AR", text, 0)
    model.load_state_dict(torch.load(judge_file(text), weights_only=True))
    return model.eval()  # type: ignore[return-value]


def compared(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean over the seeds of each model and text; the paired difference of its bound from MD4's, of the same seeds
    and rows, with its standard error over the rows."""
    found = []
    for text, name in dict.fromkeys((run["text"], run["model"]) for run in runs):
        own = {run["seed"]: run for run in runs if (run["text"], run["model"]) == (text, name)}
        base = {run["seed"]: run for run in runs if (run["text"], run["model"]) == (text, "MD4")}
        bits = np.array([run["bits"] for run in own.values()])
        row = {"text": text, "model": name, "seeds": sorted(own), "bits": bits.mean(), "spread": spread(bits.mean(1))}
        row["steps"] = [run["steps"] for run in own.values()]
        both = sorted(set(own) & set(base))
        if both and name != "MD4":
            gain = np.array([np.subtract(own[seed]["bits"], base[seed]["bits"]) for seed in both])
            row["from_MD4"] = gain.mean()
            row["stderr"] = gain.mean(0).std(ddof=1) / math.sqrt(gain.shape[1])
            row["from_MD4_of_seeds"] = [round(float(mean), 4) for mean in gain.mean(1)]
        if "latent" in next(iter(own.values())):
            row["latent"] = averaged([{"of": run["latent"]} for run in own.values()])["of"]
        row["samples"] = averaged([run["samples"] for run in own.values()])
        found.append({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()})
    return found


def spread(values: np.ndarray) -> float:
    """Standard deviation over the seeds; 0 of one."""
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def averaged(samples: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Over the runs that have such samples: an earlier one may lack some."""
    found = {}
    for told in dict.fromkeys(name for one in samples for name in one):
        rows = [one[told] for one in samples if told in one]
        found[told] = {key: round(sum(row[key] for row in rows) / len(rows), 4) for key in rows[0]}
    return found


def show(table: list[dict[str, Any]]) -> None:
    for row in table:
        gain = f", {row['from_MD4']:+.3f} ± {row['stderr']:.3f} from MD4" if "from_MD4" in row else ""
        print(f"{row['text']}, {row['model']}: {row['bits']:.3f} bits/character{gain}; seeds {row['seeds']}")
        if "latent" in row:
            print("  of the latent: " + ", ".join(f"{key} {value:.3f}" for key, value in row["latent"].items()))
        for told, part in row["samples"].items():
            ar = f", AR {part['autoregressive']:.2f}" if "autoregressive" in part else ""
            what = f"order 3 {part['order_3']:.2f}{ar}, entropy {part['entropy']:.2f}"
            print(
                f"  {told:>13} calls: {what}, distinct 2- and 4-grams {part['distinct_2']:.3f} "
                f"{part['distinct_4']:.2f}, {1000 * part['seconds'] / SAMPLES:.1f} ms a sample"
            )


def write(about: dict[str, Any], results: Path, models: list[str]) -> None:
    """The table of all runs of these models that are kept, and of the earlier ones of what is not."""
    earlier = json.loads(results.read_text())["runs"] if results.is_file() else []
    here = [json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json"))]
    here = [run for run in here if run["model"] in models]
    runs = list({(run["text"], run["model"], run["seed"]): run for run in (*earlier, *here)}.values())
    runs.sort(key=lambda run: (run["text"], MODELS.index(run["model"]), run["seed"]))
    table = compared(runs)
    show(table)
    lines = [json.dumps(run) for run in runs]
    body = ",\n ".join(lines)
    results.write_text(
        f'{{"about": {json.dumps(about)},\n"table": {json.dumps(table, indent=1)},\n"runs": [\n {body}]}}\n'
    )


def truth(text: Text) -> dict[str, float]:
    """What real rows score, each judge's of the part that it was not made from."""
    of_training = judged(text.rows(SAMPLES, train=True), text, text.judge(), None)
    return of_training | {
        "autoregressive": round(float(bits_of_rows(judge_of("MD4", text), text.rows(SAMPLES)).mean()), 4)
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=110.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--texts", nargs="+", default=["demo", "shakespeare"])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--name", default="text_families")
    given = parser.parse_args()
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    known = {name: text for name, text in texts().items() if name in given.texts}
    cells = [(seed, text, name) for seed in given.seeds for text in known.values() for name in given.models]
    for seed, text, name in cells:
        path = KEPT / f"{text.name}-{name.replace(' ', '_')}-{seed}.json"
        if not path.is_file():
            found = one_run(name, text, given.seconds, seed, judge_of(name, text))
            part = path.with_suffix(".part")
            part.write_text(json.dumps(found))
            part.replace(path)  # a run that was killed leaves none
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {
        "command": f"python -m tests.benchmarks.text_families --seconds {given.seconds:g}",
        "commit": commit,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": platform.processor() or platform.machine(),
        "real_rows": {name: truth(text) for name, text in known.items()},
    }
    write(about, RESULTS / f"{given.name}.json", given.models)


if __name__ == "__main__":
    main()
