"""What `lightning infill` is given: a text with blanks, a picture and a mask, or arrays; as values and known sites."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.pictures import EncodesPictures
from ggm_lightning.data.arrays import read_array
from ggm_lightning.models.base import Family

HALVES = ("left", "right", "top", "bottom")
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_MODES = ("1", "L", "P", "RGB")


@dataclass
class Given:
    """Inputs of infilling.

    Attributes:
        values: Int64[b, *shape]; what stands at unknown sites does not matter.
        known: Bool[b, *shape].
        length: sites that belong to a text; those behind it are the model's own.
    """

    values: Tensor
    known: Tensor
    length: int


def read(model: Family, text: str | None, input: str | None, mask: str | None, blank: str) -> Given:
    """See `lightning infill --help`.

    Raises:
        ValueError, FileNotFoundError: one line that says what is wrong and what to give instead.
    """
    if (text is None) == (input is None):
        raise ValueError(f"infill: give {_what(model)}")
    if mask is not None and not (input or "").lower().endswith(_PICTURES):
        raise ValueError(f"--mask {mask}: only a picture takes one; leave it out")
    if input is None:
        return _from_text(model, text or "", blank)
    if not Path(input).is_file():
        raise FileNotFoundError(f"--input {input}: no such file; give {_what(model)}")
    if input.endswith(".npz"):
        return _from_npz(model, input)
    if input.lower().endswith(_PICTURES):
        return _from_picture(model, input, mask)
    return _from_text(model, Path(input).read_text(encoding="utf-8"), blank)


def _what(model: Family) -> str:
    if isinstance(model.codec, EncodesPictures):
        return "--input PICTURE.png with --mask MASK.png or left, right, top, bottom (or an .npz with x and mask)"
    return "either --text 'words with _ blanks' or --input FILE (.txt or .npz)"


def _from_text(model: Family, text: str, blank: str) -> Given:
    """The parts between blanks are encoded one by one, so that they decode to themselves; sites behind the text are
    left to the model."""
    if len(model.shape) != 1 or model.codec is None:
        raise ValueError(f"infill: this model is not of text; give {_what(model)}")
    if len(blank) != 1:
        raise ValueError(f"--blank is {blank!r}; it must be one symbol")
    text = text.removesuffix("\n")
    ids: list[int] = []
    known: list[bool] = []
    for i, part in enumerate(text.split(blank)):
        if i:
            ids.append(0)
            known.append(False)
        encoded = [int(v) for v in model.codec.encode(part)] if part else []
        if part and not _same(model.codec, model.codec.decode(np.array([encoded]))[0], part):  # type: ignore[arg-type]
            raise ValueError(f"infill: {part[:40]!r} holds symbols that the model's vocabulary lacks")
        ids += encoded
        known += [True] * len(encoded)
    if all(known):
        raise ValueError(f"infill: nothing to fill; mark each missing token by {blank!r}, or choose --blank")
    if len(ids) > model.num_sites:
        raise ValueError(f"infill: the text takes {len(ids)} tokens, the model reads {model.num_sites}; shorten it")
    rest = model.num_sites - len(ids)
    return Given(torch.tensor([ids + [0] * rest]), torch.tensor([known + [False] * rest]), len(ids))


def _same(codec: Codec, decoded: str, text: str) -> bool:
    """Every text must come back to the letter, but for white space that only stands between tokens."""
    return decoded.split() == text.split() if codec.free_spacing else decoded == text


def _from_npz(model: Family, path: str) -> Given:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in ("x", "mask") if name not in arrays]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"--input {path}: cannot be read as .npz ({error}); write it with numpy.savez") from None
    if missing:
        raise ValueError(f"--input {path}: has no array '{missing[0]}'; x (integers) and mask (bool) are needed")
    try:
        x, mask = read_array(Path(path), "x"), read_array(Path(path), "mask", kinds="b")
    except ValueError as error:
        raise ValueError(f"--input {error}") from None
    if mask.shape != x.shape or tuple(x.shape[-len(model.shape) :]) != model.shape:
        raise ValueError(
            f"--input {path}: x is {list(x.shape)}, mask {list(mask.shape)}; both must be [b, *shape] or "
            f"shape with shape {list(model.shape)}"
        )
    if not mask.any():
        raise ValueError(f"--input {path}: nothing to fill; mask must be True where x is to be filled")
    values = torch.from_numpy(x.astype(np.int64)).reshape(-1, *model.shape)
    return Given(values, ~torch.from_numpy(mask).reshape(-1, *model.shape), model.num_sites)


def _from_picture(model: Family, path: str, mask: str | None) -> Given:
    codec = model.codec
    if not isinstance(codec, EncodesPictures):
        raise ValueError(f"--input {path}: this model is not of pictures; give {_what(model)}")
    channels, *size = codec.picture
    pixels = _pixels(path, "--input", tuple(size))
    if mask is None:
        raise ValueError(f"--input {path}: which part is to be filled? give --mask MASK.png, or {', '.join(HALVES)}")
    if mask in HALVES:
        fill = _half(mask, tuple(size))
    else:
        fill = np.asarray(_pixels(mask, "--mask", tuple(size)).any(-1))
    if not fill.any():
        raise ValueError(f"--mask {mask}: nothing to fill, all of it is black; make white what is to be filled")
    ids = codec.encode_pictures(_channels(pixels, channels)[None])[0]
    known = ~codec.sites_of(fill)
    values, known_sites = (torch.from_numpy(part).reshape(1, *model.shape) for part in (ids, known))
    return Given(values, known_sites, model.num_sites)


def _pixels(path: str, option: str, size: tuple[int, ...]) -> UInt8[np.ndarray, "h w 3"]:
    from PIL import Image, UnidentifiedImageError

    remedy = f"; give a picture file or one of {', '.join(HALVES)}" if option == "--mask" else ""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{option} {path}: no such file{remedy}")
    try:
        with Image.open(path) as image:
            mode, (width, height) = image.mode, image.size
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # Pillow's words for damaged files
        raise ValueError(f"{option} {path}: cannot be read as a picture ({error}); save it as PNG") from None
    if mode not in _MODES:
        raise ValueError(f"{option} {path}: its pixels are of mode {mode}; save it as 8-bit grey or RGB")
    if (height, width) != size:
        raise ValueError(
            f"{option} {path}: {width} x {height} pixels, the model's are {size[1]} x {size[0]}; resize it"
        )
    return pixels


def _channels(pixels: UInt8[np.ndarray, "h w 3"], channels: int) -> UInt8[np.ndarray, "c h w"]:
    """For a grey model, colours are weighted to grey as in Pillow (ITU-R 601-2)."""
    from PIL import Image

    if channels == 1:
        return np.array(Image.fromarray(pixels).convert("L"))[None]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _half(word: str, size: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    """True where it is to be filled; two opposite halves are the whole."""
    height, width = size
    row, column = np.ogrid[:height, :width]
    fill = {
        "left": column < width // 2,
        "right": column >= width // 2,
        "top": row < height // 2,
        "bottom": row >= height // 2,
    }
    return np.broadcast_to(fill[word], size)
