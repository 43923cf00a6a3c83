"""Applies one mutant at a time to a copy of the tree and asks its test whether it notices."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import yaml

from tests.mutants import warm

PACKAGE = "ggm_lightning"
COPIED = (PACKAGE, "tests", "configs", "experiments", "pyproject.toml", "README.md", "Makefile", "docs", "mkdocs.yml")
LIMIT = 300  # seconds of one test
# what the tests import and the package does not own
PRELOAD = (
    *("torch", "lightning.pytorch", "torchmetrics", "jsonargparse", "scipy.stats"),
    *("jaxtyping", "beartype", "hypothesis", "pytest"),
)
# a mutant that does not even run tells nothing of the test that it was given to
NO_CODE = {"SyntaxError", "IndentationError", "ImportError", "ModuleNotFoundError", "NameError", "UnboundLocalError"}

PASSED, FAILED, BROKEN, HUNG = "passed", "failed", "broken", "hung"
VERDICTS = {PASSED: "SURVIVED", FAILED: "killed", BROKEN: "BROKEN", HUNG: "HUNG"}


@dataclass(frozen=True)
class Mutant:
    """One change of one line.

    Attributes:
        name: what the change does, short and unique.
        file: the changed file, below the package.
        old, new: the text that is replaced; old stands there exactly once.
        test: what must fail: a node id of pytest, or a file, with options (-k) if need be.
    """

    name: str
    file: str
    old: str
    new: str
    test: str

    def apply(self, tree: Path) -> None:
        path = tree / PACKAGE / self.file
        path.write_text(path.read_text(encoding="utf-8").replace(self.old, self.new), encoding="utf-8")


@dataclass(frozen=True)
class Result:
    """verdict: one of VERDICTS' values. said: the exception, where there is one."""

    mutant: Mutant
    verdict: str
    seconds: float
    said: str = ""


def load(files: Iterable[Path]) -> list[Mutant]:
    """Every mutant of the YAML files, in their order."""
    return [Mutant(**entry) for file in files for entry in yaml.safe_load(file.read_text(encoding="utf-8"))]


def check(mutants: list[Mutant], root: Path) -> None:
    """Raises ValueError with a line for each mutant that does not fit the tree."""
    wrong = [f"{mutant.name}: {problem}" for mutant in mutants for problem in _problems(mutant, root)]
    names = [mutant.name for mutant in mutants]
    wrong += [f"{name}: the name is taken twice" for name in sorted({name for name in names if names.count(name) > 1})]
    if wrong:
        raise ValueError("\n".join(wrong))


def _problems(mutant: Mutant, root: Path) -> Iterable[str]:
    path = root / PACKAGE / mutant.file
    if not path.is_file():
        yield f"stale, there is no file {PACKAGE}/{mutant.file}"
        return
    count = path.read_text(encoding="utf-8").count(mutant.old)
    if count != 1:
        yield f"stale, {mutant.old!r} stands {count} times in {PACKAGE}/{mutant.file}; it must stand there once"
    if mutant.old == mutant.new or "\n" in mutant.old + mutant.new:
        yield "it must change something, within one line"
    test = shlex.split(mutant.test)[0].split("::")[0]
    if not (root / test).is_file():
        yield f"stale, there is no test {test}"


def copied(root: Path, tree: Path) -> None:
    """The package, its tests and what they read."""
    for name in COPIED:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, tree / name)


class Warm:
    """The process of warm.py, which runs one test after the other, each in a copy of `root`."""

    def __init__(self, root: Path, preload: tuple[str, ...]) -> None:
        self.root = root
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", "PYTHONPATH")
        }
        # no bytecode: two mutants of one file have the same size and may be written within the same second
        environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        environment.setdefault("GGM_DATA", str(root.parent / "shared" / "data"))
        command = [sys.executable, str(Path(__file__).with_name("warm.py")), *preload]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload]

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def status(self, tree: Path, test: str) -> int:
        """Pytest's exit status of a test in the tree."""
        arguments = [*shlex.split(test), "-x", "-q", "-p", "no:cacheprovider", "--junitxml", "report.xml"]
        request = {"tree": str(tree.resolve()), "arguments": arguments, "limit": LIMIT}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise ValueError("the process that runs the tests has ended; what it said stands above")
        return int(answer)

    def outcome(self, test: str, mutant: Mutant | None = None) -> tuple[str, str, float]:
        """(PASSED, FAILED, BROKEN or HUNG, what was raised, seconds) of a test in a fresh copy of the tree."""
        with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
            tree = Path(folder)
            copied(self.root, tree)
            if mutant is not None:
                mutant.apply(tree)
            start = time.monotonic()
            status = self.status(tree, test)
            verdict, said = _judged(status, tree)
            return verdict, said, time.monotonic() - start


