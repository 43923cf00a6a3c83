"""`lightning list`: the experiments and data sets that come with the package."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from jsonargparse import ArgumentParser

from ggm_lightning.cli import config as config_files
from ggm_lightning.cli import packaged

_WIDTH = 88  # of what a file says about itself


def run(args: list[str]) -> None:
    """Prints a table of each kind; nothing of it needs torch."""
    parser = ArgumentParser(
        prog="lightning list",
        description="Experiments and data sets that come with this package.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.parse_args(args)
    files = packaged.names()
    experiments = [file for file in files if file.startswith("experiments/") and file.endswith(".yaml")]
    print("experiments: lightning fit --config NAME")
    _print_table("model", {file: Path(file).stem for file in experiments})
    # an experiment's name means the experiment: a data set of the same name is called by its path
    names = {file: Path(file).stem for file in files if file.startswith("configs/data/")}
    taken = {Path(file).stem for file in experiments}
    print("\ndata sets: lightning prepare --config NAME")
    _print_table("data", {file: file if name in taken else name for file, name in names.items()})
    scripts = [file for file in files if file.endswith(".sbatch")]
    if scripts:
        print("\nscripts for SLURM: lightning copy NAME")
        print("\n".join(f"  {file}" for file in scripts))
    print("\n`lightning copy NAME` makes it a file of your own.")


def _print_table(section: str, names: dict[str, str]) -> None:
    """A line for each file: its name, the class of its model or data, and what it says first."""
    lines = []
    for file, name in names.items():
        class_path = config_files.load_file(str(packaged.root() / file))[section]["class_path"]
        lines.append((name, class_path.rpartition(".")[2], first_words(packaged.root() / file)))
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    for name, kind, words in lines:
        print(f"  {name:<{widths[0]}}  {kind:<{widths[1]}}  {words}")


def first_words(file: Path) -> str:
    """The first sentence of a file's comment, cut where it is long."""
    comment = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    sentence = re.split(r"\. (?=[A-Z])", " ".join(comment))[0]
    return textwrap.shorten(sentence.removesuffix("."), _WIDTH, placeholder=" ...", break_on_hyphens=False)
