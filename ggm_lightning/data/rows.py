"""Datasets that hand out a whole batch at once: `rows[[3, 1, 4]]` is a dict of stacked tensors.

A loader over these takes lists of indices from data/order.py and collates nothing, so a batch costs one gather and
not one Python call per row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int64, Integer
from torch import Tensor, nn
from torch.utils.data import Dataset

from ggm_lightning.data.order import Dealt

_CHUNK = 2**22  # ids looked at together when a split is checked: bounded memory, few Python calls


class BadData(ValueError):
    """What is wrong with the data, in one line; to be raised by what loader workers call.

    torch raises a worker's error again as a new one of the same class, made from the text of the worker's whole
    traceback. Of that text this class keeps the last line, which is the message.
    """

    def __init__(self, message: str) -> None:
        own = f"{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(message.rstrip().rsplit("\n", 1)[-1].removeprefix(own))


class RowSource(Dataset, ABC):
    """Rows by number. A subclass gives `__len__`, `fetch(indices)` and, for what is stored, `storage()`, `labels()`."""

    first = 0  # the number that row 0 has in its file, for messages

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def fetch(self, index: np.ndarray) -> dict[str, Tensor]:
        """{"x": Int64[b, *s], optional "label": Int64[b]} for the rows in `index`."""

    def storage(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, ids as stored) of everything worth checking before training starts; by default nothing."""
        return iter(())

    def labels(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, labels as stored), to be checked in the same way; by default nothing."""
        return iter(())

    def check_model(self, model: nn.Module) -> None:
        """ValueError if these rows are not for that model; most rows are for any."""

    def __getitem__(self, index: int | Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        wanted = np.asarray(index, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()}..{wanted.max()} asked for, but there are {len(self)}")
        batch = self.fetch(wanted.reshape(-1))
        return batch if wanted.ndim else {key: value[0] for key, value in batch.items()}


class Numbered(Dataset):
    """What a loader reads: the rows of a batch and, as `row` Int64[b], the numbers that the order gave to them."""

    def __init__(self, rows: RowSource) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, dealt: Dealt) -> dict[str, Tensor]:
        return {**self.rows[dealt], "row": torch.tensor(dealt.row, dtype=torch.int64)}


def ids_of(
    stored: Integer[np.ndarray, " b *s"], turned: Bool[np.ndarray, " b"] | None = None
) -> Int64[Tensor, " b *s"]:
    """What was gathered from storage, as a batch has it; rows in `turned` with left and right exchanged.

    That is done in `stored`, in place, while a pixel is still one byte: four times faster than on int64.
    """
    if turned is not None:
        stored[turned] = stored[turned][..., ::-1]
    return torch.from_numpy(stored.astype(np.int64))


class Rows(RowSource):
    """Rows of an array [N, *s] of integers, in memory or memory-mapped, with optional labels [N]."""

    def __init__(
        self,
        x: Integer[np.ndarray, " rows *s"],
        label: Integer[np.ndarray, " rows"] | None = None,
        *,
        name: str = "array",
        first: int = 0,
        label_name: str | None = None,
    ) -> None:
        """`name` (and `label_name`, where labels have a file of their own) is said in errors; `first` is the number
        that row 0 has in the file (a split's start).
        """
        if label is not None and len(label) != len(x):
            raise ValueError(f"{name}: {len(x)} rows but {len(label)} labels; give one label per row")
        self.x, self.label, self.name, self.first = x, label, name, first
        self.label_name = label_name or name

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, index: np.ndarray, turned: Bool[np.ndarray, " b"] | None = None) -> dict[str, Tensor]:
        batch = {"x": ids_of(np.asarray(self.x[index]), turned)}
        if self.label is not None:
            batch["label"] = torch.from_numpy(np.asarray(self.label[index]).astype(np.int64))
        return batch

    def storage(self) -> Iterator[tuple[str, np.ndarray]]:
        yield self.name, self.x

    def labels(self) -> Iterator[tuple[str, np.ndarray]]:
        if self.label is not None:
            yield self.label_name, self.label


def check_ids(rows: RowSource, num_classes: int, split: str) -> None:
    """Raise ValueError naming file, split and position of the first id outside 0..num_classes-1."""
    remedy = "fix the data or set num_classes to more than the largest id"
    for name, array in rows.storage():
        _check_range(f"{name} ({split} split)", "id", array, num_classes, rows.first, remedy)


def check_labels(rows: RowSource, num_labels: int, split: str) -> None:
    """Raise ValueError naming file, split and position of the first label outside 0..num_labels-1."""
    remedy = "fix the labels or set num_labels to more than the largest one"
    for name, array in rows.labels():
        _check_range(f"{name} ({split} split)", "label", array, num_labels, rows.first, remedy)


def _check_range(where: str, what: str, array: np.ndarray, limit: int, first: int, remedy: str) -> None:
    if array.dtype.kind not in "iu":  # a comparison would let NaN pass and a cast would cut 2.7 down to 2
        raise ValueError(f"{where}: {what}s of dtype {array.dtype}, not integers; store whole numbers")
    step = max(1, _CHUNK // max(1, int(np.prod(array.shape[1:]))))
    for start in range(0, len(array), step):
        chunk = np.asarray(array[start : start + step])
        if chunk.size == 0 or (chunk.min() >= 0 and chunk.max() < limit):
            continue
        at = np.argwhere((chunk < 0) | (chunk >= limit))[0]
        place = [first + start + int(at[0]), *(int(i) for i in at[1:])]
        raise ValueError(
            f"{where}: {what} {int(chunk[tuple(at)])} at position {place if len(place) > 1 else place[0]} is outside "
            f"0..{limit - 1}; {remedy}"
        )
