"""Checkpoint files under faults (full disk, truncation, flipped bits, pickled code) and on the way back to a model."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from ggm_lightning.codecs.text import Integers
from ggm_lightning.rundir import restore
from ggm_lightning.rundir.checkpoint import KEY, AtomicCheckpointIO, describe, read

D, V = 11, 7


class Net(nn.Module):
    def __init__(self, num_classes: int, dim: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layer = nn.Linear(dim, num_classes)
        self.drop = nn.Dropout(0.5)


class Model(LightningModule):
    def __init__(self, network: nn.Module, num_classes: int, shape: tuple[int, ...], rate: float = 0.5) -> None:
        super().__init__()
        self.network, self.num_classes, self.shape, self.rate = network, num_classes, shape, rate
        self.resolved_config = None


class NotAModel:
    def __init__(self, folder: str) -> None:
        os.makedirs(folder)


class Payload:
    """Unpickling this runs a program: it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.makedirs, (str(self.folder),)


def load(path):
    """The classes of this file are trusted: they are nobody else's."""
    return restore.load(path, trust=__name__)


def checkpoint_of(model: Model, **about) -> dict:
    model.resolved_config = {
        "model": {
            "class_path": f"{__name__}.Model",
            "init_args": {"rate": 0.25, "network": {"class_path": f"{__name__}.Net", "init_args": {"dim": D}}},
        }
    }
    return {"state_dict": model.state_dict(), KEY: describe(model) | about}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model(Net(V, D), V, (2, 5), rate=0.25)


@pytest.fixture
def saved(tmp_path, model):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint_of(model), path)
    return path


def full_disk(monkeypatch, where: str) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    if where == "fsync":

        def fsync(descriptor):
            raise error

        monkeypatch.setattr(os, "fsync", fsync)
        return

    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > 700:
                raise error
            return super().write(data)

    real = Path.open
    monkeypatch.setattr(Path, "open", lambda p, mode="r", *a: Full(p, "w") if mode == "wb" else real(p, mode, *a))


@pytest.mark.parametrize("where", ["fsync", "write"])
def test_full_disk_leaves_the_old_file_and_no_other(monkeypatch, saved, where):
    before = saved.read_bytes()
    with monkeypatch.context() as patch:
        full_disk(patch, where)
        with pytest.raises(OSError, match="No space left") as caught:
            AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": torch.zeros(10**5)}}, saved)
    assert caught.value.errno == errno.ENOSPC
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]
    load(saved)


def test_kill_during_saving_leaves_the_old_file(saved, monkeypatch):
    class Killed(BaseException):
        pass

    def replace(*names):
        raise Killed

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, saved)
    load(saved)


def test_left_over_of_a_kill_is_used_up_by_the_next_save(saved):
    left_over = saved.with_name(f".{saved.name}.partial")
    left_over.write_bytes(b"half a file")
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": torch.ones(2)}}, saved)
    assert os.listdir(saved.parent) == [saved.name]
    assert read(saved)["state_dict"]["a"].tolist() == [1, 1]


def test_unloadable_objects_are_refused_when_saving(saved):
    with pytest.raises(ValueError, match="makedirs"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}, "x": Payload(saved.parent / "made")}, saved)
    assert os.listdir(saved.parent) == [saved.name]


def test_pickled_payload_is_refused_and_not_executed(tmp_path):
    made, path = tmp_path / "made", tmp_path / "x.ckpt"
    torch.save({"state_dict": {}, "x": Payload(made)}, path)
    with pytest.raises(ValueError, match=r"makedirs.*executes code"):
        read(path)
    assert not made.exists()
    torch.load(path, weights_only=False)  # control: the payload does work
    assert made.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file(saved, share):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"last\.ckpt: truncated.*use another checkpoint"):
        read(saved)


def test_one_flipped_bit_in_a_weight(saved):
    data = bytearray(saved.read_bytes())
    at = data.index(torch.load(saved, weights_only=True)["state_dict"]["network.layer.bias"].numpy().tobytes())
    data[at] ^= 1
    saved.write_bytes(data)
    with pytest.raises(ValueError, match=r"altered on disk"):
        read(saved)
    torch.load(saved, weights_only=True)  # control: torch alone does not notice


