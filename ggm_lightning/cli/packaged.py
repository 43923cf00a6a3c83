"""Experiments and their pieces by path or by name: of the working folder, else those that come with the package.

md4_demo                     experiments/md4_demo.yaml
experiments/md4_demo.yaml    the same
text8                        configs/data/text8.yaml, as no experiment has that name
"""

from __future__ import annotations

import difflib
from pathlib import Path

_FOLDERS = ("experiments", "configs")
_PATTERNS = ("experiments/*.yaml", "experiments/slurm/*.sbatch", "configs/*/*.yaml")
_DATA = "configs/data"


def root() -> Path:
    """The folder that holds experiments/ and configs/: the installed package, or the checkout that it lies in."""
    package = Path(__file__).parents[1]
    return package if (package / "experiments").is_dir() else package.parent


def names() -> list[str]:
    """Every file that comes with the package, as a path below `root()`: experiments, scripts for SLURM, pieces."""
    return [path for pattern in _PATTERNS for path in _below(root(), pattern)]


def _below(folder: Path, pattern: str) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.glob(pattern))


def find(given: str) -> Path:
    """The file that a path or a name means. Each path that a name may stand for is looked for in the working folder
    first, then in the package.

    Raises:
        FileNotFoundError: it is nowhere; with all the places, and what may have been meant.
    """
    for path in _meanings(given):
        if Path(path).is_file():
            return Path(path)
        if _of_package(path):
            return root() / path
    raise FileNotFoundError(
        f"no such file; looked for {', '.join(_meanings(given))} in the working folder {Path.cwd().name}/ and among "
        f"the package's experiments/ and configs/{_guess(given)}"
    )


def find_included(given: str, file: Path) -> Path:
    """The file that `include: [given]` means in `file`: beside that file, else in the package. The working folder does
    not matter: an experiment means the same wherever it is run.

    Raises:
        FileNotFoundError: it is nowhere.
    """
    beside = file.parent / given
    if beside.is_file():
        return beside
    for path in _meanings(given):
        if _of_package(path):
            return root() / path
    raise FileNotFoundError(
        f"include {given}: no such file; looked for {beside} and among the package's experiments/ and configs/"
        f"{_guess(given)}"
    )


def find_packaged(given: str) -> str:
    """The package's file of that path or name, below `root()`, whatever lies in the working folder.

    Raises:
        FileNotFoundError: the package has none.
    """
    for path in _meanings(given):
        if _of_package(path):
            return path
    raise FileNotFoundError(f"{given}: the package has no such file{_guess(given)}")


def find_data(given: str) -> str:
    """`text8` as configs/data/text8.yaml, where no file is called so; anything else as it is."""
    path = f"{_DATA}/{Path(given).stem}.yaml"
    if Path(given).is_file() or not _is_name(given):
        return given
    return path if Path(path).is_file() or _of_package(path) else given


def expand(given: str) -> list[str]:
    """configs/data/zeroshot_*.yaml as the files of that pattern, which no shell finds outside a checkout."""
    if not any(sign in given for sign in "*?[") or Path(given).is_absolute() or Path(given).is_file():
        return [given]
    here = _below(Path(), given)
    theirs = [path for path in _below(root(), given) if _of_package(path)]
    return here or theirs or [given]


def note(given: str, file: Path) -> str | None:
    """What to say where a name was found in the working folder and the package has another file of that name."""
    path = file.as_posix()
    if path == Path(given).as_posix() or not _of_package(path) or file.samefile(root() / path):
        return None
    return f"{given}: {path} of the working folder is taken, not the package's"


def _is_name(given: str) -> bool:
    """No folder in it: `md4_demo` or `md4_demo.yaml`."""
    return bool(given) and Path(given).name == given


def _meanings(given: str) -> list[str]:
    """The paths that a path or a name may stand for, the first that exists is meant."""
    path = Path(given).as_posix()
    if path.endswith((".yaml", ".yml", ".sbatch", ".")) or not given:
        readings = [path]
    else:
        readings = [path, f"{path}.yaml"]
    if _is_name(given):
        readings += [f"experiments/{readings[-1]}", f"{_DATA}/{readings[-1]}"]
    return readings


def _of_package(path: str) -> bool:
    """Whether it is one of the package's own files: below its two folders and not beside them."""
    parts = Path(path).parts
    return parts[:1] in [(folder,) for folder in _FOLDERS] and ".." not in parts and (root() / path).is_file()


def _guess(given: str) -> str:
    known = [*names(), *(path for pattern in ("*.yaml", *_PATTERNS) for path in _below(Path(), pattern))]
    if _is_name(given) and not given.endswith(".yaml"):
        known = [Path(path).stem for path in known if not path.startswith("configs") or path.startswith(_DATA)]
    close = difflib.get_close_matches(Path(given).as_posix(), known, n=1)
    return f"; did you mean '{close[0]}'?" if close else "; `lightning list` shows what there is"
