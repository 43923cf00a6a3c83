"""What `lightning infill` is given: a text with blanks, a picture and a mask, or arrays; as values and known sites."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.pictures import EncodesPictures
from ggm_lightning.data.arrays import DAMAGE, read_array
from ggm_lightning.data.picture_bytes import SUFFIXES, channels_of, pixels_of
from ggm_lightning.models.base import Family

HALVES = ("left", "right", "top", "bottom")
_SIGNS = "_|§†¤"  # that stand for a blank while a text is encoded


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
    if mask is not None and not (input or "").lower().endswith(SUFFIXES):
        raise ValueError(f"--mask {mask}: only a picture takes one; leave it out")
    if input is None:
        return _from_text(model, text or "", blank)
    if not Path(input).is_file():
        raise FileNotFoundError(f"--input {input}: no such file; give {_what(model)}")
    if input.lower().endswith(".npz"):
        return _from_npz(model, input)
    if input.lower().endswith(SUFFIXES):
        return _from_picture(model, input, mask)
    return _from_text(model, _text_of(model, input), blank)


def _text_of(model: Family, input: str) -> str:
    try:
        return Path(input).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"--input {input}: is no text in UTF-8; give {_what(model)}") from None


def _what(model: Family) -> str:
    if isinstance(model.codec, EncodesPictures):
        return "--input PICTURE.png with --mask MASK.png or left, right, top, bottom (or an .npz with x and mask)"
    return "either --text 'words with _ blanks' or --input FILE (.txt or .npz)"


def _from_text(model: Family, text: str, blank: str) -> Given:
    """Sites behind the text are left to the model."""
    if len(model.shape) != 1 or model.codec is None:
        raise ValueError(f"infill: this model is not of text; give {_what(model)}")
    if len(blank) != 1:
        raise ValueError(f"--blank is {blank!r}; it must be one symbol")
    sites = _sites(model.codec, text.removesuffix("\n"), blank)  # type: ignore[arg-type]
    if None not in sites:
        raise ValueError(f"infill: nothing to fill; mark each missing token by {blank!r}, or choose --blank")
    if len(sites) > model.num_sites:
        raise ValueError(f"infill: the text takes {len(sites)} tokens, the model reads {model.num_sites}; shorten it")
    length = len(sites)
    sites += [None] * (model.num_sites - length)
    values = torch.tensor([[0 if site is None else site for site in sites]])
    known = torch.tensor([[site is not None for site in sites]])
    return Given(values, known, length)


def _sites(codec: Codec, text: str, blank: str) -> list[int | None]:
    """The token of each site, None at a blank: the parts between blanks are encoded one by one, except for tokenizers
    whose tokens depend on what stands before them.

    Raises:
        ValueError: the vocabulary lacks symbols of the text.
    """
    if not codec.exact and codec.encode_spans("") is not None:
        return _sites_of_the_whole(codec, text, blank)
    sites: list[int | None] = []
    for number, part in enumerate(text.split(blank)):
        ids = codec.encode(part) if part else []
        if not _same(codec, codec.decode(np.array([ids], dtype=np.int64))[0], part):
            raise ValueError(_lacking(codec, part))
        sites += [None, *ids] if number else ids
    return sites


def _sites_of_the_whole(codec: Codec, text: str, blank: str) -> list[int | None]:
    """The whole text is encoded with a sign in the place of each blank that the tokenizer keeps apart from words; which
    tokens stand for the blanks is seen from the characters that they span.

    Raises:
        ValueError: the vocabulary lacks symbols of the text, or each sign becomes a part of a longer token.
    """
    _, loss = codec.encode_measured([text.replace(blank, " ")])
    if loss.lost:
        raise ValueError(_lacking(codec, text.replace(blank, " ")))
    signs = [blank, *(sign for sign in _SIGNS if sign not in text)]
    for sign in signs:
        sites = _between_words(codec, text.replace(blank, sign), sign)
        if sites is not None:
            return sites
    raise ValueError(f"infill: a blank {blank!r} becomes a part of a longer token; put spaces around it")


def _between_words(codec: Codec, text: str, sign: str) -> list[int | None] | None:
    """`_sites_of_the_whole` for one sign; None if a token holds both it and other visible characters."""
    sites: list[int | None] = []
    ids, spans = codec.encode_spans(text) or ([], [])
    done = 0  # signs before this place have their sites; several tokens may stand for one
    for id_, (start, end) in zip(ids, spans, strict=True):
        covered = text[start:end]
        # a space before a blank, or the one that some tokenizers put before a text, belongs to the token that fills it
        space_before = covered in ("", " ") and text[end : end + 1] == sign
        if sign not in covered and not space_before:
            sites.append(id_)
        elif covered.replace(sign, "").strip():
            return None
        sites += [None] * text[max(start, done) : end].count(sign)
        done = max(done, end)
    return sites if sites.count(None) == text.count(sign) else None


def _lacking(codec: Codec, text: str) -> str:
    """Names the first symbol that no token holds, and where it stands."""
    for i, symbol in enumerate(text):
        alone = codec.decode(np.array([codec.encode(symbol)], dtype=np.int64))[0]
        if not symbol.isspace() and not _same(codec, alone, symbol):
            near = text[max(0, i - 20) : i + 20]
            return (
                f"infill: the model's vocabulary lacks {symbol!r} (in {near!r}); write another symbol, or train "
                "on bytes (data.tokenizer: bytes)"
            )
    return f"infill: the model's vocabulary cannot hold {text[:40]!r}; write it with other words"


def _same(codec: Codec, decoded: str, text: str) -> bool:
    """Every text must come back to the letter, but for white space that only stands between tokens."""
    return decoded.split() == text.split() if codec.free_spacing else decoded == text


def _from_npz(model: Family, path: str) -> Given:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in ("x", "mask") if name not in arrays]
    except DAMAGE as error:
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
    known = x[~mask]
    if known.size and (known.min() < 0 or known.max() >= model.num_classes):
        raise ValueError(
            f"--input {path}: known values of x lie in {known.min()}..{known.max()}, not 0..{model.num_classes - 1}; "
            "fix x, or set mask to True there"
        )
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
    ids = codec.encode_pictures(channels_of(pixels, channels)[None])[0]
    known = ~codec.sites_of(fill)
    values, known_sites = (torch.from_numpy(part).reshape(1, *model.shape) for part in (ids, known))
    return Given(values, known_sites, model.num_sites)


def _pixels(path: str, option: str, size: tuple[int, ...]) -> UInt8[np.ndarray, "h w 3"]:
    remedy = f"; give a picture file or one of {', '.join(HALVES)}" if option == "--mask" else ""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{option} {path}: no such file{remedy}")
    pixels = pixels_of(Path(path).read_bytes(), f"{option} {path}")
    height, width = pixels.shape[:2]
    if (height, width) != size:
        raise ValueError(
            f"{option} {path}: {width} x {height} pixels, the model's are {size[1]} x {size[0]}; resize it"
        )
    return pixels


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