def _judged(status: int, tree: Path) -> tuple[str, str]:
    if status == 0:
        return PASSED, ""
    if status == -signal.SIGALRM:
        return HUNG, f"longer than {LIMIT} s"
    if status == warm.ELSEWHERE:
        raise ValueError(f"{PACKAGE} would not be imported from the copy {tree}; nothing could be killed")
    if status != 1:  # interrupted while collecting, no such test, killed
        last = (tree / "output.txt").read_text(errors="replace").strip().splitlines()[-1:]
        return BROKEN, f"pytest left with {status}: {' '.join(last)}"
    said = _raised(tree / "report.xml")
    return (BROKEN if _exception(said) in NO_CODE else FAILED), said


def _raised(report: Path) -> str:
    """The first failure's message, one line."""
    for kind in ("failure", "error"):
        for element in ElementTree.parse(report).iter(kind):
            return " ".join(element.get("message", "").split())
    return ""


def _exception(said: str) -> str:
    """Its class: 'NameError' of 'NameError: name ...' or of 'failed on setup with "NameError: ..."'."""
    match = re.match(r'(?:failed on \w+ with ")?([\w.]+)', said)
    return match[1].split(".")[-1] if match else ""


def judge(
    mutants: list[Mutant], root: Path, say: Callable[[str], None], preload: tuple[str, ...] = PRELOAD
) -> list[Result]:
    """Each mutant before its test; a test is first asked whether it passes without one.

    Raises ValueError for mutants that do not fit the tree, and for a test that fails by itself.
    """
    check(mutants, root)
    progress = Progress(len(mutants) + len({mutant.test for mutant in mutants}), say)
    asked: set[str] = set()
    results: list[Result] = []
    with Warm(root, preload) as tests:
        for mutant in mutants:
            if mutant.test not in asked:
                seconds = _by_itself(tests, mutant.test)
                asked.add(mutant.test)
                progress.add(f"{mutant.test} passes by itself ({seconds:.1f} s)")
            verdict, said, seconds = tests.outcome(mutant.test, mutant)
            results.append(Result(mutant, VERDICTS[verdict], seconds, said))
            progress.add(f"{mutant.name}: {VERDICTS[verdict]} ({seconds:.1f} s)")
    return results


def _by_itself(tests: Warm, test: str) -> float:
    """Seconds of a test that passes without a mutant."""
    verdict, said, seconds = tests.outcome(test)
    if verdict != PASSED:
        raise ValueError(f"{test} does not pass without a mutant ({verdict}: {said}); mend it first")
    return seconds


class Progress:
    """A line for each of `total` runs, with the time left."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total, self.say = total, say
        self.done, self.start = 0, time.monotonic()

    def add(self, what: str) -> None:
        self.done += 1
        left = int((time.monotonic() - self.start) / self.done * (self.total - self.done))
        self.say(f"[{self.done:3d}/{self.total}] {what}, {left // 60} min {left % 60} s left")


def table(results: list[Result]) -> str:
    """Mutant, where, test, verdict, seconds; and what was said of those that were not killed."""
    rows = [("mutant", "in", "test", "", "s")]
    rows += [(r.mutant.name, r.mutant.file, r.mutant.test, r.verdict, f"{r.seconds:.1f}") for r in results]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{r.mutant.name}: {r.said}" for r in results if r.verdict != "killed" and r.said]
    killed = sum(r.verdict == "killed" for r in results)
    return "\n".join([*lines, f"{killed} of {len(results)} mutants killed"])
