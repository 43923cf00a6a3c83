"""Training reaches the entropy of a source that is known exactly, whose bigrams its samples have; it beats every
law of independent pixels on real pictures; and a latent makes a single token step enough."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import ggm_lightning
from ggm_lightning.cli.main import main
from ggm_lightning.data.toy.digits import Digits
from ggm_lightning.data.toy.synthetic import MarkovChain, Sawtooth

ROOT = Path(__file__).parents[1]
SAMPLES, STEPS = 1000, 64


def bigrams(x: np.ndarray, num_symbols: int) -> np.ndarray:
    pairs = x[:, :-1] * num_symbols + x[:, 1:]
    return np.bincount(pairs.ravel(), minlength=num_symbols**2) / pairs.size


def distance(p: np.ndarray, q: np.ndarray) -> float:
    return 0.5 * float(np.abs(p - q).sum())


@pytest.mark.slow
def test_md4_learns_a_markov_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin = time.monotonic()
    main(["fit", "--config", str(ROOT / "experiments" / "md4_markov.yaml"), "--runs", str(tmp_path), "--name", "run"])
    seconds = time.monotonic() - begin
    source = MarkovChain(num_symbols=11, length=64, num_train=16, num_val=4096, seed=99)
    entropy, single = float(source.entropy), float(source.marginal_entropy)
    x = source.rows("val")[list(range(4096))]["x"]
    own = -source.log_likelihood(x).mean().item() / 64  # the entropy as these very sequences have it
    model = ggm_lightning.load(tmp_path / "run" / "last.ckpt")
    rows = torch.arange(len(x)).split(256)  # numbered, so that no two sequences share their noise
    nats = torch.cat([model.nelbo(x[row], num_samples=8, row=row) for row in rows])
    bound, stderr = nats.mean().item() / 64, nats.std().item() / math.sqrt(len(nats)) / 64
    gap = (bound - own) / (single - entropy)
    with capsys.disabled():
        print(
            f"\nMarkov source: {seconds:.0f} s, bound {bound:.4f} ± {stderr:.4f} nats/token, entropy {entropy:.4f} "
            f"(of these sequences {own:.4f}), single token {single:.4f}: gap {100 * gap:.2f}% of H1 - H"
        )
    assert gap <= 0.03
    assert bound > own - 3 * stderr  # a bound below the entropy would be a broken one

    law = (source.stationary[:, None] * source.transition).ravel()
    law = law.numpy() if isinstance(law, torch.Tensor) else law
    drawn = model.sample(SAMPLES, STEPS).x.numpy()
    floor = distance(bigrams(x[:SAMPLES].numpy(), 11), law)
    error = distance(bigrams(drawn, 11), law)
    rng = np.random.default_rng(0)
    unigram = distance(bigrams(rng.choice(11, size=(SAMPLES, 64), p=np.asarray(source.stationary)), 11), law)
    with capsys.disabled():
        print(f"bigrams of {SAMPLES} samples, total variation: {error:.4f} (floor {floor:.4f}, unigrams {unigram:.4f})")
    assert error - floor <= 0.03
    assert unigram - floor > 0.3  # control


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [("md4_digits", 0.3), ("blackout_digits", 0.3), ("markov_digits", 0.1)],
)
def test_digits_are_learnt(name: str, least: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A quarter of the experiment's steps are enough to beat every law under which pixels are independent. Network,
    data, steps and optimiser of the three are the same."""
    begin = time.monotonic()
    short = ["--trainer.max_steps=360", "--trainer.val_check_interval=360"]
    main(
        ["fit", "--config", str(ROOT / "experiments" / f"{name}.yaml"), *short, "--runs", str(tmp_path), "--name", "x"]
    )
    seconds = time.monotonic() - begin
    data = Digits()
    val = data.rows("val")[list(range(297))]
    train = data.rows("train")[list(range(1500))]["x"].flatten(1)
    counts = torch.stack([(train == level).sum(0) for level in range(17)]).double() + 1
    independent = (
        -(counts / counts.sum(0)).log2()[val["x"].flatten(1), torch.arange(64)].mean(1)
    )  # bits of each picture
    assert independent.mean().item() == pytest.approx(data.references()["independent pixels"], abs=1e-9)
    model = ggm_lightning.load(tmp_path / "x" / "last.ckpt")
    nats = model.nelbo(val["x"], val["label"], num_samples=8, row=torch.arange(297))
    # log2(10) bits pay for the class, which independent pixels are not told
    gain = independent - (nats / math.log(2) + math.log2(10)) / 64
    mean, stderr = gain.mean().item(), gain.std().item() / math.sqrt(297)
    with capsys.disabled():
        print(
            f"\n{name}: {seconds:.0f} s, bound {nats.mean().item() / 64 / math.log(2):.4f} bits/dim given the class, "
            f"independent pixels {independent.mean().item():.4f}: {mean:.3f} ± {stderr:.3f} better, class paid for"
        )
    assert mean > least
    assert mean > 5 * stderr
    # control: of independent pixels (each from another picture) no model can know more than their frequencies
    order = torch.rand(297, 64, generator=torch.Generator().manual_seed(0)).argsort(0)
    mixed = val["x"].flatten(1).gather(0, order).reshape(val["x"].shape)
    bits = model.nelbo(mixed, num_samples=8, row=torch.arange(297)).mean().item() / 64 / math.log(2)
    assert bits > independent.mean().item()


@pytest.mark.slow
def test_a_latent_does_in_one_step_what_masks_need_dozens_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SEQ-LDDM on the sawtooth with half of the experiment's steps. Masked diffusion with exact conditionals has
    -log p = 112.0 nats in one step and 77.6 in four; the source's entropy is 67.9."""
    short = ["--trainer.max_steps=900", "--trainer.val_check_interval=900"]
    config = str(ROOT / "experiments" / "lddm_seq_sawtooth.yaml")
    main(["fit", "--config", config, *short, "--runs", str(tmp_path), "--name", "x"])
    source = Sawtooth(num_train=16, num_val=16)
    model = ggm_lightning.load(tmp_path / "x" / "last.ckpt")
    drawn = model.sample(1024, 1, grid="uniform")
    nats = -source.log_likelihood(drawn.x).mean().item()
    with capsys.disabled():
        print(f"\nsawtooth, one token step after {drawn.other_calls.total()} of the latent: {nats:.1f} nats")
    assert (drawn.network_calls, drawn.other_calls["latent_network"]) == (1, 32)
    assert 66.5 < nats < 77.6  # below: only the likely rows
