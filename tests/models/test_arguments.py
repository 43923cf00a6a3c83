"""Wrong arguments of library calls: one line that says what came and what was wanted, the same for every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_lightning.core.categorical import Sharpening
from ggm_lightning.data.arrays import ArrayData
from ggm_lightning.data.latents import cache_latents
from ggm_lightning.data.rows import Rows
from ggm_lightning.data.text import TextData
from ggm_lightning.data.toy.synthetic import MarkovChain
from ggm_lightning.models.base import Family
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.transformer import Transformer
from tests.models.test_fused_training import N, family

B, V, CLASSES = 2, 7, 3
FAMILIES = ("md4", "genmd4", "ar", "ggm", "blackout", "fuji", "seq")
X = torch.arange(B * 5).reshape(B, 5) % V
T = torch.full((B,), 0.5, dtype=torch.float64)


def md4(num_labels: int = 0, **options: float) -> MD4:
    network = Transformer(V, feature_dim=8, num_heads=2, num_layers=1, num_labels=num_labels)
    return MD4(network, V, (5,), **options)


def refused(call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        call()
    for part in parts:
        assert part in str(raised.value), str(raised.value)
    assert "\n" not in str(raised.value)


KNOWN = torch.tensor([True, False, True, False, False])


@pytest.mark.parametrize(
    ("options", "came", "wanted"),
    [
        ({"clamp": X}, "clamp is a tensor of int64, shape (2, 5)", "a pair (values, mask)"),
        ({"clamp": [X, KNOWN, X]}, "clamp is a list of 3", "a pair (values, mask)"),
        ({"clamp": {"values": X, "mask": KNOWN}}, "clamp is a dict of 2", "a pair (values, mask)"),
        ({"clamp": (X.double(), KNOWN)}, "values is a tensor of float64", "values of shape (5,), in whole numbers"),
        ({"clamp": ("12345", KNOWN)}, "values is '12345'", "values of shape (5,)"),
        ({"clamp": (X, None)}, "the mask is None", "a pair (values, mask)"),
        ({"num_steps": 2.5}, "num_steps is 2.5", "a whole number of at least 1"),
        ({"num_steps": "8"}, "num_steps is '8'", "a whole number of at least 1"),
        ({"num_steps": True}, "num_steps is True", "a whole number of at least 1"),
        ({"num_steps": 0}, "num_steps is 0", "at least 1"),
        ({"num_samples": 2.0}, "num_samples is 2.0", "a whole number of at least 1"),
        ({"num_samples": None}, "num_samples is None", "a whole number of at least 1"),
        ({"seed": 1.5}, "seed is 1.5", "a whole number"),
        ({"seed": None}, "seed is None", "a whole number"),
        ({"seed": 2**63}, "seed is 9223372036854775808", "64 bits"),
        ({"temperature": -1}, "temperature is -1", "at least 0"),
        ({"temperature": float("nan")}, "temperature is nan", "at least 0"),
        ({"temperature": "hot"}, "temperature is 'hot'", "at least 0"),
        ({"top_p": 0}, "top_p is 0", "(0, 1]"),
        ({"top_p": 1.5}, "top_p is 1.5", "(0, 1]"),
        ({"top_p": "0.9"}, "top_p is '0.9'", "(0, 1]"),
        ({"sampler": ["ancestral"]}, "sampler is a list of 1", "give its name"),
        ({"grid": 3}, "grid is 3", "give its name"),
        ({"latent_steps": 2.5}, "latent_steps is 2.5", "no steps of a latent; leave it out"),
        ({"zeta": 0.02}, "zeta is 0.02, but MD4's 'ancestral' has no zeta", "leave it out"),
        ({"sampler": "no.such.Sampler"}, "sampler 'no.such.Sampler' is not found", "give package.module.Class"),
        ({"sampler": "ordered", "gama": 0.1}, "gama is 0.1, but MD4's 'ordered' has no gama", "did you mean gamma?"),
        ({"sampler": "pathlib.Path"}, "sampler 'pathlib.Path' is no sampler", "derive it from"),
        ({"row": 4}, "row has shape ()", "[2]"),
        ({"row": [0.5, 1.5]}, "row is a tensor of float32", "in whole numbers"),
        ({"label": [0, 1]}, "label is a list of 2", "takes no labels; leave it out"),
    ],
)
def test_sample(options: dict[str, object], came: str, wanted: str) -> None:
    model = md4()
    refused(lambda: model.sample(**{"num_samples": B, "num_steps": 3, **options}), came, wanted)
    assert model.network_calls == 0


def test_a_sampler_in_a_file_of_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there and is not imported: only what is trusted is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "surest_of_all.py").write_text("raise SystemExit('imported')")
    refused(
        lambda: md4().sample(B, 3, sampler="surest_of_all.Surest"),
        "sampler 'surest_of_all.Surest' is not found (No module named 'surest_of_all')",
        "--trust surest_of_all",
    )


def test_labels_for_a_network_without_labels() -> None:
    """Refused from a user. Data that have labels may be learned without them: Lightning's steps leave them out."""
    model, label = md4(), torch.tensor([0, 1])
    for call in (lambda: model.nelbo(X, label), lambda: model.loss(X, label)):
        refused(call, "label is a tensor of int64", "takes no labels; leave it out")
    assert model.label_of({"x": X, "label": label}) is None
    assert torch.equal(md4(CLASSES).label_of({"x": X, "label": label}), label)
    model.evaluated_rows = lambda batch, split: torch.arange(B)  # which else asks a Trainer
    assert torch.equal(model._evaluate({"x": X, "label": label}, "val")[1], model.nelbo(X))


