"""`lightning report`: the page of a run from its folder, or a page that compares several."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser


def run(args: list[str]) -> None:
    """Parses the command's arguments."""
    if not args:
        raise ValueError("report needs a run's folder, as in `lightning report runs/demo [runs/other ...]`")
    parser = ArgumentParser(
        prog="lightning report",
        description="Write the page of a run from what lies in its folder; of several runs one that compares them.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("folders", type=str, nargs="+", help="of runs, such as runs/demo")
    parser.add_argument("--out", type=str, default=None, help="the file; default: in or beside the first folder")
    given = parser.parse_args(args)
    print(report([Path(folder) for folder in given.folders], Path(given.out) if given.out else None))


def report(folders: list[Path], out: Path | None = None) -> str:
    """Writes the page and says where. A page of this command is replaced; any other file stays, and the page goes to
    the first free name beside it.

    Raises:
        ValueError: a folder holds no run, one is named twice, or --out is a file that this command has not written.
    """
    from ggm_lightning.report.comparison import default_path, write_comparison
    from ggm_lightning.report.page import write_run_page, written_here
    from ggm_lightning.report.story import read_run

    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"report: {', '.join(map(str, folders))}: a folder is named twice; name each once")
    for folder in folders:
        read_run(folder)
    default = default_path(folders) if len(folders) > 1 else folders[0] / "report.html"
    path = out or default
    if not written_here(path):
        if out is not None:
            raise ValueError(f"--out {out}: is there already, and no page of this command; name another file")
        path = next(place for place in _numbered(path) if written_here(place))
    if len(folders) > 1:
        write_comparison(folders, path)
    else:
        write_run_page(folders[0], path)
    return f"written: {path}"


def _numbered(path: Path) -> list[Path]:
    return [path.with_stem(f"{path.stem}-{i}") for i in range(2, 1000)]
