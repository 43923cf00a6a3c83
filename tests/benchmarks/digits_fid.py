"""One FID for each picture family, on 8x8 digits: as far from the training set as its own halves are from one another?

    python -m tests.benchmarks.digits_fid [--runs FOLDER] [--steps 5 10 20 50 200 1000]

trains the experiments of RUNS in that folder (20 minutes of one thread; or takes the runs that it holds), draws 1,500
pictures of each, classes as often as in the training set, and keeps FID, KID and IS in results/digits_fid.json.
Features are the 32 hidden numbers of a small classifier that is trained here on the same pictures: these figures are
comparable with one another, and with no table of Inception's.

With --steps Blackout is drawn in so many steps instead, and added to the same file.

FID is larger of fewer pictures. So each half of the drawn pictures is compared with each half of the training set, 750
and 750, and the mean of the four stands beside the distance of the two halves. The spread is that of the four.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ggm_lightning
from ggm_lightning.cli.main import main as lightning
from ggm_lightning.codecs.pictures import Images
from ggm_lightning.data.toy.digits import Digits, digits
from ggm_lightning.metrics import images
from ggm_lightning.metrics.images import Features
from tests.benchmarks.markov_source import measured

RESULTS = Path(__file__).parent / "results" / "digits_fid.json"
TRAIN = 1500
VQGAN = "vqgan_digits"  # whose codes md4_digits_vqgan has
# experiment -> steps and sampler
RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "md4_digits": (64, {}),
    "ggm_digits": (64, {"sampler": "parallel"}),
    "blackout_digits": (100, {}),
    "markov_digits": (64, {}),
    "md4_digits_vqgan": (16, {}),
}


class Classifier(nn.Module):
    """Pictures UInt8[b, 3, 8, 8] -> (32 hidden numbers, logits of ten classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        features = self.hidden(pictures[:, 0].float().flatten(1) / 255).relu()
        return features, self.last(features)


def as_batches(pictures: np.ndarray) -> Tensor:
    """UInt8[b, 8, 8, 3] as networks take them."""
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))


def trained(pictures: Tensor, label: Tensor) -> Classifier:
    """To tell the ten digits apart."""
    torch.manual_seed(0)
    network = Classifier()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    for _ in range(1500):
        rows = torch.randint(len(pictures), (64,))
        loss = nn.functional.cross_entropy(network(pictures[rows])[1], label[rows], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def distances(real: list[Features], drawn: list[Features]) -> dict[str, float]:
    """Means over all pairs of a real and a drawn half, but for a half with itself."""
    pairs = [(one, other) for one in real for other in drawn if one is not other]
    fids = [images.frechet_distance(one, other) for one, other in pairs]
    found = {"fid": statistics.mean(fids), "fid_spread": statistics.pstdev(fids)}
    found["kid"] = statistics.mean(images.kernel_distance(one, other)[0] for one, other in pairs)
    scores = [images.inception_score(half) for half in drawn]
    found["inception_score"] = statistics.mean(score[0] for score in scores if score is not None)
    return {name: round(value, 5) for name, value in found.items()}


def decoded(ids: np.ndarray) -> Tensor:
    """Levels 0..16 as pictures."""
    return as_batches(Images(17, (1, 8, 8)).decode(ids.reshape(-1, 1, 8, 8)))


def halves(network: Classifier, pictures: Tensor) -> list[Features]:
    return [images.features_of(network, half.split(64)) for half in pictures.tensor_split(2)]


def controls(ids: np.ndarray) -> dict[str, Tensor]:
    """What knows less than any model."""
    rng, pixels = np.random.default_rng(0), ids.reshape(len(ids), 64)
    return {
        "each pixel of another picture": decoded(rng.permuted(pixels, axis=0)),
        "levels at random": decoded(rng.integers(17, size=pixels.shape)),
    }


def drawn(
    name: str, network: Classifier, train: list[Features], steps: int | None = None
) -> dict[str, dict[str, float]]:
    """Of the samples of a trained run, and of what its codec makes of the training set."""
    model: Any = ggm_lightning.load(f"runs/{name}/last.ckpt")
    num_steps, options = RUNS[name]
    num_steps = steps or num_steps
    label = Digits().load("train")[np.arange(TRAIN)]["label"]
    samples, seconds = measured(lambda: model.sample(TRAIN, num_steps, label=label, seed=0, **options))
    row = distances(train, halves(network, as_batches(np.asarray(model.codec.decode(samples.x)))))
    row |= {"num_steps": num_steps, "rows_per_picture": samples.rows / TRAIN, "seconds": round(seconds, 1)}
    table = {", ".join([name, *options.values(), *([f"{steps} steps"] if steps else [])]): row}
    if name == "md4_digits_vqgan":
        real = decoded(digits()[0][:TRAIN])
        codes = model.codec.encode_pictures(real[:, :1].numpy())
        through = as_batches(np.asarray(model.codec.decode(codes)))
        # a half beside the other one as the VQGAN makes it; beside itself it is near by construction
        table["the training set through the VQGAN"] = distances(train[:1], halves(network, through)[1:])
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", default=None)
    parser.add_argument("--steps", type=int, nargs="+", default=[])
    given = parser.parse_args()
    folder = Path(given.runs or tempfile.mkdtemp())
    torch.set_num_threads(1)
    os.chdir(folder)
    ids, label = digits()
    real, classes = decoded(ids), torch.from_numpy(label).long()
    network = trained(real[:TRAIN], classes[:TRAIN])
    with torch.no_grad():
        right = float((network(real[TRAIN:])[1].argmax(1) == classes[TRAIN:]).float().mean())
    train = halves(network, real[:TRAIN])
    table = {"the training set's own halves": distances(train, train)}
    table |= {name: distances(train, halves(network, x)) for name, x in controls(ids[:TRAIN]).items()}
    for steps in given.steps:
        table |= drawn("blackout_digits", network, train, steps)
    for name in () if given.steps else (VQGAN, *RUNS):
        if not Path("runs", name, "last.ckpt").is_file():
            lightning(["fit", "--config", name, "--name", name, "--trainer.max_time", "null"])
        if name != VQGAN:
            table |= drawn(name, network, train)
    about = {"command": "python -m tests.benchmarks.digits_fid", "version": ggm_lightning.__version__}
    about |= {"torch": torch.__version__, "threads": 1, "device": platform.machine(), "classifier": round(right, 4)}
    if given.steps:
        table = json.loads(RESULTS.read_text())["table"] | table
    RESULTS.write_text(json.dumps({"about": about, "table": table}, indent=1) + "\n")
    for name, row in table.items():
        print(f"{name:>35}: " + ", ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
