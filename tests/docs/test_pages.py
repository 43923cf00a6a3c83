"""README.md and docs/ as a reader follows them: links, every block of Python, every command."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest

from ggm_lightning.cli.main import main
from tests.docs.pages import FOLLOWED, MARKS, PAGES, ROOT, Block, blocks

DEBUG = ["--config", str(ROOT / "configs" / "trainer" / "debug.yaml")]
TINY = ["--model.network.init_args.feature_dim=8", "--model.network.init_args.num_layers=1"]
SMALL = ["--data.init_args.global_batch_size=4", "--data.init_args.eval_batch_size=4"]
# a run folder -> the experiment that makes it; what the pages call runs/first is trained by their own commands
RUNS = {
    "demo": "md4_demo",
    "digits": "md4_digits",
    "genmd4_demo": "genmd4_demo",
    "ar_demo": "ar_demo",
    "md4_sawtooth": "md4_sawtooth",
}
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)[^)]*\)|!\[[^\]]*\]\(([^)]+)\)")
_MAKE_TARGET = re.compile(r"^([\w-]+):", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link, picture in _LINK.findall(prose(ROOT / page)):
        name, _, anchor = (link or picture).partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        if not name.startswith(("http", "mailto:")):
            assert target.exists(), name
            if anchor and target.suffix == ".md":
                assert anchor in anchors(target), f"{name}#{anchor}"


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of the headings, as the site and GitHub name them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    named = re.findall(
        r"`((?:tests|experiments|configs|ggm_lightning|docs)/[\w/.]*\w)/?`", (ROOT / page).read_text("utf-8")
    )
    for name in named:
        assert (ROOT / name).exists(), name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES)
def test_marks_are_known(page: str) -> None:
    assert {block.mark for block in blocks(page)} <= {None, *MARKS}
    assert len(re.findall("<!-- needs:", (ROOT / page).read_text("utf-8"))) == sum(
        b.mark is not None for b in blocks(page)
    )


def test_every_page_is_in_the_site() -> None:
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [page for page in PAGES if page.startswith("docs/") and page.removeprefix("docs/") not in listed]
    assert missing == []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of two steps, as the pages' reader has them after the demos."""
    folder = tmp_path_factory.mktemp("reader")
    for name, experiment in RUNS.items():
        config = str(ROOT / "experiments" / f"{experiment}.yaml")
        quietly(["fit", "--config", config, *DEBUG, *SMALL, "--name", name], folder)
    (folder / "books").mkdir()
    (folder / "books" / "a.txt").write_text("All happy families are alike. " * 400)
    return folder


def quietly(words: list[str], folder: Path) -> str:
    """The command in this process and that folder; what it printed. Raises AssertionError with that where it failed."""
    home, printed = Path.cwd(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            main(words)
    except SystemExit as error:
        if error.code:
            raise AssertionError(f"{words}: {printed.getvalue()[-2000:]}") from None
    finally:
        os.chdir(home)
    return printed.getvalue()


def smaller(words: list[str]) -> list[str]:
    """The same command with few steps, rows and samples."""
    verb = words[0]
    if verb in ("fit", "validate", "predict"):
        at = max(i for i, word in enumerate(words) if word == "--config") + 2
        return [*words[:at], *DEBUG, *words[at:], *SMALL]
    if verb == "evaluate":
        drawn = ["--num_drawn", "4"] if "--measures" in words else []
        return [*words, "--limit", "4", *drawn]
    if verb == "sweep":
        return [*words, "--num_samples", "2", "--num_steps", "2", "4"]
    return words


def run(words: list[str], folder: Path) -> None:
    program, *rest = words
    if program == "make":
        targets = set(_MAKE_TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
        assert set(rest) <= targets, rest
    elif program == "lightning":
        quietly(smaller(rest), folder)
    elif program == "python":
        check_module(rest)
    else:
        assert program in (".venv/bin/python", "pip", "sbatch"), words
        for path in [word for word in rest if word.startswith("experiments/")]:
            assert (ROOT / path).exists(), path


def check_module(rest: list[str]) -> None:
    """python -m tests.benchmarks.heads ...: that there is such a module."""
    assert rest[0] == "-m"
    assert (ROOT / (rest[1].replace(".", "/") + ".py")).exists() or rest[1] == "pytest", rest


def parse(words: list[str], folder: Path) -> None:
    """Paths, flags and configuration of a command that cannot run here."""
    program, *rest = words
    if program != "lightning":
        run(words, folder)
        return
    for path in [word for word in rest if word.startswith(("experiments/", "configs/"))]:
        assert list(ROOT.glob(path)), path
    if rest[0] in ("fit", "validate", "predict"):
        quietly([*rest, "--print_config"], folder)
    else:
        known = quietly([rest[0], "--help"], folder)
        for flag in {word for word in rest if word.startswith("--") and "." not in word} - {
            "--config"
        }:  # of every verb
            assert flag in known, flag


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in FOLLOWED if any(block.kind == "sh" for block in blocks(page))])
def test_commands(page: str, place: Path, tmp_path: Path) -> None:
    if page == "README.md":  # whose commands make the run that they go on with
        place = tmp_path
    count = 0
    for block in blocks(page):
        named = re.match(r"# (\w+\.yaml)", block.text)
        if named and not (place / named[1]).exists():
            (place / named[1]).write_text(block.text, encoding="utf-8")
        if block.kind != "sh":
            continue
        for words in block.commands:
            (run if block.mark is None else parse)(words, place)
            count += 1
    assert count > 0


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in FOLLOWED if any(block.kind == "python" for block in blocks(page))])
def test_python(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, one after the other, in one space of names."""
    monkeypatch.chdir(place)
    space: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.kind == "python":
            exec(compile(block.text, page, "exec"), space)


def test_a_broken_block_is_noticed(tmp_path: Path) -> None:
    """The control of this file."""
    with pytest.raises(AssertionError):
        run(["make", "no-such-target"], tmp_path)
    with pytest.raises(AssertionError):
        parse(["lightning", "fit", "--config", "experiments/no_such.yaml"], tmp_path)
    assert Block("sh", "lightning sample --x 1  # why\n", None).commands == [["lightning", "sample", "--x", "1"]]
