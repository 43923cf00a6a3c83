"""The sets of the zero-shot tables: which file, which part of it, what an example is, and under which licence.

The table is that of SEDD (arXiv 2310.16834, appendix C.6 and data.py), to which MD4 (arXiv 2406.04329, section 7.1)
refers and which MDLM (arXiv 2406.07524) takes over: an example is a row of the hub's data set, a line of the raw file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ggm_lightning.data.detokenise import DETOKENISERS
from ggm_lightning.data.documents import Reader, find_files
from ggm_lightning.data.hub import HUB, hub_rows
from ggm_lightning.data.rows import BadData


@dataclass(frozen=True)
class ZeroShotSet:
    """One set, with each rule beside its source.

    Attributes:
        title: as tables call it.
        part: of the data set that published figures are of (SEDD, appendix C.6: test, of WikiText-2 train).
        examples: how many each part has.
        files: what is looked for in a folder, the raw distribution first; {part} is filled in.
        hub: name, configuration and revision for `datasets`.
        column: of the text, in parquet and .jsonl.
        line_ends: whether an example keeps its line end and the spaces around it, as WikiText's rows on the hub do;
            else both are stripped, as the hub's scripts strip PTB and LM1B.
        detokeniser: by its name in data/detokenise.py.
        get: where to get it, for errors.
        licence: of the text.
    """

    name: str
    title: str
    part: str
    examples: Mapping[str, int]
    files: tuple[str, ...]
    hub: tuple[str, str | None, str | None]
    column: str
    line_ends: bool
    detokeniser: str
    get: str
    licence: str

    def example(self, text: str) -> str:
        """A line or row as an example. A blank one is an empty example, of which only the end-of-text is left, as in
        the published pipelines."""
        text = text if self.line_ends else text.strip()
        return DETOKENISERS[self.detokeniser](text) if text.strip() else ""


_PARQUET = ("**/{part}-*.parquet", "**/{part}/*.parquet")
_WIKITEXT = "wikitext-{size}-raw-v1.zip, and of it wiki.{part}.raw, or the parquet files of hub:Salesforce/wikitext"
_WIKITEXT2 = ZeroShotSet(
    name="wikitext2",
    title="WikiText-2",
    part="train",  # its test part is WikiText-103's, line for line
    examples={"train": 36_718, "valid": 3_760, "test": 4_358},
    files=("wiki.{part}.raw", *_PARQUET),
    hub=("Salesforce/wikitext", "wikitext-2-raw-v1", None),
    column="text",
    line_ends=True,
    detokeniser="wikitext",
    get=_WIKITEXT.format(size=2, part="train"),
    licence="CC BY-SA 3.0 and GFDL",
)
_WIKITEXT103 = replace(
    _WIKITEXT2,
    name="wikitext103",
    title="WikiText-103",
    part="test",
    examples={**_WIKITEXT2.examples, "train": 1_801_350},
    hub=("Salesforce/wikitext", "wikitext-103-raw-v1", None),
    get=_WIKITEXT.format(size=103, part="test"),
)

_SETS = (
    ZeroShotSet(
        name="lambada",
        title="LAMBADA",
        part="test",
        examples={"test": 5_153},
        files=("lambada_{part}.jsonl", *_PARQUET),
        hub=("EleutherAI/lambada_openai", "default", None),
        column="text",
        line_ends=True,  # passages have several lines; the rule for LAMBADA strips the outermost white space itself
        detokeniser="lambada",
        get="https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
        licence="CC BY 4.0 (the original LAMBADA)",
    ),
    _WIKITEXT2,
    _WIKITEXT103,
    ZeroShotSet(
        name="ptb",
        title="PTB",
        part="test",
        examples={"train": 42_068, "valid": 3_370, "test": 3_761},
        files=("ptb.{part}.txt", *_PARQUET),
        hub=("ptb-text-only/ptb_text_only", "penn_treebank", "refs/convert/parquet"),
        column="sentence",
        line_ends=False,
        detokeniser="ptb",
        get="ptb.test.txt of Mikolov's simple-examples.tgz (http://www.fit.vutbr.cz/~imikolov/rnnlm/)",
        licence="Linguistic Data Consortium (LDC99T42), user agreement",
    ),
    ZeroShotSet(
        name="lm1b",
        title="1BW",
        part="test",
        examples={"test": 306_688},
        files=("**/news.en.heldout-*", *_PARQUET),
        hub=("billion-word-benchmark/lm1b", "plain_text", "refs/convert/parquet"),
        column="text",
        line_ends=False,
        detokeniser="lm1b",
        get="http://www.statmt.org/lm-benchmark/1-billion-word-language-modeling-benchmark-r13output.tar.gz, and of it "
        "heldout-monolingual.tokenized.shuffled/",
        licence="news texts (WMT News Crawl), no open licence",
    ),
)
SETS: Mapping[str, ZeroShotSet] = MappingProxyType({entry.name: entry for entry in _SETS})
PARTS = ("train", "valid", "test")


def reader(entry: ZeroShotSet, text_key: str | None = None) -> Reader:
    """Reads a set's examples, each a document; none is left out, for each counts in a published figure."""
    return Reader(text_key or entry.column, document="line", on_error="stop", detokenise=entry.example, exact=True)


