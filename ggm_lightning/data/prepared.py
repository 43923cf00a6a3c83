"""Data that is made once into a folder: by one process at a time, kept while it fits, made again when it does not."""

from __future__ import annotations

import shutil
import sys
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from ggm_lightning.codecs.codec import dict_hash
from ggm_lightning.data import header
from ggm_lightning.data.base import DiscreteData
from ggm_lightning.rundir.lock import FolderLock

Identity = list[dict[str, Any]]  # plain JSON that tells the source files from any others


@contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """One process at a time prepares a folder, of all machines that share it: two runs started together must not write
    over each other. The second says whom it waits for."""
    Path(folder).mkdir(parents=True, exist_ok=True)

    def say(holder: str) -> None:
        # of any rank: on a second node that shares the folder it is the only sign of life
        print(f"{folder}: being prepared by {holder}; waiting until it is done", file=sys.stderr, flush=True)

    lock = FolderLock(folder)
    lock.wait(say)
    try:
        yield
    finally:
        lock.release()


class PreparedData(DiscreteData):
    """What `prepare_data` is to every data set with a folder of its own: a header there says how and from what its
    files were made (data/header.py)."""

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What the folder's files depend on besides the codec and the source files' contents."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where the files are."""

    @abstractmethod
    def open_source(self) -> tuple[Identity, Any]:
        """(what identifies the source files, what `build` needs of them). FileNotFoundError: they are not there."""

    @abstractmethod
    def build(self, source: Identity, opened: Any) -> str:
        """Write the folder's files; a note about them for the line that is printed, or nothing."""

    @abstractmethod
    def describe(self) -> str:
        """Counts of what the folder holds."""

    @property
    def expected_tokenizer(self) -> str | None:
        """The hash of the tokenizer that the folder's files must be of; None where it is made with them."""
        return self.codec.tokenizer_hash

    def staleness(self, source: Identity | None) -> str | None:
        """Why the folder's files cannot be kept, or None. `source` None: its files are gone and cannot be compared."""
        return header.staleness(
            self.folder, options=self.options, source=source, tokenizer_hash=self.expected_tokenizer
        )

    def unprepared(self) -> str | None:
        """See DiscreteData.unprepared."""
        try:
            source, _ = self.open_source()
        except FileNotFoundError:
            if self.staleness(None) is not None:
                raise
            return None
        return self.staleness(source)

    def refuse_other_owner(self) -> None:
        """ValueError if the folder holds finished data that were made in another way: they are never overwritten."""
        other = header.other_owner(self.folder, options=self.options, tokenizer_hash=self.expected_tokenizer)
        if other is not None:
            raise ValueError(
                f"{self.folder}: holds data {other}, which are left as they are; give data.folder another name, or "
                "delete that folder"
            )

    def prepare_data(self) -> None:
        """Make the folder's files, unless those there were made of the same source files in the same way; once they
        are there the source files may go. Files that were made in another way are refused, not replaced."""
        with folder_lock(self.folder):
            self.refuse_other_owner()
            try:
                source, opened = self.open_source()
            except FileNotFoundError:
                if self.staleness(None) is not None:
                    raise
                rank_zero_info(f"{self.folder}: kept, though the files it was made from are gone ({self.describe()})")
                return
            reason = self.staleness(source)
            if reason is None:
                rank_zero_info(f"{self.folder}: kept ({self.describe()})")
                return
            rank_zero_info(f"{self.folder}: prepared by this process ({reason}); any others of this node wait for it")
            note = self.build(source, opened)
        rank_zero_info(f"{self.folder}: built ({reason}): {self.describe()}{note}")

    def contents(self) -> str | None:
        """Of the source files, as they were when they were prepared."""
        if self._contents is None:
            self._contents = dict_hash(header.read_header(self.folder)["source"])
        return self._contents

    def check_room(self, needed: int) -> None:
        """ValueError unless the folder's disk has so many bytes free: now rather than after an hour of writing."""
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise ValueError(
                f"{self.folder}: {needed / 1e9:.1f} GB are needed there, {free / 1e9:.1f} GB are free; make room or "
                f"set data.folder to another disk"
            )