def test_sample_with_labels() -> None:
    model = md4(CLASSES)
    refused(lambda: model.sample(B, 3), "label is missing", "0..2")
    for label, came in (
        (torch.tensor([1]), "label has shape (1,)"),
        (1, "label has shape ()"),
        (torch.tensor([0.0, 1.0]), "label is a tensor of float32"),
        (torch.tensor([0, CLASSES + 1]), "label holds 4"),
        (torch.tensor([-1, 0]), "label holds -1"),
    ):
        refused(lambda label=label: model.sample(B, 3, label=label), came, "classes" if "holds" in came else "a class")
    assert md4(CLASSES, label_dropout=0.5).sample(B, 3).x.shape == (B, 5)  # the null class was seen in training


def test_what_is_harmless_is_taken() -> None:
    model, labelled = md4(), md4(CLASSES)
    plain = model.sample(B, 3, row=torch.tensor([4, 5]), seed=-2, clamp=(X[0], KNOWN)).x
    lists = (X[0].tolist(), KNOWN.tolist())
    same = model.sample(np.int64(B), np.int32(3), row=[4, 5], seed=np.int64(-2), clamp=lists).x
    assert torch.equal(plain, same)
    arrays = labelled.sample(B, 3, label=np.array([0, 2])).x
    assert torch.equal(arrays, labelled.sample(B, 3, label=torch.tensor([0, 2])).x)
    assert torch.equal(model.nelbo(X), model.nelbo(X.byte(), row=[0, 1]))


