"""Where the results of a command go: a folder named by its settings, so that no result takes the place of another.

    runs/demo/samples-step1600-ancestral-256steps-temp1-seed0-n8/   samples.npz, samples.txt, trace.html, settings.json

settings.json is written last: a folder that has it is complete. The same command again finds it and says so; finished
batches of a command that was stopped lie in the hidden folder .parts until then, and are gone on with.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggm_lightning.cli import ranks
from ggm_lightning.cli.parts import Parts
from ggm_lightning.rundir.folder import refuse_unwritable_results, write_whole
from ggm_lightning.rundir.terminal import visible

FORMAT = 1  # of settings.json and of what lies beside it; before there was none
SETTINGS = "settings.json"
_PARTS = ".parts"


def folder_name(command: str, step: int | None, *settings: tuple[str, Any, str]) -> str:
    """'samples-step1600-ancestral-256steps-seed0' from (before, value, after) triples; values of None are left out."""
    words = [command, "step" + ("unknown" if step is None else str(step))]
    words += [f"{before}{_word(value)}{after}" for before, value, after in settings if value is not None]
    return "-".join(words)


def _word(value: Any) -> str:
    """As it may stand in the name of a file."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+]", "_", text).strip(".") or "_"


@dataclass(frozen=True)
class Results:
    """The folder of one command's results.

    Attributes:
        folder: where they are, or will be.
        settings: all that they depend on, as plain JSON.
        done: whether they are there already.
    """

    folder: Path
    settings: dict[str, Any]
    done: bool

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A new folder for the files, which appear in `folder` together when the block ends without an error."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=self.folder) as temporary:
            place = Path(temporary)
            yield place
            (self.folder / SETTINGS).unlink(missing_ok=True)  # --again: incomplete until all files are replaced
            for file in sorted(place.iterdir()):
                os.replace(file, self.folder / file.name)
            text = json.dumps({"format": FORMAT, **self.settings}, indent=1)
            write_whole(self.folder / SETTINGS, f"{text}\n".encode())
        self.parts.remove()

    @property
    def parts(self) -> Parts:
        """Of rows that are finished, kept until all are."""
        return Parts(self.folder / _PARTS, json.dumps({"format": FORMAT, **self.settings}, sort_keys=True))


def place(parent: Path, name: str, settings: dict[str, Any], out: str | None, again: bool) -> Results:
    """The folder for these settings: --out, or `name` below `parent`.

    It is checked now, before anything is computed, that it can be written and holds nothing else.

    Raises:
        ValueError: --out holds other results, or files that are no results. OSError: it cannot be written.
    """
    plain = _given(json.loads(json.dumps(settings)))
    if out is not None:
        folder = Path(out)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out {out}: a file is there; name a folder for the results")
        _refuse_occupied(folder, plain, out)
    else:
        folder = parent / name
        if _settings_of(folder) not in (None, plain) or (_settings_of(folder) is None and _occupied(folder)):
            # equal names of unequal results: of a model that was trained anew, above all
            folder = parent / f"{name}-{settings['checkpoint_identity'][:8]}"
            _refuse_occupied(folder, plain, str(folder))
    results = Results(folder, plain, done=_settings_of(folder) == plain and not again)
    if not results.done and ranks.current().is_first:
        refuse_unwritable_results(folder)
    if again and ranks.current().is_first:
        results.parts.remove()  # what a stopped command left is done again, too
    return results


def _occupied(folder: Path) -> bool:
    return folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir())


def _refuse_occupied(folder: Path, settings: dict[str, Any], out: str) -> None:
    found = _settings_of(folder)
    if found is None and _occupied(folder):
        raise ValueError(f"--out {out}: holds files that are no results of this command; name a new folder")
    if found is not None and found != settings:
        keys = [key for key in sorted({*found, *settings}) if found.get(key) != settings.get(key)]
        other = "; ".join(f"{key} is {settings.get(key)}, there {found.get(key)}" for key in keys[:3])
        raise ValueError(f"--out {out}: holds other results ({other}); name a new folder")


def _settings_of(folder: Path) -> dict[str, Any] | None:
    """Of a complete folder, without their format; None where there are none."""
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        return None
    return _given(found)


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what is None: an option that nobody gave, and may have been unknown when the results were written."""
    return {name: value for name, value in settings.items() if value is not None}


def said(results: Results) -> str:
    """The line of a command whose results are there already."""
    files = ", ".join(sorted(file.name for file in results.folder.iterdir() if not file.name.startswith(".")))
    return f"done already: {results.folder}/ ({files}); --again true does it again"


def excerpt(texts: list[str], shown: int = 3, length: int = 400) -> str:
    """The first texts for the terminal, cut, with what a terminal would obey spelt out."""
    parts = [visible(text if len(text) <= length else f"{text[:length]} ...") for text in texts[:shown]]
    more = f"\n\n... and {len(texts) - shown:,} more" if len(texts) > shown else ""
    return "\n\n".join(f"--- sample {i} ---\n{part}" for i, part in enumerate(parts)) + more
