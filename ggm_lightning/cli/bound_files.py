"""What was measured on one data set, and the file of it: written when it is finished, never over another's."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ggm_lightning import __version__
from ggm_lightning.cli import ranks
from ggm_lightning.cli.evaluation_sets import EvaluationSet, rows_of
from ggm_lightning.codecs.codec import dict_hash
from ggm_lightning.core.arguments import whole_number
from ggm_lightning.data.arrays import DAMAGE
from ggm_lightning.data.fingerprints import hash_of_rows
from ggm_lightning.data.latents import rows_hash
from ggm_lightning.metrics.likelihood import Likelihood
from ggm_lightning.models.base import Family
from ggm_lightning.rundir.folder import refuse_unwritable, write_whole

_LARGEST = 700.0  # nats per word, of which exp is still finite
FORMAT = 2  # 1, without a number, was evaluation.json with several sets in it


@dataclass(frozen=True)
class Settings:
    """How the bound is estimated: see `evaluate`."""

    split: str
    num_samples: int
    seed: int
    batch_size: int
    limit: int | None
    estimator: str = "times"
    protocol: str | None = None

    def __post_init__(self) -> None:
        if self.split not in ("val", "test"):
            raise ValueError(f"--split is {self.split!r}; choose val or test")
        counts = {"num_samples": self.num_samples, "batch_size": self.batch_size, "limit": self.limit}
        for key, value in counts.items():
            if value is not None:
                whole_number(f"--{key}", value, 1)


@dataclass(frozen=True)
class Bound:
    """What was measured on one set.

    Attributes:
        nats: Float64[rows], the upper bound on -log p of each row.
        num_sites: tokens (or pixels x channels) of a row.
        split: val or test; of a zero-shot set its own part.
        of_rows: how many rows the split has.
        characters_per_token: of text, where the data knows it.
        seconds: for the bounds, without the preparation of the data.
        masks_stderr: what the drawn states alone add to the standard error of `nats`' mean, nats per example; None
            where there is one state per row, or the family does not tell.
        words: in the measured rows, where they were asked for.
        departures: in what the figures are not those of the protocol.
    """

    name: str
    section: dict[str, Any]
    split: str
    nats: Tensor
    num_sites: int
    text: bool
    of_rows: int
    characters_per_token: float | None
    seconds: float
    masks_stderr: float | None = None
    words: int | None = None
    departures: tuple[str, ...] = ()

    def figures(self) -> dict[str, float | None]:
        """Mean and standard error in every unit; None where one row alone gives no error, or a unit means nothing.

        `_stderr_masks` is the part of the states that were drawn, which more of them per row make smaller, and
        `_stderr_rows` that of the rows, which only more rows do: the squares add up.
        """
        likelihood = Likelihood(self.num_sites, self.text)
        likelihood.update(self.nats)
        plain = {name: float(value) for name, value in likelihood.compute().items()}
        for end in ("", "_stderr"):
            plain[f"nats_per_token{end}"] = plain[f"bpd{end}"] * math.log(2)
            if self.characters_per_token:
                plain[f"bits_per_character{end}"] = plain[f"bpd{end}"] / self.characters_per_token
        if self.words:
            nats = plain["nelbo"] * len(self.nats) / self.words
            error = plain["nelbo_stderr"] * len(self.nats) / self.words
            plain |= {"ppl_word": math.exp(min(nats, _LARGEST)), "nats_per_word": nats, "nats_per_word_stderr": error}
            plain["ppl_word_stderr"] = plain["ppl_word"] * error
        found: dict[str, float | None] = dict(plain)
        if len(self.nats) == 1:
            found |= {name: None for name in found if name.endswith("_stderr")}
        return found | self._split(plain["nelbo_stderr"])

    def _split(self, whole: float) -> dict[str, float | None]:
        if self.masks_stderr is None or len(self.nats) == 1:
            return {}
        parts = {"masks": self.masks_stderr, "rows": math.sqrt(max(whole**2 - self.masks_stderr**2, 0.0))}
        units = {"nelbo": 1.0, "bpd": 1 / (self.num_sites * math.log(2)), "nats_per_token": 1 / self.num_sites}
        return {f"{unit}_stderr_{part}": parts[part] * size for unit, size in units.items() for part in parts}


@dataclass(frozen=True)
class BoundFile:
    """<set>.json with the figures and what they depend on, <set>.npy with the bound of each row in nats.

    Attributes:
        path: of the .json.
        what: all that the figures depend on, as plain JSON.
    """

    path: Path
    what: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, one: EvaluationSet, about: dict[str, Any]) -> BoundFile:
        """The set's file, or, where that name belongs to other figures, one with a hash of these settings in its name.

        Raises:
            OSError: the folder cannot be written. It is made if it is not there.
        """
        if folder.is_file():
            raise OSError(f"--out {folder}: a file is there; name a folder for the figures")
        if ranks.current().is_first:  # the others write nothing but parts
            refuse_unwritable(folder, "choose another folder by --out")
        about = {**about, "name": one.name, "data": one.section, "split": one.split}
        rows = one.data.rows(rows_of(one))  # the same section may by now mean other rows
        about |= {"rows_hash": rows_hash(rows), "measured_rows_hash": hash_of_rows(rows, about["limit"])}
        what = json.loads(json.dumps(about, default=str))
        if what["data"].get("init_args", {}).get("protocol") == "sedd":
            del what["data"]["init_args"]["protocol"]  # what it was before there was a choice
        file = cls(folder / f"{one.name}.json", what)
        if file.path.exists() and file._stored() is None:
            return cls(folder / f"{one.name}-{dict_hash(what)[:8]}.json", what)
        return file

    def _stored(self) -> dict[str, Any] | None:
        """The file's content, if it is of these settings."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            return None
        # files of the same format that were written before there was a choice
        usual = self.what.get("protocol")
        unsaid = {
            "estimator": "times",
            "set_seed": content.get("seed"),
            "protocol": "sedd" if usual == "sedd" else None,
            "measured_rows_hash": self.what.get("measured_rows_hash"),  # older files tell 64 of their rows, rows_hash
        }
        content = unsaid | content
        return content if all(content.get(key) == value for key, value in self.what.items()) else None

    def how(self) -> dict[str, Any]:
        """Of figures that are there: when, where and by which version they were measured."""
        content = self._stored() or {}
        names = ("date", "version", "device", "precision", "weights", "set_seed")
        return {name: content[name] for name in names if name in content}

    def read(self, model: Family) -> Bound | None:
        """What was measured with these settings before, or None."""
        content = self._stored()
        if content is None:
            return None
        try:
            nats = torch.from_numpy(np.load(self.path.with_suffix(".npy"), allow_pickle=False))
        except DAMAGE:
            return None
        return Bound(
            self.what["name"],
            self.what["data"],
            self.what["split"],
            nats,
            model.num_sites,
            text=len(model.shape) == 1,
            of_rows=content["of_rows"],
            characters_per_token=content["characters_per_token"],
            seconds=content["seconds"],
            masks_stderr=content.get("nelbo_stderr_masks"),
            words=content.get("words"),
            departures=tuple(content.get("departures", ())),
        )

    def write(self, bound: Bound, more: dict[str, Any]) -> None:
        """Each of the two files as a whole, or as it was; the .json last."""
        content = {
            "format": FORMAT,
            "what": "upper bounds on -log p; nelbo in nats per example, bpd in bits per token or dimension",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": __version__,
            **self.what,
            **more,
            "rows": len(bound.nats),
            "of_rows": bound.of_rows,
            "sites_per_row": bound.num_sites,
            "tokens": len(bound.nats) * bound.num_sites,
            "words": bound.words,
            "departures": list(bound.departures),
            "characters_per_token": bound.characters_per_token,
            **bound.figures(),
            "seconds": round(bound.seconds, 3),
        }
        rows = io.BytesIO()
        np.save(rows, bound.nats.numpy())
        write_whole(self.path.with_suffix(".npy"), rows.getvalue())
        write_whole(self.path, f"{json.dumps(content, indent=1)}\n".encode())
