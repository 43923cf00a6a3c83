"""Feeding pictures: images/s through the data modules' own loaders, in one process and one thread, without a network.

    python -m tests.benchmarks.images

The pictures are generated, in the form in which each data set is read in training: CIFAR-10's original batches, of
their real number; ImageNet and CelebA as flat files, whose size is a choice (the system's cache holds them here).
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import lightning
import numpy as np
import torch

from ggm_lightning.data.base import DiscreteData
from ggm_lightning.data.celeba import CelebA
from ggm_lightning.data.cifar10 import RECORD, Cifar10
from ggm_lightning.data.imagenet64 import ImageNet64
from ggm_lightning.data.pixels import PixelWriter

RESULTS = Path(__file__).parent / "results"
ROUNDS = 7
BATCHES = (128, 256)
FLAT = 16_384  # training pictures of 64x64: 201 MB
TOGETHER = 1024


def cifar10(folder: Path, batch: int) -> Cifar10:
    path = folder / "cifar10"
    if not path.exists():
        path.mkdir()
        rng = np.random.default_rng(0)
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            records = rng.integers(256, size=(10_000, RECORD), dtype=np.uint8)
            records[:, 0] %= 10
            (path / f"{name}.bin").write_bytes(records.tobytes())
    return Cifar10(str(path), mirror=True, global_batch_size=batch)


def imagenet64(folder: Path, batch: int) -> ImageNet64:
    data = ImageNet64("chrabaszcz2017", mirror=True, global_batch_size=batch, folder=str(folder / "imagenet64"))
    write(data, ("train", "val"), classes=1000)
    return data


def celeba(folder: Path, batch: int) -> CelebA:
    data = CelebA(mirror=True, global_batch_size=batch, folder=str(folder / "celeba"))
    write(data, ("train", "val", "test"))
    return data


def write(data: ImageNet64 | CelebA, splits: tuple[str, ...], classes: int = 0) -> None:
    """The flat files as a preparation leaves them."""
    if data.folder.exists():
        return
    rng = np.random.default_rng(0)
    with PixelWriter(data.folder, data.codec, options=data.options, source=[]) as writer:
        for split in splits:
            for _ in range(FLAT // TOGETHER if split == "train" else 1):
                pictures = rng.integers(256, size=(TOGETHER, *data.shape), dtype=np.uint8)
                writer.add(split, pictures, rng.integers(classes, size=TOGETHER) if classes else None)


def feeding(data: DiscreteData) -> Callable[[], tuple[int, float, float]]:
    """A function that reads one epoch, mirrored, in training order: (images, seconds, seconds of CPU)."""
    data.setup("fit")

    def epoch() -> tuple[int, float, float]:
        loader, begin, busy = data.train_dataloader(), time.perf_counter(), time.process_time()
        images = sum(len(batch["x"]) for batch in loader)
        return images, time.perf_counter() - begin, time.process_time() - busy

    return epoch


def measure() -> dict[str, dict[str, float]]:
    """Medians over alternating rounds; the first reading, which compares checksums, is a figure of its own."""
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        parts = {
            f"{title}, batch {batch}": feeding(make(Path(name), batch))
            for title, make in (
                ("CIFAR-10, 32x32", cifar10),
                ("ImageNet, 64x64", imagenet64),
                ("CelebA, 64x64", celeba),
            )
            for batch in BATCHES
        }
        for title, epoch in parts.items():
            images, seconds, _ = epoch()
            figures[title] = {"first reading, images/s": images / seconds}
        rates: dict[str, list[tuple[float, float]]] = {title: [] for title in parts}
        for i in range(ROUNDS):
            for title in list(parts) if i % 2 == 0 else reversed(list(parts)):
                images, seconds, busy = parts[title]()
                rates[title].append((images / seconds, images / busy))
    for title, found in rates.items():
        wall = [rate for rate, _ in found]
        figures[title] |= {"images/s": statistics.median(wall), "min": min(wall), "max": max(wall)}
        figures[title]["images per second of CPU"] = statistics.median(rate for _, rate in found)
    return figures


def main() -> None:
    torch.set_num_threads(1)
    figures = measure()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "device": f"{platform.processor() or platform.machine()}, 1 thread, no worker processes",
        "versions": {"torch": torch.__version__, "lightning": lightning.__version__, "numpy": np.__version__},
        "rounds": ROUNDS,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "images.json").write_text(json.dumps({**about, "figures": figures}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
