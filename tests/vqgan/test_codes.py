"""Pictures as codes of a VQGAN: shards made once and whole, decoded where they are shown."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_lightning.codecs.codec import dict_hash
from ggm_lightning.codecs.pictures import MIDDLE_GREY
from ggm_lightning.data.header import HEADER
from ggm_lightning.rundir.codecs import codec_from_dict
from ggm_lightning.vqgan import codes as vqgan
from ggm_lightning.vqgan import files as vqgan_files
from ggm_lightning.vqgan.codes import Codes, VQGANCodes
from ggm_lightning.vqgan.network import pixels, scaled
from tests.vqgan.released_vqgan import network, picture, released


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("vqgan") / "m")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    (place / "00000").mkdir(parents=True)
    for i in range(9):
        picture(i, mode="L" if i == 2 else "RGB").save(place / f"{i}.png")
    picture(9, 32, 40).save(place / "00000" / "a.png")  # FFHQ's subfolders; larger than the VQGAN's
    np.save(place / "00000" / "b.npy", np.asarray(picture(10)).transpose(2, 0, 1)[None])  # CelebA-HQ's form
    (place / "list.txt").write_text("no picture")
    return place


def data(source: Path | str, model: Path | str, place: Path, **kwargs: object) -> VQGANCodes:
    return VQGANCodes(str(source), str(model), folder=str(place / "codes"), **({"val_every": 4} | kwargs))


def ready(made: VQGANCodes) -> VQGANCodes:
    made.prepare_data()
    made.setup(None)
    return made


def files(place: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((place / "codes").iterdir()) if p.suffix in (".bin", ".json")}


def test_codes_are_those_of_direct_encoding(folder: Path, model: Path, tmp_path: Path) -> None:
    made, vq = ready(data(folder, model, tmp_path)), network()
    assert (made.num_classes, made.shape) == (37, (1, 8, 8))
    names = ["0.png", "00000/a.png", "00000/b.npy", *(f"{i}.png" for i in range(1, 9))]
    splits = {"train": [0, 1, 2, 4, 5, 6, 8, 9, 10], "val": [3, 7]}
    for split, numbers in splits.items():
        rows = made.rows(split)
        assert len(rows) == len(numbers)
        for row, number in enumerate(numbers):
            path = folder / names[number]
            image = picture(10) if path.suffix == ".npy" else Image.open(path).convert("RGB")
            if path.name == "a.png":  # 32x40: the shorter side to 16, then the centre
                image = image.resize((16, 20), Image.Resampling.LANCZOS)
            left, top = (image.width - 16) // 2, (image.height - 16) // 2
            square = np.asarray(image.crop((left, top, left + 16, top + 16)))
            x = scaled(torch.from_numpy(square.transpose(2, 0, 1).copy())[None])
            with torch.no_grad():
                restored, _, codes = vq(x)
            assert torch.equal(rows[[row]]["x"], codes[:, None])
            shown = made.decode(rows[[row]]["x"])[0].astype(int)
            assert abs(shown - pixels(restored)[0].permute(1, 2, 0).numpy()).max() <= 1  # batches round otherwise
            if split == "val":
                assert (made.originals[row] == square).all()
    assert made.decode(made.rows("val")[[0]]["x"]).shape == (1, 16, 16, 3)
    assert (made.folder / "train-00000.bin").stat().st_size == 9 * 64 * 2  # uint16
    assert "as they were written" in made.verify()


def test_tar_array_and_folder_give_the_same(folder: Path, model: Path, tmp_path: Path) -> None:
    names = sorted(p.name for p in folder.glob("*.png"))
    for name in ("00000/a.png", "00000/b.npy"):
        (folder / name).unlink()
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        for name in names:
            archive.add(folder / name, name)
    x = np.stack([np.asarray(Image.open(folder / name).convert("RGB")) for name in names])
    np.savez(tmp_path / "p.npz", x=x)
    found = []
    for number, source in enumerate((folder, tmp_path / "p.tar", tmp_path / "p.npz")):
        made = ready(data(source, model, tmp_path / str(number)))
        found.append(torch.cat([made.rows(split)[range(len(made.rows(split)))]["x"] for split in ("train", "val")]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    other = ready(data(folder, model, tmp_path / "other", val=str(tmp_path / "p.npz")))
    assert (len(other.rows("train")), len(other.rows("val"))) == (9, 9)


def test_masked_codes_are_grey_patches(model: Path) -> None:
    codec = Codes(str(model), "", 37, (8, 8), (3, 16, 16), vqgan_files.weights_hash(vqgan_files.find(model)))
    x = torch.randint(37, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    x[:, 2, 5] = 37
    shown = codec.decode(x)
    grey = (shown == MIDDLE_GREY).all(-1)
    assert grey[:, 4:6, 10:12].all()
    assert grey.mean() < 0.1
    assert codec.decode(torch.full((1, 8, 8), 37)).min() == MIDDLE_GREY
    with pytest.raises(ValueError, match="Codes: 63 codes per row"):
        codec.decode(x.reshape(2, -1)[:, :63])
    with pytest.raises(ValueError, match="id 38 in row 0"):
        codec.decode(torch.full((1, 8, 8), 38))


def test_a_checkpoint_names_the_vqgan_and_holds_none_of_it(model: Path, tmp_path: Path) -> None:
    place = released(tmp_path / "m")
    codec = VQGANCodes("nowhere", str(place)).codec
    described = codec.to_dict()
    assert len(str(described)) < 1000
    again = codec_from_dict(described)
    x = torch.zeros(1, 8, 8, dtype=torch.long)
    moved = {**described, "init_args": {**described["init_args"], "vqgan": "moved"}}
    of_before = {"kind": "vqgan", **described["init_args"]}
    known = {name: value for name, value in of_before.items() if name not in ("vqgan", "absolute")}
    assert codec_from_dict(of_before).to_dict() == described
    assert codec.tokenizer_hash == dict_hash(known)  # that of version 0.1.0
    assert again.tokenizer_hash == codec.tokenizer_hash == VQGANCodes("nowhere", str(model)).codec.tokenizer_hash
    assert (again.decode(x) == codec.decode(x)).all()
    assert codec_from_dict(moved).decode(x).shape == (1, 16, 16, 3)  # found where it was
    released(place, code_dim=5, latent_dim=3, extra="retrained")
    with pytest.raises(ValueError, match=r"but the codes are of the VQGAN .*; put that one back"):
        again.decode(x)
    place.rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="the VQGAN that makes pictures of these codes is not there") as caught:
        again.decode(x)
    assert "\n" not in str(caught.value)


def test_kept_until_something_changes(folder: Path, tmp_path: Path) -> None:
    model = released(tmp_path / "m")

    def prepared(**kwargs: object) -> int:
        return (ready(data(folder, model, tmp_path, **kwargs)).folder / HEADER).stat().st_mtime_ns

    first = prepared()
    assert prepared() == first
    for options in ({"resize": "box"}, {"val_every": 3}):
        with pytest.raises(ValueError, match=f"holds data made with other options .{next(iter(options))}"):
            prepared(**options)
    picture(99).save(folder / "3.png")
    second = prepared()
    assert second != first
    folder.rename(tmp_path / "gone")
    assert prepared() == second
    (tmp_path / "gone").rename(folder)
    released(model, extra="other bytes")
    with pytest.raises(ValueError, match="holds data made with another tokenizer, which are left as they are"):
        prepared()
    folder.rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"data.source: there is no '.*pictures'; give a folder"):
        ready(VQGANCodes(str(folder), str(model), folder=str(tmp_path / "other")))


def test_a_vqgan_that_was_trained_anew_gets_a_folder_of_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = released(tmp_path / "m")
    first = ready(VQGANCodes(str(folder), str(model), val_every=3)).folder
    released(model, extra="other bytes")
    second = ready(VQGANCodes(str(folder), str(model), val_every=3)).folder
    assert second.name.startswith(f"{first.name}-")
    assert (first / HEADER).is_file()
    assert (second / HEADER).is_file()


def test_pictures_that_cannot_be(folder: Path, model: Path, tmp_path: Path) -> None:
    def told(**kwargs: object) -> str:
        made = data(folder, model, tmp_path, **kwargs)
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            made.prepare_data()
        assert "\n" not in str(caught.value)
        assert not (made.folder / HEADER).exists()
        return str(caught.value)

    whole = (folder / "5.png").read_bytes()
    deep, small = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(deep, "PNG")
    picture(0, 15, 40).save(small, "PNG")
    for raw, message in (
        (whole[:-300], "5.png: not a readable PNG or JPEG"),
        (b"", "5.png: not a readable"),
        (deep.getvalue(), "a picture of mode I;16, not 8-bit RGB or grey"),
        (small.getvalue(), "15x40 pixels, fewer than the VQGAN's 16x16"),
    ):
        (folder / "5.png").write_bytes(raw)
        assert message in told()
    (folder / "5.png").write_bytes(whole)
    np.save(folder / "00000" / "b.npy", np.zeros((3, 16, 16), np.float32))
    assert "b.npy: float32 [3, 16, 16], not uint8 [3, h, w]" in told()
    with (folder / "00000" / "b.npy").open("wb") as file:
        np.savez(file, x=np.zeros((3, 16, 16), np.uint8))
    assert "b.npy: several arrays, an .npz and not an .npy" in told()
    (folder / "00000" / "b.npy").unlink()
    assert "none would be held out" in told(val_every=50)
    assert "data.val: there is no" in told(val="nowhere")
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 16, 16, 2), np.uint8))
    assert "x is uint8 [3, 16, 16, 2]" in told(val=str(tmp_path / "x.npz"))
    (tmp_path / "empty").mkdir()
    assert "has no .png, .jpg or .npy pictures" in told(val=str(tmp_path / "empty"))
    (tmp_path / "x.tar").write_bytes(b"x" * 4000)
    assert "not a whole uncompressed tar" in told(val=str(tmp_path / "x.tar"))
    assert "the digits are of 1x8x8 pixels, the VQGAN of 3x16x16" in told(val="digits")
    ready(data(folder, model, tmp_path))  # control
    for wrong in ({"resize": "nearest"}, {"val_every": 1}):
        with pytest.raises(ValueError, match=f"data.{next(iter(wrong))} is"):
            data(folder, model, tmp_path, **wrong)


def test_damage_behind_the_preparation_is_seen(folder: Path, model: Path, tmp_path: Path) -> None:
    made = ready(data(folder, model, tmp_path))
    for name in ("train-00000.bin", "beside.npz"):
        raw = (made.folder / name).read_bytes()
        (made.folder / name).write_bytes(raw[:100] + bytes([raw[100] ^ 1]) + raw[101:])
        with pytest.raises(ValueError, match=f"{name}.*delete .* and prepare it again") as caught:
            ready(data(folder, model, tmp_path)).rows("train")[[0]]
        assert "\n" not in str(caught.value)
        (made.folder / name).write_bytes(raw)
    ready(data(folder, model, tmp_path))


def test_a_preparation_that_stops_goes_on(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever block it stops in, the shards are in the end byte for byte the undisturbed ones."""
    monkeypatch.setattr(vqgan, "_MARK_SECONDS", -1.0)
    monkeypatch.setattr(Codes, "batch_size", property(lambda self: 2, lambda self, value: None), raising=False)
    wanted = files(ready(data(folder, model, tmp_path / "whole")).folder.parent)
    encode = Codes.encode_pictures
    for stop in range(6):
        place, calls = tmp_path / str(stop), []

        def failing(self: Codes, x: np.ndarray, stop: int = stop, calls: list = calls) -> np.ndarray:
            calls.append(1)
            if len(calls) > stop:
                raise KeyboardInterrupt
            return encode(self, x)

        monkeypatch.setattr(Codes, "encode_pictures", failing)
        with pytest.raises(KeyboardInterrupt):
            data(folder, model, place).prepare_data()
        assert not (place / "codes" / HEADER).exists()
        read = []
        monkeypatch.setattr(Codes, "encode_pictures", lambda self, x, read=read: read.append(1) or encode(self, x))
        ready(data(folder, model, place))
        assert files(place) == wanted
        assert len(read) == 6 - stop  # 5 blocks of training, 1 of validation: none is encoded twice


