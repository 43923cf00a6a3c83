"""`header.json`: what a folder of shards says about itself, sealed so that an edit never passes for the truth.

The seal is the sha256 of the header's canonical JSON. A count, a codec or a checksum that was changed by hand or by a
bad disk is then one error on start, and nothing behind it needs checks of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ggm_lightning.codecs.codec import dict_hash

FORMAT = 2  # 1 had neither seal nor block checksums
HEADER = "header.json"


def sealed(header: dict[str, Any]) -> bytes:
    """The file's bytes: the header as JSON with its format and its seal."""
    plain = {"format": FORMAT, **json.loads(json.dumps(header))}  # as it will be read: tuples are lists
    return json.dumps({"seal": dict_hash(plain), **plain}, indent=1).encode()


def _parse(path: Path) -> tuple[dict[str, Any], str | None]:
    """(header without its seal, what is wrong with it or None). ValueError for a header of something else."""
    try:
        header = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return {}, f"not valid JSON ({error})"
    if not isinstance(header, dict):
        raise ValueError(f"{path}: a {type(header).__name__}, no header of ours; choose another data.folder")
    if type(header.get("format")) is not int:  # ours have a number there; what lies here is not to be written over
        raise ValueError(f"{path}: of format {header.get('format')}, no shards of ours; choose another data.folder")
    if header.get("format") != FORMAT:
        return {}, f"format {header.get('format')!r}, this version reads {FORMAT}"
    seal = header.pop("seal", None)
    return header, None if seal == dict_hash(header) else "altered after it was written (its seal does not fit)"


def read_header(folder: str | Path) -> dict[str, Any]:
    """The header of a finished folder. FileNotFoundError without one, ValueError for one that is not as written."""
    path = Path(folder) / HEADER
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no {HEADER}, so no finished token shards; run the preparation again")
    header, fault = _parse(path)
    if fault is not None:
        raise ValueError(f"{path}: {fault}; delete {folder} and prepare it again")
    return header


def other_owner(folder: str | Path, *, options: dict[str, Any], tokenizer_hash: str | None = None) -> str | None:
    """How a finished folder's data were made, if in another way than this: they are somebody's, and are kept. None: in
    this way, or nothing finished is there. `tokenizer_hash` None: the tokenizer follows from the rest."""
    path = Path(folder) / HEADER
    header, fault = _parse(path) if path.is_file() else ({}, "absent")
    if fault is not None:
        return None
    if tokenizer_hash not in (None, header["tokenizer_hash"]):
        return "made with another tokenizer"
    keys = [key for key in sorted({*options, *header["options"]}) if options.get(key) != header["options"].get(key)]
    return f"made with other options ({', '.join(keys)})" if keys else None


def staleness(
    folder: str | Path,
    *,
    options: dict[str, Any],
    source: list[dict[str, Any]] | None,
    tokenizer_hash: str | None = None,
) -> str | None:
    """Why a folder's shards cannot be kept, or None. `tokenizer_hash` as in `other_owner`; `source` None: the files are
    gone and cannot be compared."""
    path = Path(folder) / HEADER
    if not path.is_file():
        return "no finished shards there"
    header, fault = _parse(path)
    if fault is not None:
        return f"{HEADER} is {fault}"
    other = other_owner(folder, options=options, tokenizer_hash=tokenizer_hash)
    if other is not None:
        return other
    return "the source files differ" if source not in (None, header["source"]) else None
