"""Which files of a folder are its pictures: all below it, linked ones too, each once; no hidden ones; the rest counted.

Left out are names that begin with a dot (`._a.png` of macOS, `.ipynb_checkpoints`), and the folders in which systems
keep previews and remains (`__MACOSX`, `@eaDir`, ..). A link to a folder is followed once and its files are read under
the link's name; what is reached twice, or in a circle, is read once, under the name that is no link.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ggm_lightning.data.picture_bytes import SUFFIXES
from ggm_lightning.data.rows import BadData

_SYSTEM = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"}
_NAMED = 5  # endings that are named of files of other kinds


def hidden(name: str) -> bool:
    """Whether a path below the folder (or in an archive) is hidden or of the system: one of its parts is."""
    parts = PurePosixPath(name).parts
    return any(
        part.lower() in _SYSTEM or part.lower() in _SYSTEM_FILES or (part.startswith(".") and part not in (".", ".."))
        for part in parts
    )


class Found(NamedTuple):
    """Pictures below a folder.

    Attributes:
        names: paths below it, with slashes, sorted.
        note: what was left out, in words; empty where nothing was.
    """

    names: list[str]
    note: str


def note_of(hidden_pictures: int, again: int, others: Iterable[str]) -> str:
    """What was left out: so many hidden pictures, so many links to what is read already, and files of other kinds."""
    parts = []
    if hidden_pictures:
        parts.append(f"{hidden_pictures:,} hidden picture(s)")
    if again:
        parts.append(f"{again:,} link(s) to what is read already")
    endings = Counter(os.path.splitext(name)[1].lower() or "no ending" for name in others)
    if endings:
        named = [
            f"{count:,} of {ending}" for ending, count in sorted(endings.items(), key=lambda one: -one[1])[:_NAMED]
        ]
        more = ", .." if len(endings) > _NAMED else ""
        parts.append(f"{endings.total():,} file(s) of kinds that are not read ({', '.join(named)}{more})")
    return ", ".join(parts)


class _Walk:
    """A folder and all below it: first what really lies there, then what links lead to."""

    def __init__(self, folder: Path, endings: tuple[str, ...]) -> None:
        self.folder, self.endings = folder, endings
        self.names: list[str] = []
        self.others: list[str] = []
        self.hidden = self.again = 0
        self.links: list[str] = []
        files: list[str] = []
        self.seen: set[str] = set()  # real paths of folders, and of files that links lead to
        self._below("")
        while self.links:  # which may lead to folders with more of them
            waiting, self.links = sorted(self.links), []
            for name in waiting:
                if os.path.isdir(folder / name):
                    self._below(name)
                else:
                    files.append(name)
        for name in files:
            self._file_behind(name)

    def _below(self, start: str) -> None:
        waiting = [start]
        while waiting:
            inside = waiting.pop()
            real = os.path.realpath(self.folder / inside)
            if real in self.seen:
                self.again += 1
                continue
            self.seen.add(real)
            waiting += self._entries(inside)

    def _entries(self, inside: str) -> list[str]:
        """Takes the files of one folder; returns the folders in it."""
        try:
            with os.scandir(self.folder / inside) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise BadData(f"{self.folder / inside}: cannot be read ({error.strerror}); get it again") from None
        folders = []
        for entry in found:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if hidden(entry.name):
                self.hidden += self._is_picture(name)
            elif entry.is_symlink():
                self.links.append(name)
            elif entry.is_dir():
                folders.append(name)
            else:
                self._take(name)
        return folders

    def _is_picture(self, name: str) -> bool:
        return name.lower().endswith(self.endings)

    def _take(self, name: str) -> None:
        (self.names if self._is_picture(name) else self.others).append(name)

    def _file_behind(self, name: str) -> None:
        """Takes the file that a link leads to, unless it was taken by another name."""
        real = os.path.realpath(self.folder / name)
        if not os.path.isfile(real):
            if self._is_picture(name):
                raise BadData(f"{self.folder / name}: a link that leads nowhere; get the picture, or delete the link")
            return
        in_walked_folder = os.path.dirname(real) in self.seen and not hidden(os.path.basename(real))
        if real in self.seen or (in_walked_folder and self._is_picture(real)):
            self.again += self._is_picture(name)
            return
        self.seen.add(real)
        self._take(name)


def find_pictures(folder: Path, endings: tuple[str, ...] = SUFFIXES) -> Found:
    """The pictures of a folder, see above.

    Raises:
        ValueError: a folder that may not be read, or a link that leads nowhere.
    """
    walk = _Walk(folder, endings)
    return Found(sorted(walk.names), note_of(walk.hidden, walk.again, walk.others))
