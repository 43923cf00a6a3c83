"""Which files of a folder are its pictures: linked ones once, hidden ones never, the others counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ggm_lightning.data.picture_folders import find_pictures, hidden


def put(place: Path, *names: str) -> None:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(name.encode())


def test_hidden_and_system_files_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "b/a.png", "c.JPG", "d.webp", ".DS_Store", "Thumbs.db", "desktop.ini", "b/._a.png", ".e.png")
    put(tmp_path, "__MACOSX/._c.JPG", "__MACOSX/c.png", ".ipynb_checkpoints/c-checkpoint.png", "b/@eaDir/a.png")
    found = find_pictures(tmp_path)
    assert found.names == ["b/a.png", "c.JPG", "d.webp"]
    assert found.note == "2 hidden picture(s)"  # beside whole folders of them
    assert hidden("x/__MACOSX/y.png")
    assert hidden("./x/._y.png")
    assert not hidden("./x/y._z.png")
    below = tmp_path / ".hidden"  # the user's own choice
    put(below, "a.png")
    assert find_pictures(below).names == ["a.png"]


def test_other_kinds_are_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.heic", "c/d.HEIC", "e.txt", "f")
    assert find_pictures(tmp_path).note == (
        "4 file(s) of kinds that are not read (2 of .heic, 1 of .txt, 1 of no ending)"
    )
    assert find_pictures(tmp_path, (".txt",)).names == ["e.txt"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    put(here, "a/1.png", "b/2.png")
    put(there, "3.png", "deep/4.png")
    (there / "back").symlink_to(here)
    (here / "loop").symlink_to(here)
    (here / "a" / "up").symlink_to("..")
    (here / "0_first").symlink_to(there)
    (here / "1_again").symlink_to(there)
    (here / "0.png").symlink_to(here / "a" / "1.png")
    (here / "5.png").symlink_to(there / "3.png")
    found = find_pictures(here)
    assert found.names == ["0_first/3.png", "0_first/deep/4.png", "a/1.png", "b/2.png"]
    assert found.note == "6 link(s) to what is read already"
    assert len({os.path.realpath(here / name) for name in found.names}) == 4
    (tmp_path / "whole").symlink_to(here)
    assert find_pictures(tmp_path / "whole").names == found.names


def test_links_to_files_elsewhere(tmp_path: Path) -> None:
    """As git-annex and caches lay them: contents under other names, in hidden folders too. Two links, one picture."""
    here = tmp_path / "here"
    put(here, ".store/x7", ".store/z.png")
    (here / "a.png").symlink_to(".store/x7")
    (here / "b.png").symlink_to(".store/z.png")
    (here / "c.png").symlink_to(here / ".store" / "z.png")
    assert find_pictures(here).names == ["a.png", "b.png"]
    (here / ".store" / "x7").unlink()
    with pytest.raises(ValueError, match=r"here/a.png: a link that leads nowhere; get the picture"):
        find_pictures(here)
