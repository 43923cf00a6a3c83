"""A causal language model of `transformers` as the judge of texts: which tokens count, and how likely they are.

mdlm    arXiv 2406.07524, diffusion.py, compute_generative_perplexity: the text is tokenised by the judge, cut at
        1,024 tokens and padded at its end with EOS; every target that is not EOS counts, and the first EOS of the
        text; the first token is no target. (Theirs leaves out an incomplete last batch; here none is.)
all     every token but the first counts, each EOS that the text holds included; padding never does.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

RULES = ("mdlm", "all")
LONGEST = 1024  # tokens of a text that is not cut, as published


@dataclass(frozen=True)
class Scores:
    """What a judge says of texts.

    Attributes:
        nats: Float64[b], -log p of the tokens that count, summed over each text.
        counted: Int64[b], how many these are.
        cut: tokens that were not looked at, of all texts together.
        features: Float64[b, d], its last hidden state of each text's last token; None where it has none.
        characters: for which the tokens that were looked at stand, of all texts together; None where that is unknown.
    """

    nats: Float64[Tensor, " b"]
    counted: Int64[Tensor, " b"]
    cut: int
    features: Float64[Tensor, "b d"] | None
    characters: int | None = None

    def per_token(self) -> tuple[float, float]:
        """(nats per counted token of all texts together, its standard error over the texts). nan where none counts.

        A ratio of two sums: its error is that of the mean of nats_i - ratio counted_i, over the mean of counted_i."""
        counted = self.counted.double()
        if counted.sum() == 0:
            return math.nan, math.nan
        ratio = self.nats.sum() / counted.sum()
        if len(counted) == 1:
            return float(ratio), math.nan
        rest = self.nats - ratio * counted
        return float(ratio), float(rest.std() / math.sqrt(len(rest)) / counted.mean())


def counted_targets(ids: Int64[Tensor, " n"], eos: int, rule: str) -> Bool[Tensor, " m"]:
    """Which of ids[1:] count, m = n - 1. Of padding the first EOS belongs to `ids`, and no more."""
    if rule == "all":
        return torch.ones(len(ids) - 1, dtype=torch.bool)
    is_eos = ids == eos
    return (~is_eos | (is_eos & (is_eos.cumsum(0) == 1)))[1:]


class CausalLM:
    """A judge. Loaded at once; nothing of a model's own code is run.

    Args:
        name: a folder, of which files alone are read, or a name that `transformers` knows.
        device: cpu, cuda, ...
        rule: one of RULES.
        stride: for texts that are longer than the judge reads: it reads windows of its length, each moved on by so many
            tokens, and every token counts once, in the first window that has it. None: the rest is cut.

    Raises ValueError in one line: nothing of that name, no tokenizer, no EOS, or an unknown rule.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu", rule: str = "mdlm", stride: int | None = None):
        if rule not in RULES:
            raise ValueError(f"--judge_rule is {rule!r}; choose {' or '.join(RULES)}")
        self.name, self.rule, self.stride = name, rule, stride
        self.tokenizer, self.model = _loaded(name)
        self.model.to(device).eval()
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                f"--judge {name}: its tokenizer has no end-of-text, by which texts are padded; take another"
            )
        self.eos = int(self.tokenizer.eos_token_id)
        # what its head is given is the last hidden state; to ask for hidden states would keep those of all layers
        self._hidden: list[Tensor] = []
        self.model.get_output_embeddings().register_forward_pre_hook(self._keep)
        known = getattr(self.model.config, "max_position_embeddings", None) or LONGEST
        self.longest = min(known, LONGEST)
        if stride is not None and not 0 < stride < self.longest:
            raise ValueError(f"--stride is {stride}; it must be at least 1 and below the judge's {self.longest} tokens")

    def _keep(self, head: Any, given: tuple[Tensor, ...]) -> None:
        self._hidden = [given[0]]

    def scores(self, texts: Sequence[str], batch_size: int = 8) -> Scores:
        """Of texts, in their order. By rule mdlm a text that is shorter than the longest one is padded, and the first
        EOS of its padding counts; so the figure of a text depends on the longest one of those that are given."""
        whole = [self.tokenizer(text)["input_ids"] or [self.eos] for text in texts]
        rows = whole if self.stride else [row[: self.longest] for row in whole]
        cut = sum(map(len, whole)) - sum(map(len, rows))
        longest = max(map(len, rows))
        padded = [[*row, self.eos] if self.rule == "mdlm" and len(row) < longest else row for row in rows]
        counts = [counted_targets(torch.tensor(row), self.eos, self.rule) for row in padded]
        windows = [(i, *window) for i, row in enumerate(padded) for window in self._windows(len(row))]
        windows.sort(key=lambda one: one[2] - one[1])  # windows of like length together: less padding
        nats = torch.zeros(len(rows), dtype=torch.float64)
        features: list[Any] = [None] * len(rows)
        for start in range(0, len(windows), batch_size):
            some = windows[start : start + batch_size]
            surprise, hidden = self._read([padded[i][begin:end] for i, begin, end, _ in some])
            for place, (i, begin, end, fresh) in enumerate(some):
                taken = slice(max(fresh - 1, begin), end - 1)  # of the targets, of which the first is token 1
                values = surprise[place, taken.start - begin : taken.stop - begin]
                nats[i] += values[counts[i][taken]].sum()
                last = len(rows[i]) - 1
                if begin <= last < end:
                    features[i] = hidden[place, last - begin].double()
        counted = torch.tensor([int(count.sum()) for count in counts])
        return Scores(nats, counted, cut, torch.stack(features), self._characters(texts, whole, rows))

    def _characters(self, texts: Sequence[str], whole: list[list[int]], rows: list[list[int]]) -> int | None:
        """For which `rows`, the beginnings of `whole`, stand. None where a tokenizer does not say which these are."""
        found = 0
        for text, tokens, row in zip(texts, whole, rows, strict=True):
            if len(row) == len(tokens):
                found += len(text)
            elif getattr(self.tokenizer, "is_fast", False):
                spans = self.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
                found += max(end for _, end in spans[: len(row)])  # special tokens stand at (0, 0)
            else:
                return None
        return found

    def weights_hash(self) -> str:
        """sha256 of names and values of all weights: two judges of one name need not be one."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{list(weight.shape)}".encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _windows(self, length: int) -> Iterator[tuple[int, int, int]]:
        """(begin, end, the first token that no earlier window had)."""
        end = min(length, self.longest)
        yield 0, end, 0
        while self.stride and end < length:
            fresh, end = end, min(end + self.stride, length)
            yield max(0, end - self.longest), end, fresh

    @torch.no_grad()
    def _read(self, parts: list[list[int]]) -> tuple[Float64[Tensor, "b m"], Tensor]:
        """(-log p of each token but the first in nats, the last hidden states); what is behind a part means nothing."""
        width = max(map(len, parts))
        ids = torch.tensor([part + [self.eos] * (width - len(part)) for part in parts])
        real = torch.tensor([[1] * len(part) + [0] * (width - len(part)) for part in parts])
        device = self.model.device
        logits = self.model(ids.to(device), attention_mask=real.to(device)).logits
        nats = []
        for row, targets in zip(logits[:, :-1], ids[:, 1:].to(device), strict=True):  # one by one: they are large
            wide = row.double()
            nats.append(wide.logsumexp(-1) - wide.gather(1, targets[:, None])[:, 0])
        return torch.stack(nats).cpu(), self._hidden[0].cpu()


def _loaded(name: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise ValueError("--judge needs the package transformers: pip install 'ggm_lightning[eval]'") from None
    is_path = name.endswith(".ckpt") or name.count("/") > 1  # names of models have one / at most
    if is_path and not Path(name).exists():
        raise ValueError(f"--judge {name}: there is no such file or folder; train it, or name a language model")
    options = {"local_files_only": Path(name).is_dir(), "trust_remote_code": False}
    try:
        return AutoTokenizer.from_pretrained(name, **options), AutoModelForCausalLM.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"--judge {name}: is no causal language model that can be loaded ({reason})") from None
