"""The model class `ggm` of lm-evaluation-harness (lm_eval >= 0.4.10): its tasks on a checkpoint of text.

    python -m ggm_lightning.cli.lm_eval run --model ggm --model_args ckpt_path=runs/x/last.ckpt --tasks lambada_openai

is the harness's own command after this class was made known to it. loglikelihood(context, continuation) is minus the
bound on -log p(continuation | context), summed over the tokens (sampling/conditional.py): the continuation is masked
and counted, what lies behind it masked and not counted. An autoregressive model gives log p itself. So a score is a
lower bound on log p, an estimate of it, and never that of a request of which nothing was read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ggm_lightning.cli.loading import load_family, trusted_names
from ggm_lightning.sampling import conditional

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ImportError(
        f"the model class `ggm` is for lm-evaluation-harness, which is not there ({error}); "
        "pip install 'ggm-lightning[lm-eval]'"
    ) from None

_DEFAULT_DEVICE = "cuda:0"  # of the harness
_TOKENS = 256  # written where a task does not say how many


@dataclass(frozen=True)
class Piece:
    """Tokens to be scored in one row.

    Attributes:
        number: of the request that they are a part of.
        row: by which noise is drawn.
        before, asked: ids.
    """

    number: int
    row: int
    before: list[int]
    asked: list[int]


@register_model("ggm")
class Harness(LM):
    """A checkpoint of `lightning fit` on text.

    Args:
        ckpt_path: the file.
        num_samples: states of each continuation for its bound; the noise of a score falls as their number grows.
        num_steps, sampler: of generate_until; the family's first sampler.
        batch_size: rows at once, 16 where it is "auto".
        seed: of the noise. All continuations of one document have the same, so that their differences have less of it.
        device, precision, trust: as `lightning evaluate` has them.
        max_batch_size: the harness gives it; not used.
    """

    def __init__(
        self,
        ckpt_path: str,
        num_samples: int = 16,
        num_steps: int = 256,
        sampler: str | None = None,
        batch_size: int | str | None = "auto",
        seed: int = 0,
        device: str | None = None,
        precision: str = "auto",
        trust: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if device == _DEFAULT_DEVICE and not torch.cuda.is_available():
            print(f"ggm: no {device} here, which the harness asks for where nobody says: on the cpu", file=sys.stderr)
            device = "cpu"
        self.loaded = load_family(ckpt_path, device or "auto", trusted_names(trust, {}), str(precision))
        model = self.loaded.model
        if model.codec is None or len(model.shape) != 1:
            raise ValueError(f"ckpt_path {ckpt_path}: is not of text; the harness asks about texts")
        if (reason := conditional.lacking(model)) is not None:
            raise ValueError(f"ckpt_path {ckpt_path}: {reason}, and loglikelihood is such a bound")
        self.num_samples, self.num_steps, self.sampler, self.seed = num_samples, num_steps, sampler, seed
        self.batch = 16 if batch_size in (None, "auto") else int(str(batch_size).removeprefix("auto:"))

    # ------------------------------------------------------------------ scores

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p of the continuation given the context, or what bounds it from below, in nats, summed over the tokens;
        whether greedy filling gives it)."""
        pairs = [self._encoded_pair(*request.args) for request in requests]
        return self._scores(requests, pairs, greedy=True)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of a whole text, without a token in front of it; every token is counted once."""
        nothing: list[int] = []
        pairs = [(nothing, self._encoded(request.args[0])) for request in requests]
        return [score for score, _ in self._scores(requests, pairs, greedy=False)]

    def _scores(
        self, requests: Sequence[Any], pairs: Sequence[tuple[list[int], list[int]]], greedy: bool
    ) -> list[tuple[float, bool]]:
        pieces = self._pieces(requests, pairs)
        assert self.loaded.model.codec is not None
        replaced = self.loaded.model.codec.replaced
        self._say(replaced, sum(len(piece.asked) for piece in pieces), "symbols so far are none of the vocabulary")
        total, right = [0.0] * len(requests), [True] * len(requests)
        for start in range(0, len(pieces), self.batch):
            some = pieces[start : start + self.batch]
            nats, first = self._scored(some, greedy)
            for piece, nat, is_first in zip(some, nats.tolist(), first.tolist(), strict=True):
                total[piece.number] -= nat
                right[piece.number] &= is_first
        return list(zip(total, right, strict=True))

    def _scored(self, pieces: Sequence[Piece], greedy: bool) -> tuple[Tensor, Tensor]:
        model = self.loaded.model
        x = torch.zeros(len(pieces), model.num_sites, dtype=torch.int64)
        known, asked = torch.zeros_like(x, dtype=torch.bool), torch.zeros_like(x, dtype=torch.bool)
        for i, piece in enumerate(pieces):
            begin, end = len(piece.before), len(piece.before) + len(piece.asked)
            x[i, :end] = torch.tensor(piece.before + piece.asked)
            known[i, :begin] = True
            asked[i, begin:end] = True
        row = torch.tensor([piece.row for piece in pieces])
        x, known, asked, row = (part.to(model.device) for part in (x, known, asked, row))
        with self.loaded.computing():
            nats = conditional.bound(model, x, known, asked, None, self.num_samples, self.seed, row)
            first = torch.zeros(len(x), dtype=torch.bool)
            if greedy:
                first = conditional.is_most_probable(model, x, known, asked, None, self.seed)
        return nats.cpu(), first.cpu()

    def _pieces(self, requests: Sequence[Any], pairs: Sequence[tuple[list[int], list[int]]]) -> list[Piece]:
        """Too long a context loses its beginning. Too long a continuation is scored in pieces of half a row, each given
        the half row before it. Both are printed."""
        n = self.loaded.model.num_sites
        found, cut, split = [], 0, 0
        for number, (request, (context, asked)) in enumerate(zip(requests, pairs, strict=True)):
            if not asked:
                raise ValueError(f"request {number}: the continuation {request.args[-1]!r} has no token to be scored")
            row = number if request.doc_id is None else request.doc_id
            size = len(asked) if len(asked) <= n else max(1, n // 2)
            split += len(asked) > n
            cut += len(context) + size > n
            for start in range(0, len(asked), size):
                before, some = context + asked[:start], asked[start : start + size]
                found.append(Piece(number, row, before[max(0, len(before) + len(some) - n) :], some))
        self._say(cut, len(pairs), f"contexts lost their beginning to fit into {n} tokens")
        self._say(split, len(pairs), f"continuations are longer than {n} tokens and were scored in pieces")
        return found

    # ------------------------------------------------------------------ texts

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to the first of the texts in `until`: max_gen_toks tokens (256) as far as they
        fit; the most probable ones (temperature 0) unless do_sample or a temperature is given."""
        return [self._continued(number, *request.args) for number, request in enumerate(requests)]

    def _continued(self, number: int, context: str, options: dict[str, Any]) -> str:
        model = self.loaded.model
        n, before = model.num_sites, self._encoded(context)
        length = min(int(options.get("max_gen_toks", _TOKENS)), max(1, n // 2))
        self._say(int(len(before) + length > n), 1, f"contexts lost their beginning to fit into {n} tokens")
        before = before[max(0, len(before) + length - n) :]
        values = torch.zeros(n, dtype=torch.int64)
        values[: len(before)] = torch.tensor(before, dtype=torch.int64)
        temperature = float(options.get("temperature", 1.0 if options.get("do_sample") else 0.0))
        with self.loaded.computing():
            drawn = model.sample(
                1,
                self.num_steps,
                clamp=(values, torch.arange(n) < len(before)),
                row=torch.tensor([number]),
                sampler=self.sampler,
                seed=self.seed,
                temperature=temperature,
            )
        assert model.codec is not None
        text = model.codec.decode(drawn.x[:, len(before) : len(before) + length])[0]
        until = options.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop)[0] if stop else text
        return text

    def _encoded(self, text: str) -> list[int]:
        assert self.loaded.model.codec is not None
        return self.loaded.model.codec.encode(text) if text else []

    def _encoded_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the harness does it: white space at the end of the context belongs to the continuation, and the tokens of
        both are those of the whole text."""
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        whole, before = self._encoded(bare + continuation), self._encoded(bare)
        return before, whole[len(before) :]

    def _say(self, count: int, of: int, what: str) -> None:
        if count:
            print(f"ggm: {count} of {of} {what}", file=sys.stderr)

    @property
    def tokenizer_name(self) -> str:
        """By which the harness tells caches of requests apart."""
        assert self.loaded.model.codec is not None
        return self.loaded.model.codec.tokenizer_hash


def main() -> None:
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
