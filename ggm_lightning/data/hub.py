"""Files and rows of the Hugging Face hub, fetched once into its own cache; every failure is one line with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

HUB = "hub:"


def _fetched(what: str, remedy: str, fetch: Callable[[], Any]) -> Any:
    try:
        return fetch()
    except Exception as error:  # the hub's client and datasets raise many kinds, some of many lines
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{what}: {reason}; check the name and the network, or {remedy}") from None


def hub_rows(given: str, key: str, split: str, remedy: str, **chosen: Any) -> Any:
    """A split of the data set hub:NAME as `datasets` gives it; `chosen`: name and revision, where it has several.

    Raises:
        ValueError: no network, no such data set or split; ends in the remedy.
    """

    def fetch() -> Any:
        from datasets import load_dataset

        return load_dataset(given.removeprefix(HUB), split=split, **chosen)

    return _fetched(f"data.{key}: {given}", remedy, fetch)


def hub_parquet(given: str, key: str, split: str = "train") -> list[Path]:
    """The parquet files of a split of the data set hub:NAME, in the order of their names: texts of many gigabytes are
    streamed from them, where `datasets` would write a copy.

    Raises:
        ValueError: no network, no such data set, or none of its files belongs to the split.
    """
    remedy = f"download its parquet files by hand and give data.{key} their glob"

    def fetch() -> list[Path]:
        from huggingface_hub import snapshot_download  # it comes with datasets

        folder = snapshot_download(given.removeprefix(HUB), repo_type="dataset", allow_patterns=["*.parquet"])
        files = sorted(Path(folder).rglob("*.parquet"))
        mine = [path for path in files if split in str(path.relative_to(folder))]
        if not mine:
            raise FileNotFoundError(f"none of its {len(files)} parquet files has '{split}' in its name")
        return mine

    return _fetched(f"data.{key}: {given}", remedy, fetch)


def hub_tokenizer(given: str) -> Path:
    """tokenizer.json of the model hub:NAME."""

    def fetch() -> Path:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(given.removeprefix(HUB), "tokenizer.json"))

    remedy = "give data.tokenizer the path of its tokenizer.json"
    return _fetched(f"data.tokenizer: {given}", remedy, fetch)
