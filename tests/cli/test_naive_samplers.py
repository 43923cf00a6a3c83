"""Samplers that know nothing, beside a demo model that was trained: some printed distance is worse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggm_lightning.cli.main import main
from ggm_lightning.cli.measure import Sampling
from ggm_lightning.cli.measure_text import Text
from ggm_lightning.cli.measures import evaluate_measures
from ggm_lightning.data.toy.demo import DemoText
from ggm_lightning.metrics.order_k import OrderK

DISTANCES = ("js_1", "js_2", "js_3", "js_4", "duplicates")
COUNT, LENGTH = 300, 64


@pytest.mark.slow
def test_naive_samplers_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row again and again, the most predictable row, single tokens by their frequencies.

    (Bigrams are nearer to the text than a model of 400 steps, and so say the figures; one of 150 steps is no nearer
    than the unigrams.)"""
    monkeypatch.chdir(tmp_path)
    sizes = ["--data.length", str(LENGTH), "--data.encoding", "characters", "--trainer.max_steps", "400"]
    main(
        [
            "fit",
            "--config",
            "md4_demo",
            "--name",
            "demo",
            *sizes,
            "--trainer.val_check_interval",
            "400",
            "--trainer.max_time",
            "null",
        ]
    )
    (folder,) = Path("runs/data").iterdir()
    data = DemoText(length=LENGTH, encoding="characters", folder=str(folder))
    train = data.rows("train")[np.arange(2000)]["x"].numpy()
    judge = OrderK(train[1000:], data.num_classes, 3)
    frequencies = np.bincount(train.ravel(), minlength=data.num_classes) / train.size
    naive = {
        "one_row": np.repeat(train[:1], COUNT, 0),
        "predictable": np.repeat(train[[judge.bits(train[:1000]).mean(1).argmin()]], COUNT, 0),
        "unigrams": np.random.default_rng(0).choice(data.num_classes, (COUNT, LENGTH), p=frequencies),
    }
    path = "runs/demo/last.ckpt"
    sampling = Sampling(num_steps=[LENGTH], num_drawn=COUNT)
    model = evaluate_measures(path, [Text()], sampling, device="cpu")[1].figures
    for name, x in naive.items():
        np.savez(f"{name}.npz", x=x)
        found = evaluate_measures(path, [Text(samples=f"{name}.npz")], device="cpu", out=name)[1].figures
        worse = [
            distance
            for distance in DISTANCES
            if float(found[distance] or 0) - float(model[distance] or 0)
            > 3 * np.hypot(found[f"{distance}_stderr"] or 0, model[f"{distance}_stderr"] or 0)
        ]
        assert worse, (name, found, model)
    # the control: judged by likelihood alone, the predictable row is the best of all
    samples = next(Path("runs/demo").rglob("samples.npz"))
    with np.load(samples) as arrays:
        drawn = judge.bits(arrays["x"]).mean()
    assert judge.bits(naive["predictable"]).mean() < drawn / 2


@pytest.mark.slow
def test_pairs_of_tokens_are_caught_beside_the_demo_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `make demo-text` trains it, three minutes. (Runs of three tokens are nearer to the text than this model.)"""
    monkeypatch.chdir(tmp_path)
    no_samples = ["--trainer.callbacks", "[{class_path: ggm_lightning.callbacks.ema.EMA, init_args: {decay: 0.99}}]"]
    main(["fit", "--config", "ggm_demo", "--name", "demo", "--trainer.max_time", "null", *no_samples])
    (folder,) = Path("runs/data").iterdir()
    rows = DemoText(length=32, encoding="bpe", vocab_size=1024, folder=str(folder)).rows("train")
    stream = rows[np.arange(len(rows))]["x"].numpy().ravel()
    rng = np.random.default_rng(0)
    x = np.empty((COUNT, 32), dtype=np.int64)
    x[:, 0] = rng.choice(stream, COUNT)
    for i in range(1, 32):
        x[:, i] = [rng.choice(stream[1:][stream[:-1] == before]) for before in x[:, i - 1]]
    np.savez("pairs.npz", x=x)
    path, sampling = "runs/demo/last.ckpt", Sampling(sampler=["parallel"], num_steps=[64], num_drawn=COUNT)
    real, model = (row.figures for row in evaluate_measures(path, [Text()], sampling, device="cpu"))
    pairs = evaluate_measures(path, [Text(samples="pairs.npz")], device="cpu", out="pairs")[1].figures
    error = np.hypot(pairs["js_4_stderr"] or 0, model["js_4_stderr"] or 0)
    assert float(pairs["js_4"] or 0) - float(model["js_4"] or 0) > 2 * error
    assert float(real["js_4"] or 0) < float(model["js_4"] or 0) - 10 * error  # the control: real text is far nearer