_CHILD = """
import sys, time
from ggm_lightning.vqgan import codes as vqgan
vqgan._MARK_SECONDS = 0.0
encode = vqgan.Codes.encode_pictures
vqgan.Codes.batch_size = property(lambda self: 2, lambda self, value: None)
vqgan.Codes.encode_pictures = lambda self, x: (time.sleep(0.15), print("block", flush=True), encode(self, x))[2]
vqgan.VQGANCodes(sys.argv[1], sys.argv[2], folder=sys.argv[3], val_every=4).prepare_data()
"""


@pytest.mark.slow
def test_killed_preparations(folder: Path, model: Path, tmp_path: Path) -> None:
    """SIGKILL before, between and after the six blocks; the next preparation gives the undisturbed bytes."""

    def child(place: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", _CHILD, str(folder), str(model), str(place / "codes")]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    assert child(tmp_path / "whole").wait() == 0
    wanted = files(tmp_path / "whole")
    for blocks in (0, 1, 4, 6):
        place = tmp_path / str(blocks)
        process = child(place)
        assert process.stdout is not None
        for _ in range(min(blocks, 6)):
            process.stdout.readline()
        time.sleep(0.03 * blocks)
        process.kill()
        process.wait()
        assert child(place).wait() == 0
        assert files(place) == wanted


def test_unreadable_pictures_are_skipped_on_request_and_counted(
    folder: Path, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As if they were not there; what is left out is said. Without the option the first of them stops."""
    small = picture(6, 15, 15)
    small.save(folder / "1.png")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:-300])
    (folder / "8.heic").write_bytes(b"no kind of ours")
    (folder / "._4.png").write_bytes(b"remains")
    with pytest.raises(ValueError, match=r"3.png: not a readable PNG or JPEG"):
        data(folder, model, tmp_path / "stops").prepare_data()
    with caplog.at_level("INFO"):
        made = ready(data(folder, model, tmp_path, on_error="skip"))
    assert "left out: 1 hidden picture(s), 2 file(s) of kinds that are not read" in caplog.text
    assert "train: 1 unreadable skipped, the first: " in caplog.text
    assert (len(made.rows("train")), len(made.rows("val"))) == (8, 1)
    (tmp_path / "good").mkdir()
    for name in ("0.png", "2.png"):
        (folder / name).rename(tmp_path / "good" / name)
    alone = ready(data(tmp_path / "good", model, tmp_path / "alone", val_every=2))
    assert torch.equal(made.rows("train")[[0]]["x"], alone.rows("train")[[0]]["x"])
    for file in folder.glob("*.png"):
        file.write_bytes(b"")
    (folder / "00000" / "a.png").unlink()
    (folder / "00000" / "b.npy").unlink()
    with pytest.raises(ValueError, match=r"none of the 6 train pictures can be read, the first: .*/1.png"):
        data(folder, model, tmp_path / "none", on_error="skip").prepare_data()
    with pytest.raises(ValueError, match=r"data.on_error is 'ignore'; it must be stop or skip"):
        data(folder, model, tmp_path, on_error="ignore")