EXAMPLES: list[tuple[Callable[[Tensor], object], str]] = [
    (lambda x: x[0], f"x is a tensor of int64, shape ({N},)"),
    (lambda x: x[:, 1:], f"x is a tensor of int64, shape (2, {N - 1})"),
    (lambda x: x.double(), "x is a tensor of float64"),
    (lambda x: x > 0, "x is a tensor of bool"),
    (lambda x: x.numpy(), "x is a NumPy array of int64"),
    (lambda x: x.tolist(), "x is a list of 2"),
    (lambda x: x.to("meta"), "x is on meta, the model on cpu"),
    (lambda x: x * 0 + 10**6, "x holds 1000000; the model's classes are 0.."),
    (lambda x: x * 0 - 1, "x holds -1; the model's classes are 0.."),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_nelbo_of_every_family(name: str) -> None:
    model: Family = family(name)
    x = torch.randint(model.num_classes, (B, N), generator=torch.Generator().manual_seed(0))
    for wrong, came in EXAMPLES:
        refused(lambda wrong=wrong: model.loss(wrong(x)), came)
        refused(lambda wrong=wrong: model.nelbo(wrong(x)), came)
    refused(lambda: model.nelbo(x, num_samples=1.5), "num_samples is 1.5", "a whole number of at least 1")
    refused(lambda: model.nelbo(x, seed=None), "seed is None", "a whole number")
    refused(lambda: model.nelbo(x, row=torch.arange(B + 1)), "row has shape (3,)", "[2]")
    refused(lambda: model.nelbo(x, 3), "label has shape ()", "a class for each of the 2 rows")
    assert model.nelbo(x).shape == (B,)


@pytest.mark.parametrize("name", FAMILIES)
def test_terms_and_reverse_law_of_every_family(name: str) -> None:
    model: Family = family(name)
    x = torch.zeros(B, N, dtype=torch.int64)
    latent = {"latent": torch.zeros(B, *model.latent_shape)} if hasattr(model, "latent_shape") else {}
    half = torch.ones(B, dtype=torch.int64) if name in ("ggm", "ar") else T
    refused(lambda: model.terms(x, x, 0.5, **latent), "t is 0.5", "shape (2,)")
    refused(lambda: model.terms(x[:, 1:], x, half, **latent), "x is a tensor of int64", f"(b, {N})")
    refused(lambda: model.terms(x[:1], x, half, **latent), "x has 1 rows and zt 2")
    refused(lambda: model.reverse_law(x.double(), half, half * 0), "zt is a tensor of float64")
    refused(lambda: model.reverse_law(x, half, 0.0), "s is 0.0", "shape (2,)")
    refused(lambda: model.reverse_law(x, half, half * 0, sharpening=0.5), "sharpening is 0.5", "Sharpening")
    refused(lambda: Sharpening(temperature=-1), "temperature is -1")


def test_labels_of_a_loss() -> None:
    model = md4(CLASSES)
    refused(lambda: model.loss(X, torch.tensor([0, 9])), "label holds 9; the network's classes are 0..2")
    refused(lambda: model.loss(X, torch.tensor([0])), "label has shape (1,)")
    assert model.loss(X, torch.tensor([0, CLASSES])).isfinite()  # the null class, which stands for none


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MarkovChain(global_batch_size=2.5), "data.global_batch_size is 2.5; it must be a whole number"),
        (lambda: MarkovChain(global_batch_size="8"), "data.global_batch_size is '8'; it must be a whole number"),
        (lambda: MarkovChain(eval_batch_size=None), "data.eval_batch_size is None; it must be a whole number"),
        (lambda: MarkovChain(num_workers=-1), "data.num_workers is -1; it must be a whole number of at least 0"),
        (lambda: MarkovChain(num_train="8"), "data.num_train is '8'; it must be a whole number"),
        (lambda: MarkovChain(latents=5), "data.latents is 5; it must be a text or None"),
        (lambda: ArrayData("x.npy", 2.5), "data.num_classes is 2.5; it must be a whole number"),
        (lambda: ArrayData(np.zeros(3), 2), "data.train is a NumPy array of float64, shape (3,); it must be a text"),
        (lambda: ArrayData("x.npy", 2, ordered=1), "data.ordered is 1; it must be True or False"),
        (lambda: TextData(5), "data.train is 5; it must be a text or a list"),
        (lambda: TextData("a.txt", val_fraction="half"), "data.val_fraction is 'half'; it must be a number"),
    ],
)
def test_data_sets(make: Callable[[], object], message: str) -> None:
    refused(make, message)


def test_a_users_own_data_set_is_checked_as_far_as_its_annotations_are_plain() -> None:
    class Mine(MarkovChain):
        def __init__(self, scale: float = 1.0, shift: tuple[int, ...] = (), **rest: int) -> None:
            super().__init__(**rest)

    refused(lambda: Mine(scale="big"), "data.scale is 'big'; it must be a number")
    refused(lambda: Mine(num_val=0.5), "data.num_val is 0.5; it must be a whole number")
    assert Mine(scale=np.float32(2), shift="anything", num_val=np.int64(3)).num_rows["val"] == 3


def test_cached_latents(tmp_path: Path) -> None:
    rows, path = Rows(np.zeros((5, 3), np.uint8), None, name="rows"), tmp_path / "l.npy"

    def encode(x: Tensor) -> Tensor:
        return torch.zeros(len(x), 2, 3)

    refused(lambda: cache_latents(None, rows, path), "encoder is None", "called")
    refused(lambda: cache_latents(encode, np.zeros((5, 3)), path), "rows is a NumPy array", "data.rows('train')")
    refused(lambda: cache_latents(encode, rows, 5), "path is 5", ".npy")
    refused(lambda: cache_latents(encode, rows, path, batch_size=0), "batch_size is 0", "at least 1")
    refused(lambda: cache_latents(encode, rows, path, dtype="int8"), "dtype is 'int8'", "'float32' or 'float16'")
    refused(lambda: cache_latents(lambda x: x.numpy(), rows, path), "the encoder returned a NumPy array", "(5, S, d)")
    refused(lambda: cache_latents(lambda x: encode(x)[:1], rows, path), "the encoder returned a tensor", "(5, S, d)")
    assert not path.exists()
    assert cache_latents(encode, rows, path) == path
