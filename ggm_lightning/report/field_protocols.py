"""How published figures of discrete diffusion on text were measured, to stand beside ours. Read from their sources."""

from __future__ import annotations

HEAD = ("figure", "protocol", "published")
PROTOCOLS = (
    (
        "validation perplexity, OpenWebText",
        "the last 100,000 documents, blocks of 1,024, GPT-2's tokens, averaged weights",
        "MD4-S 22.13; duo++ 25.2",
    ),
    (
        "zero-shot perplexity",
        "SEDD's, --protocol sedd: LAMBADA, WikiText2, PTB, WikiText103, LM1B",
        "MD4-S 48.43 / 34.94 / 102.26 / 35.90 / 68.10",
    ),
    (
        "gen-ppl and entropy",
        "MDLM, duo: judge gpt2-large, 1,024 tokens, draws in float64, 1,000 steps or a sweep; --judge_rule mdlm",
        "MDLM by duo's older code 40.7 at entropy 5.28 (a bug: its GitHub issue 16)",
    ),
    (
        "and MAUVE",
        "ReMDM: 5,000 samples, 1,024 steps, top_p .9; reference 5,000 validation blocks",
        "none that can be quoted",
    ),
    (
        "quality against steps",
        "LADD: 2, 8, 32, 128, 512 steps, OpenWebText of 512 Qwen3 tokens, judge gpt2-large",
        "none in its files",
    ),
)
