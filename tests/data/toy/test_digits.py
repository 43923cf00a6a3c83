"""The embedded digits: the same split everywhere, and reference levels that hold."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from ggm_lightning.data.toy.digits import Digits, digits


@pytest.fixture(scope="module")
def data() -> Digits:
    data = Digits(global_batch_size=50)
    data.setup("fit")
    return data


def test_sizes_levels_and_labels(data: Digits) -> None:
    assert (data.num_classes, data.num_labels, data.shape) == (17, 10, (1, 8, 8))
    assert [len(data.rows(split)) for split in ("train", "val")] == [1500, 297]
    batch = next(iter(data.train_dataloader()))
    assert batch["x"].shape == (50, 1, 8, 8)
    assert batch["x"].dtype == batch["label"].dtype == torch.int64
    every = [data.rows(split)[np.arange(len(data.rows(split)))] for split in ("train", "val")]
    assert all((part["x"].min(), part["x"].max()) == (0, 16) for part in every)
    counts = [torch.bincount(part["label"], minlength=10) for part in every]
    assert [len(count) for count in counts] == [10, 10]
    assert counts[1].min() > 15  # shuffled: each digit is in the held-out part


def test_every_picture_of_scikit_learn_once_with_its_label() -> None:
    from sklearn.datasets import load_digits

    x, label = digits()
    original = load_digits()
    mine = np.concatenate([x.reshape(-1, 64), label[:, None]], 1)
    theirs = np.concatenate([original.data.astype(np.int64), original.target[:, None]], 1)
    assert sorted(map(tuple, mine.tolist())) == sorted(map(tuple, theirs.tolist()))
    assert (mine != theirs).any()


def test_the_split_is_fixed(data: Digits) -> None:
    """Figures of other runs are comparable only while these stay."""
    val = data.rows("val")[np.arange(297)]
    assert val["label"][:12].tolist() == [9, 8, 5, 4, 3, 7, 8, 8, 0, 7, 1, 6]
    assert int(val["x"].sum()) == 92558


def test_references(data: Digits) -> None:
    references = data.references()
    assert references["uniform"] == math.log2(17)
    train, val = (data.rows(split)[np.arange(n)]["x"].reshape(n, 64) for split, n in (("train", 1500), ("val", 297)))
    bits = entropy = 0.0
    for pixel in range(64):
        counts = torch.bincount(train[:, pixel], minlength=17).double()
        smoothed = (counts + 1) / (1500 + 17)
        bits -= float(smoothed[val[:, pixel]].log2().mean()) / 64
        entropy += float(torch.distributions.Categorical(counts / 1500).entropy()) / math.log(2) / 64
    assert references["independent pixels"] == pytest.approx(bits, abs=1e-12)
    assert references["independent pixels, in sample"] == pytest.approx(entropy, abs=1e-6)
    assert 2.3 < bits < 2.5 < references["uniform"]


def test_decoded_ink_is_bright(data: Digits) -> None:
    x = data.rows("val")[np.arange(4)]["x"]
    pictures = data.decode(x)
    assert (pictures.dtype, pictures.shape) == (np.uint8, (4, 8, 8, 3))
    assert (pictures[..., 0] == np.rint(x[:, 0].numpy() * 255 / 16)).all()


def test_without_scikit_learn_the_extra_is_named(monkeypatch) -> None:
    digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ggm-lightning\[images\]'"):
        Digits().setup("fit")
    assert Digits().shape == (1, 8, 8)  # constructor arguments alone