def find(entry: ZeroShotSet, path: str | list[str], part: str) -> list[Path]:
    """The files to read: those that are named, or in a folder what the set's distributions call them.

    Raises:
        FileNotFoundError: nothing there; says which file to put where. ValueError: a file of another part is named.
    """
    folder = Path(path).expanduser() if isinstance(path, str) else None
    if folder is None or folder.is_file() or any(sign in str(path) for sign in "*?["):
        files = find_files(path, "path")
        for file in files:
            _refuse_another_part(file, part)
        return files
    patterns = _patterns(entry, part)
    for pattern in patterns:
        matches = sorted(folder.glob(pattern)) if folder.is_dir() else []
        if matches:
            return find_files([str(match) for match in matches], "path")
    names = " or ".join(pattern.removeprefix("**/") for pattern in patterns)
    raise FileNotFoundError(f"data.path: '{path}' has no {names}; get {entry.get}, and put it into {path}/")


def _patterns(entry: ZeroShotSet, part: str) -> list[str]:
    """`valid` of the raw files is `validation` on the hub."""
    hub = "validation" if part == "valid" else part
    return [name.format(part=hub if name.endswith(".parquet") else part) for name in entry.files]


def _refuse_another_part(file: Path, part: str) -> None:
    named = [other for other in PARTS if other in file.name]
    if named and part not in named:
        raise ValueError(f"data.path: {file} is of the part {named[0]}, but data.part is {part}; make them agree")


def from_hub(entry: ZeroShotSet, path: str, part: str, text_key: str | None) -> Iterator[str]:
    """Examples of hub:NAME, or of the set's own name there for `hub:`, downloaded by `datasets` into its cache.

    Raises:
        ValueError: no network, no such data set or column; says which file to get instead.
    """
    own, configuration, revision = entry.hub
    name, column = path.removeprefix(HUB) or own, text_key or entry.column
    chosen: dict[str, Any] = {"name": configuration, "revision": revision} if name == own else {}
    split = "validation" if part == "valid" else part
    records = hub_rows(f"{HUB}{name}", "path", split, f"get {entry.get}, and name its folder", **chosen)
    if column not in records.column_names:
        raise BadData(f"{HUB}{name}: no column '{column}', it has {', '.join(records.column_names)}; set data.text_key")
    for number, record in enumerate(records, 1):
        if not isinstance(record[column], str):
            raise BadData(f"{HUB}{name}: row {number} has no text in '{column}'; set data.text_key")
        yield entry.example(record[column])
