"""What the pages of README.md and docs/ show: blocks of Python, and commands, each with its mark.

A block that cannot run in the tests has a line in front of it, `<!-- needs: MARK -->`. Of it only paths, flags and
configuration are looked at. Marks: cluster, gpu, network (the internet), files (that the reader has to get), minutes.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MARKS = {"cluster", "gpu", "network", "files", "minutes"}
_BLOCK = re.compile(r"^(?:<!-- needs: (\w+) -->\n+)?```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# docs/extend is followed word by word by tests/extend, and these by a test beside what they describe
ELSEWHERE = {"docs/evaluate.md", "docs/images.md", "docs/models.md", "docs/samplers.md"}
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
FOLLOWED = [page for page in PAGES if not page.startswith("docs/extend/") and page not in ELSEWHERE]


@dataclass(frozen=True)
class Block:
    """kind: python, sh, yaml, text ..; mark: what it needs, or None."""

    kind: str
    text: str
    mark: str | None

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command line, its comment left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(kind, body, mark or None) for mark, kind, body in _BLOCK.findall(text)]