@pytest.mark.parametrize("step", range(0, 40))
def test_any_altered_byte_gives_one_line_or_the_same_content(saved, step):
    data, wanted = bytearray(saved.read_bytes()), read(saved)["state_dict"]
    data[len(data) * step // 40] ^= 0xFF
    saved.write_bytes(data)
    found, error = wanted, None
    try:
        found = read(saved)["state_dict"]
    except ValueError as raised:
        error = str(raised)
    assert error is None or "\n" not in error
    # without an error it was a byte of padding, or one that nobody reads
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_missing_file_names_its_neighbours(saved):
    with pytest.raises(ValueError, match=r"best\.ckpt: no such checkpoint.*--ckpt_path.*last\.ckpt"):
        read(saved.with_name("best.ckpt"))


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02}q\x00.", {"a": 1}, [1]])
def test_other_files(tmp_path, content):
    path = tmp_path / "x.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="not a checkpoint"):
        read(path)


def test_lightning_calls(saved):
    plugin = AtomicCheckpointIO()
    assert plugin.load_checkpoint(saved)["state_dict"]
    with pytest.raises(ValueError, match="weights_only=False"):
        plugin.load_checkpoint(saved, weights_only=False)
    with pytest.raises(ValueError, match="storage_options"):
        plugin.save_checkpoint({}, saved, storage_options={})
    with pytest.raises(ValueError, match="local folders only"):
        plugin.save_checkpoint({}, "s3://bucket/last.ckpt")
    plugin.remove_checkpoint(saved)
    plugin.remove_checkpoint(saved)
    assert not saved.exists()


def test_load_gives_the_model_back(monkeypatch, saved, model):
    loaded = load(saved)
    assert type(loaded) is Model
    assert (loaded.num_classes, loaded.shape, loaded.rate, loaded.network.num_classes) == (V, (2, 5), 0.25, V)
    assert not loaded.training
    assert loaded.codec is None
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


@pytest.mark.parametrize("codec", [{"kind": "integers", "num_classes": V}, Integers(V).to_dict()])
def test_codec_comes_along(tmp_path, model, codec):
    path = tmp_path / "x.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint_of(model, codec=codec), path)
    loaded = load(path).codec
    assert type(loaded) is Integers
    assert loaded.num_classes == V


def test_description_of_a_model_made_without_the_command_line(tmp_path, model):
    about = describe(model)
    assert about["model"] is None
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": model.state_dict(), KEY: about}, path)
    with pytest.raises(ValueError, match=r"construct the model yourself and call model\.load_state_dict"):
        load(path)


def broken(change) -> dict:
    checkpoint = checkpoint_of(Model(Net(V, D), V, (2, 5)))
    change(checkpoint)
    return checkpoint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["state_dict"].pop("network.layer.bias"), r"1 missing \(network\.layer\.bias\)"),
        (lambda c: c["state_dict"].update(extra=torch.ones(1)), r"1 unexpected \(extra\)"),
        (
            lambda c: c["state_dict"].update({"network.layer.bias": torch.ones(3)}),
            r"1 of another shape \(network\.layer\.bias is \(3,\), not \(7,\)\)",
        ),
        (
            lambda c: c[KEY]["model"].update(class_path="no.such.Class"),
            r"the class no\.such\.Class, which is not of this",
        ),
        (lambda c: c[KEY]["model"].update(class_path=f"{__name__}.Lost"), r"there is no class .*\.Lost here"),
        (lambda c: c[KEY]["model"]["init_args"].update(unknown=3), r"Model takes no argument 'unknown'"),
        (lambda c: c[KEY]["model"]["init_args"].update(rate="fast"), r"Model\.rate is 'fast'; it must be float"),
        (lambda c: c.pop(KEY), r"construct the model yourself"),
    ],
)
def test_checkpoint_that_does_not_fit(tmp_path, change, message):
    path = tmp_path / "x.ckpt"
    torch.save(broken(change), path)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_only_lightning_modules_are_built(tmp_path):
    made, path = tmp_path / "made", tmp_path / "x.ckpt"
    spec = {"class_path": f"{__name__}.NotAModel", "init_args": {"folder": str(made)}}
    torch.save(broken(lambda c: c[KEY].update(model=spec)), path)
    with pytest.raises(ValueError, match="NotAModel is no LightningModule"):
        load(path)
    assert not made.exists()
    NotAModel(str(made))
    assert made.exists()
