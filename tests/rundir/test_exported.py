"""A model to hand on: the folder gives back the model bit for bit, and nothing else is taken for one."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ggm_lightning
from ggm_lightning.cli.main import main
from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir import exported, start
from tests.cli import small_checkpoints
from tests.cli.test_main import error_of


def written(folder: Path, family: str = "md4") -> tuple[str, Path]:
    """(a checkpoint, what `lightning export` makes of it)."""
    checkpoint = small_checkpoints.write(folder / "run" / "last.ckpt", family)
    main(["export", "--ckpt_path", checkpoint, "--out", str(folder / "handed"), "--licence", "cc-by-4.0"])
    return checkpoint, folder / "handed"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("good"))[1]


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name == "md4" else pytest.mark.slow) for name in small_checkpoints.FAMILIES],
)
def test_weights_and_samples_are_bit_equal(family: str, tmp_path: Path) -> None:
    checkpoint, folder = written(tmp_path, family)
    ours, theirs = ggm_lightning.load(folder), ggm_lightning.load(checkpoint)
    assert type(ours) is type(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert value.dtype == ours.state_dict()[name].dtype
        assert torch.equal(value, ours.state_dict()[name]), name
    assert torch.equal(ours.sample(3, 5, seed=2).x, theirs.sample(3, 5, seed=2).x)
    x = torch.arange(2 * small_checkpoints.N).reshape(2, -1) % small_checkpoints.V
    assert torch.equal(ours.nelbo(x), theirs.nelbo(x))
    assert ours.codec.to_dict() == theirs.codec.to_dict()
    other = ggm_lightning.load(small_checkpoints.write(tmp_path / "other.ckpt", family, seed=1))
    assert not torch.equal(ours.nelbo(x), other.nelbo(x)), "control"


def test_the_averaged_weights_are_taken(tmp_path: Path) -> None:
    path = Path(small_checkpoints.write(tmp_path / "run" / "last.ckpt", "md4"))
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["current_model_state"] = {name: value + 1 for name, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint | {"averaging_state": {}}, path)
    main(["export", "--ckpt_path", str(path), "--out", str(tmp_path / "handed"), "--licence", "mit"])
    held = load_file(tmp_path / "handed" / exported.WEIGHTS)
    assert all(torch.equal(held[name], value) for name, value in checkpoint["state_dict"].items())
    assert checkpoint_files.averaged(checkpoint_files.read(tmp_path / "handed"))
    assert not checkpoint_files.averaged(checkpoint_files.read(small_checkpoints.write(tmp_path / "raw.ckpt", "md4")))


def test_what_the_folder_holds(good: Path) -> None:
    assert {file.name for file in good.iterdir()} == {"model.safetensors", "config.json", "README.md", "SHA256SUMS"}
    config = json.loads((good / "config.json").read_text())
    assert config["model_type"] == "ggm_lightning"
    assert config["version"] == ggm_lightning.__version__
    card = (good / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert "Nothing was measured" in card


# ------------------------------------------------------------------ what is refused


def change_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """With the sums made anew: a folder that somebody wrote so."""

    def do(folder: Path) -> None:
        held = load_file(folder / exported.WEIGHTS)
        change(held)
        save_file(held, folder / exported.WEIGHTS)
        _sum_again(folder)

    return do


def _sum_again(folder: Path) -> None:
    sums = [f"{exported._sha256(folder / name)}  {name}\n" for name in (exported.WEIGHTS, exported.CONFIG)]
    (folder / exported.SUMS).write_text("".join(sums))


def flip(name: str) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return do


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def as_pickle(folder: Path) -> None:
    (folder / exported.WEIGHTS).unlink()
    torch.save({"a": 1}, folder / "pytorch_model.bin")


def pickle_under_the_name(folder: Path) -> None:
    (folder / exported.WEIGHTS).write_bytes(pickle.dumps(Payload()))
    _sum_again(folder)


def another_class(folder: Path) -> None:
    config = json.loads((folder / exported.CONFIG).read_text())
    config["model"]["init_args"]["network"]["class_path"] = "elsewhere.Net"
    (folder / exported.CONFIG).write_text(json.dumps(config))
    _sum_again(folder)


def another_type(folder: Path) -> None:
    config = json.loads((folder / exported.CONFIG).read_text())
    (folder / exported.CONFIG).write_text(json.dumps(config | {"model_type": "mdlm"}))
    _sum_again(folder)


HEAD = "network.head.weight"
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing key": (change_weights(lambda held: held.__delitem__(HEAD)), f"1 missing ({HEAD})"),
    "an unexpected key": (change_weights(lambda held: held.update(more=torch.ones(3))), "1 unexpected (more)"),
    "a misshapen key": (
        change_weights(lambda held: held.update({HEAD: torch.ones(7, 5)})),
        f"1 of another shape ({HEAD} is (7, 5), not (7, 16))",
    ),
    "a byte of the weights": (flip(exported.WEIGHTS), "is not the file that SHA256SUMS was made of"),
    "a byte of the configuration": (flip(exported.CONFIG), "is not the file that SHA256SUMS was made of"),
    "a pickle": (as_pickle, "but pytorch_model.bin, a pickle, which could execute code"),
    "a pickle under the name": (pickle_under_the_name, "not a whole safetensors file"),
    "no sums": (lambda folder: (folder / exported.SUMS).unlink(), "holds no SHA256SUMS"),
    "no configuration": (lambda folder: (folder / exported.CONFIG).unlink(), "holds no config.json"),
    "sums of nothing": (lambda folder: (folder / exported.SUMS).write_text(""), "does not name model.safetensors"),
    "a class of nobody": (another_class, "it names the class elsewhere.Net, which is not of this package"),
    "another model_type": (another_type, "lightning import --from mdlm"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused_in_one_line(fault: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "handed"
    shutil.copytree(good, folder)
    ggm_lightning.load(folder)  # control: the copy is whole
    change, said = FAULTS[fault]
    change(folder)
    with pytest.raises(ValueError, match="handed") as caught:
        ggm_lightning.load(folder)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    line = error_of(capsys, ["sample", "--ckpt_path", str(folder)])
    assert said in line


def test_a_card_may_be_changed(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "handed"
    shutil.copytree(good, folder)
    (folder / "README.md").write_text("mine")
    (folder / ".gitattributes").write_text("x")
    ggm_lightning.load(folder)


def test_nothing_is_overwritten(good: Path, tmp_path: Path) -> None:
    weights, config = exported.read(good)
    for place in (tmp_path / "file", tmp_path / "full"):
        if place.name == "full":
            place.mkdir()
        (place / "x" if place.name == "full" else place).write_text("precious")
        with pytest.raises(ValueError, match="something is there; name a new folder"):
            exported.write(place, weights, config, "card")
    assert (tmp_path / "full" / "x").read_text() == (tmp_path / "file").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    exported.write(tmp_path / "empty", weights, config, "card")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full"]


# ------------------------------------------------------------------ the hub


@pytest.fixture
def hub(good: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """A hub with one model; what was asked of it."""
    import huggingface_hub

    asked: list[tuple[str, str | None]] = []

    def snapshot_download(name: str, revision: str | None = None, allow_patterns: list[str] | None = None) -> str:
        assert allow_patterns is not None
        assert not any("*" in pattern or pattern.endswith((".bin", ".py")) for pattern in allow_patterns)
        if name != "owner/model":
            raise OSError(f"404\nno {name}")
        asked.append((name, revision))
        return str(good)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_from_the_hub(
    hub: list[tuple[str, str | None]], good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ggm_lightning.load("hub:owner/model@v2")
    assert torch.equal(model.network.head.weight, ggm_lightning.load(good).network.head.weight)
    assert start.weights_of("hub:owner/model").identity == exported.identity(good)
    main(["sample", "--ckpt_path", "hub:owner/model", "--num_samples", "2", "--num_steps", "2"])
    assert len(list(Path("runs/model").glob("samples-*/samples.npz"))) == 1, "nothing goes into the hub's cache"
    assert hub == [("owner/model", "v2"), ("owner/model", None), ("owner/model", None)]
    with pytest.raises(
        ValueError, match=r"hub:owner/other: 404 no owner/other; check the name and the network"
    ) as error:
        ggm_lightning.load("hub:owner/other")
    assert "\n" not in str(error.value)
