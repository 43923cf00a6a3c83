"""Who judges texts in `lightning evaluate --measures text`: a checkpoint of ours, or a model of `transformers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int64
from torch import Tensor

from ggm_lightning.cli import sweep_judges
from ggm_lightning.cli.loading import Loaded
from ggm_lightning.metrics.text_judge import CausalLM, Scores
from ggm_lightning.models.base import Family
from ggm_lightning.rundir import exported

PUBLISHED = "gpt2-large"
_SHAPE = {"num_hidden_layers": 36, "hidden_size": 1280, "vocab_size": 50257}  # its own, whatever its folder is called
_TOKENS = 1024  # of a published row


class TextJudge(Protocol):
    """Attributes: title, for a person; identity: what its figures depend on."""

    @property
    def title(self) -> str: ...
    @property
    def identity(self) -> dict[str, Any]: ...
    def departures(self, tokens: int) -> list[str]:
        """From the published protocol, for rows of so many tokens of the model."""

    def scores(self, x: Int64[Tensor, "b n"], texts: Sequence[str]) -> Scores:
        """Of rows of ids, and of the texts that they stand for."""


@dataclass(frozen=True)
class OfCheckpoint:
    """-log p of an AutoregressiveModel on the same ids: every token counts, the first one too."""

    judge: sweep_judges.Autoregressive

    @property
    def title(self) -> str:
        return f"{self.judge.title}, on the same tokens, the first one too"

    @property
    def identity(self) -> dict[str, Any]:
        return self.judge.identity

    def departures(self, tokens: int) -> list[str]:
        return [f"judge {self.judge.loaded.path} by its own tokens, published {PUBLISHED}"]

    def scores(self, x: Int64[Tensor, "b n"], texts: Sequence[str]) -> Scores:
        loaded: Loaded = self.judge.loaded
        model: Any = loaded.model
        nats, features = [], []
        with loaded.computing():
            for rows in x.split(self.judge.batch_size):
                rows = rows.to(model.device)
                nats.append(model.nelbo(rows).double().cpu())
                features.append(model.last_features(rows))
        known = [one.double().cpu() for one in features if one is not None]
        counted = torch.full((len(x),), x.shape[1])
        return Scores(torch.cat(nats), counted, 0, torch.cat(known) if known else None, sum(map(len, texts)))


@dataclass(frozen=True)
class OfTransformers:
    """A causal LM of `transformers`, which reads the texts."""

    model: CausalLM
    contents: str  # of its weights

    @property
    def title(self) -> str:
        return f"{self.model.name}, rule {self.model.rule}, at most {self.model.longest} tokens"

    @property
    def identity(self) -> dict[str, Any]:
        own: dict[str, Any] = {"judge": "transformers", "weights": self.contents, "rule": self.model.rule}
        own |= {"stride": self.model.stride, "longest": self.model.longest}
        # figures of older versions had those that were cut, too
        return own if self.model.stride else {**own, "characters": "of the tokens that are read"}

    def departures(self, tokens: int) -> list[str]:
        shape = {name: getattr(self.model.model.config, name, None) for name in _SHAPE}
        found = []
        if shape != _SHAPE:
            words = "{num_hidden_layers} layers, width {hidden_size}, vocabulary {vocab_size}"
            found.append(
                f"judge {self.model.name} ({words.format(**shape)}), published {PUBLISHED} ({words.format(**_SHAPE)})"
            )
        if self.model.rule == "mdlm" and tokens != _TOKENS:
            found.append(f"rows of {tokens:,} tokens, published {_TOKENS:,}")
        found += [f"rule {self.model.rule}, published mdlm"] if self.model.rule != "mdlm" else []
        return found + ([f"long texts in windows, stride {self.model.stride}"] if self.model.stride else [])

    def scores(self, x: Int64[Tensor, "b n"], texts: Sequence[str]) -> Scores:
        return self.model.scores(texts)


def find(
    judge: str, model: Family, name: str, rule: str, stride: int | None, batch_size: int, device: str, trust: tuple
) -> TextJudge:
    """The judge of --judge: all that --ckpt_path takes, else a folder or a name that `transformers` knows.

    Raises ValueError in one line for one that cannot be loaded, or that is of another alphabet.
    """
    if _is_checkpoint(judge):
        found = sweep_judges.judge_of(judge, device, trust, model, name, batch_size)
        assert isinstance(found, sweep_judges.Autoregressive)
        if rule != "mdlm" or stride is not None:
            raise ValueError(
                f"--judge_rule and --stride are for judges of transformers; {judge} reads the tokens itself"
            )
        return OfCheckpoint(found)
    if model.codec is None or model.codec.free_spacing:
        raise ValueError(
            f"--judge {judge}: reads texts, and the checkpoint's ids have none; give a checkpoint as judge"
        )
    return _of_transformers(judge, str(model.device), rule, stride)


def _is_checkpoint(judge: str) -> bool:
    """A file, hub:OWNER/NAME, or a folder of `lightning export`, whose files have the names of `transformers`'."""
    if judge.startswith(exported.HUB) or Path(judge).is_file():
        return True
    config = Path(judge) / exported.CONFIG
    return config.is_file() and exported.read_json(config).get("model_type") == exported.MODEL_TYPE


@lru_cache(maxsize=1)
def _of_transformers(judge: str, device: str, rule: str, stride: int | None) -> OfTransformers:
    """Loaded once."""
    found = CausalLM(judge, device, rule, stride)
    return OfTransformers(found, found.weights_hash())
