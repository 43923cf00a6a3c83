"""The python version of CIFAR-10: pickles, read without running anything that they ask for.

A pickle is a program whose GLOBAL instructions name functions to call. The batches need four, for their pixel array;
stand-ins that only keep what they are given take their place, and every other name is refused. numpy's own functions
would not do: an array of pointers can be pickled with numbers in their place.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from jaxtyping import Int64, UInt8

_GET = "get https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz again"
_SHAPE_OF_FILE = (pickle.UnpicklingError, struct.error, AssertionError, AttributeError, EOFError, LookupError)
_WRONG = (*_SHAPE_OF_FILE, ArithmeticError, MemoryError, TypeError, ValueError)


class _Dtype:
    """numpy.dtype: unsigned bytes only."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of type {code!r}; the pixels are u1")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which bytes do not have."""


class _Array:
    """numpy.ndarray: a shape and bytes, checked against each other."""

    def __init__(self, *_: object) -> None:
        self.pixels: UInt8[np.ndarray, " ..."] = np.zeros(0, dtype=np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self._set(raw, shape, dtype, "F" if fortran else "C")

    def _set(self, raw: Any, shape: Any, dtype: Any, order: Any) -> None:
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(raw, bytes | bytearray):
            raise pickle.UnpicklingError(f"an array made of {type(raw).__name__}")
        if not isinstance(dtype, _Dtype) or len(raw) != math.prod(shape):
            raise pickle.UnpicklingError(f"{len(raw)} bytes for an array of shape {shape}")
        self.pixels = np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if order == "F" else "C")


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """numpy's _frombuffer, by which pickles of protocol 5 give an array."""
    array = _Array()
    array._set(raw, shape, dtype, order)
    return array


def _latin1(text: str, encoding: str) -> bytes:
    """codecs.encode, by which Python 3 writes bytes at protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


_ALLOWED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Restricted(pickle._Unpickler):
    """The reader written in Python, in which a length that a damaged file states is not allocated before as many bytes
    are there: for a bytearray both standard readers take whatever the file says, gigabytes for one wrong byte.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def _bytearray(self: Any) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = _bytearray

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which was not run")
        return _ALLOWED[module, name]


def read_pickle(
    path: Path, handle: BinaryIO | None = None
) -> tuple[UInt8[np.ndarray, "rows 3 32 32"], Int64[np.ndarray, " rows"]]:
    """(images, labels) of one batch: a dict with data [N, 3072] of bytes and labels, a list of N whole numbers.

    Raises:
        ValueError: anything else, in one line.
    """
    try:
        raw = path.read_bytes() if handle is None else handle.read()
        batch = _Restricted(io.BytesIO(raw), encoding="bytes").load()
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        pixels, labels = batch["data"].pixels, batch["labels"]
        if pixels.ndim != 2 or pixels.shape[1] != 3072 or len(labels) != len(pixels) or not len(labels):
            raise ValueError(f"data of shape {list(pixels.shape)} with {len(labels)} labels")
        if not all(type(label) is int for label in labels):
            raise ValueError("labels that are not whole numbers")
    except _WRONG as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{path}: not a batch of CIFAR-10's python version ({reason}); {_GET}") from None
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)
