"""What data/latents.py promises: the encoder's own numbers, for the right rows, through the loaders."""

from __future__ import annotations

import json
import os
import pickle
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ggm_lightning.data.arrays import ArrayData
from ggm_lightning.data.latents import CachedLatents, cache_latents
from ggm_lightning.data.rows import Rows
from ggm_lightning.networks.pretrained import PretrainedEncoder

N, V, S, C = 5, 11, 2, 3


def encode(x: Tensor) -> Tensor:
    """Something that depends on every token and its place."""
    table = torch.randn(N, V, S * C, generator=torch.Generator().manual_seed(0))
    return sum(table[site, x[:, site]] for site in range(N)).reshape(-1, S, C)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(V, S * C)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x).mean(1).reshape(-1, S, C)


class Holder(LightningModule):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder


def rows(count: int, seed: int = 0) -> Rows:
    return Rows(np.random.default_rng(seed).integers(V, size=(count, N)), np.arange(count) % 3)


@pytest.mark.parametrize("batch_size", [4, 64])
def test_rows_come_with_their_latents(tmp_path: Path, batch_size: int) -> None:
    source = rows(23)
    path = cache_latents(encode, source, tmp_path / "deep" / "train.npy", batch_size)
    cached = CachedLatents(source, path)
    batch = cached[[7, 22, 0, 7]]
    assert set(batch) == {"x", "label", "latent"}
    assert batch["latent"].dtype is torch.float32
    assert torch.equal(batch["latent"], encode(batch["x"]))
    assert torch.equal(batch["x"], source[[7, 22, 0, 7]]["x"])
    assert torch.equal(cached[3]["latent"], batch["latent"].new_tensor(np.load(path)[3]))
    assert sorted(file.name for file in path.parent.iterdir()) == ["train.json", "train.npy"]
    assert len(pickle.dumps(cached)) < 5000 + len(pickle.dumps(source)), "workers map the file, they are not sent it"
    assert torch.equal(pickle.loads(pickle.dumps(cached))[[5]]["latent"], cached[[5]]["latent"])


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    source = rows(50)
    whole, half = (
        cache_latents(encode, source, tmp_path / f"{dtype}.npy", dtype=dtype) for dtype in ("float32", "float16")
    )
    assert np.load(half).nbytes * 2 == np.load(whole).nbytes
    latent = CachedLatents(source, half)[[1, 2]]["latent"]
    torch.testing.assert_close(latent, encode(source[[1, 2]]["x"]), rtol=1e-3, atol=1e-3)


def test_latents_of_another_encoder_are_refused(tmp_path: Path) -> None:
    """Of the same shape, on the same rows; the model's own are taken, and so are those of which nothing is known."""
    torch.manual_seed(0)
    source, mine, other = rows(7), Encoder(), Encoder()
    path = cache_latents(mine, source, tmp_path / "train.npy")
    cached = CachedLatents(source, path)
    cached.check_encoder(mine)
    with pytest.raises(ValueError, match=r"train.npy: latents of another encoder \(.*\); make them again with"):
        cached.check_encoder(other)
    note = path.with_suffix(".json")
    note.write_text(json.dumps({"rows": json.loads(note.read_text())["rows"]}))  # as format 1 had it
    CachedLatents(source, path).check_encoder(other)


def test_a_fit_and_an_evaluation_compare_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = rows(7)
    np.save(tmp_path / "x.npy", np.stack([source[[i]]["x"][0].numpy() for i in range(7)]))
    given = {"num_classes": V, "val": str(tmp_path / "x.npy"), "latents": str(tmp_path)}
    bare = ArrayData(str(tmp_path / "x.npy"), num_classes=V, val=str(tmp_path / "x.npy"))
    mine, other = Encoder(), Encoder()
    for split in ("train", "val"):
        cache_latents(mine, bare.rows(split), tmp_path / f"{split}.npy")
    data = ArrayData(str(tmp_path / "x.npy"), **given)
    for encoder, refused in ((mine, False), (other, True)):
        data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        data.trainer.strategy.connect(Holder(encoder))
        with pytest.raises(ValueError, match="of another encoder") if refused else nullcontext():
            data.setup("validate")


def test_a_pretrained_encoder_is_told_by_its_source_and_settings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"12345")
    sources = (str(tmp_path / "model"), "hub/name", nn.Embedding(V, 8), nn.Embedding(V, 8))
    found = [PretrainedEncoder(source, 2, 3).identity() for source in sources]
    found.append(PretrainedEncoder("hub/name", 2, 3, pooling="chunks_eos").identity())
    assert len(set(found)) == len(found)
    assert PretrainedEncoder("hub/name", 2, 3).identity() == found[1]
    (tmp_path / "model" / "model.safetensors").write_bytes(b"123456")
    assert PretrainedEncoder(str(tmp_path / "model"), 2, 3).identity() != found[0]


def test_latents_of_other_rows_are_refused(tmp_path: Path) -> None:
    path = cache_latents(encode, rows(23), tmp_path / "train.npy")
    with pytest.raises(ValueError, match="latents of other rows") as caught:
        CachedLatents(rows(23, seed=1), path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="latents of other rows"):
        CachedLatents(rows(22), path)
    with pytest.raises(FileNotFoundError, match=r"no latents.*cache_latents"):
        CachedLatents(rows(23), tmp_path / "val.npy")
    note = path.with_suffix(".json")
    said = note.read_text()
    for damaged in ("", "[]", '{"other": 1}'):
        note.write_text(damaged)
        with pytest.raises(ValueError, match=r"train\.json: does not say which rows; make the latents again"):
            CachedLatents(rows(23), path)
    note.write_text(said)
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(ValueError, match=r"cannot be read as \.npy.*make the latents again"):
        CachedLatents(rows(23), path)
    with pytest.raises(ValueError, match=r"ends in \.npy"):
        cache_latents(encode, rows(23), tmp_path / "latents.bin")


def test_any_data_set_hands_them_out(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", rows(40).x)
    options = {"train": str(tmp_path / "ids.npy"), "num_classes": V, "global_batch_size": 6, "eval_batch_size": 3}
    plain = ArrayData(**options)
    for split in ("train", "val"):
        cache_latents(encode, plain.rows(split), tmp_path / "latents" / f"{split}.npy")
    assert "latent" not in next(iter(plain.train_dataloader()))
    data = ArrayData(**options, latents=str(tmp_path / "latents"), num_workers=1)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        assert torch.equal(batch["latent"], encode(batch["x"]))
