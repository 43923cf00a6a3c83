"""Separated words back into running text: each rule on its own, and on the real corpora where they are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ggm_lightning.data.detokenise import DETOKENISERS, lambada, lm1b, ptb, wikitext


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (" = Title = \n", " = Title =\n"),
        (" = = Early life = = \n", " == Early life ==\n"),
        (" = = = 2000 to 2005 = = = \n", " === 2000 to 2005 ===\n"),
        (" = = = = Deep = = = = \n", " ==== Deep ====\n"),
        ("a guest @-@ starring role , 1 @,@ 234 at 2 @.@ 5 %", "a guest-starring role, 1,234 at 2.5 %"),
        ("one ; two : three . Four ! Five ? Six", "one; two: three. Four! Five? Six"),
        ("the ship ( built in 1912 ) [ sic ] { a }", "the ship (built in 1912) [sic] {a}"),
        ('a role as " Craig " in', 'a role as "Craig" in'),
        ("called ' the Bill ' here", "called 'the Bill' here"),
        ("Teddy 's story", "Teddy's story"),
        ("the actors ' guild", "the actors' guild"),
        ("at 12 ° N of it", "at 12°N of it"),
        ("at N of it", "at 1 of it"),
        ("the end . \n", "the end.\n"),
    ],
)
def test_wikitext(given: str, wanted: str) -> None:
    assert wikitext(given) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("no it was n't black monday", "no it wasn't black monday"),
        ("the company 's and the traders ' loss", "the company's and the traders' loss"),
        ("rose N N to $ N billion", "rose 1 1 to $1 billion"),
        ("from N", "from N"),  # only between spaces, as in the published pipelines
        ("# N <unk> n.v.", "#1 ? n.v."),
        (r"a 50\/50 chance", "a 50/50 chance"),
    ],
)
def test_ptb(given: str, wanted: str) -> None:
    assert ptb(given) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("But now , it 's looking like Reps who won 't talk .", "But now, it's looking like Reps who won't talk."),
        ("He ran . She sang . All sat .", "He ran. She sang. All sat."),
        ("So . There", "So . There"),  # a word at the very beginning has no space before it, and the rule wants one
        ("Really ? Yes ! Sure ?", "Really? Yes! Sure?"),
        ('He said " we will " and left ( early ) [ then ] .', 'He said "we will" and left (early) [then] .'),
        ("the ' old guard ' rose", "the 'old guard' rose"),
        ("$ 2,900 or £ 5 : and / or ; both", "$2,900 or £5: and/or; both"),
        ("see http : / / a.b and https : / / c.d", "see http://a.b and https://c.d"),
    ],
)
def test_lm1b(given: str, wanted: str) -> None:
    assert lm1b(given) == wanted


def test_lambada() -> None:
    assert lambada("  \u201cYes,\u201d he said.\n\n\u2018No\u2019 ") == '\n"Yes," he said.\n\n\u2018No\u2019'


@pytest.mark.parametrize("name", DETOKENISERS)
def test_running_text_is_left_alone(name: str) -> None:
    text = 'He said so, in 1999: nothing (at all) was lost; "quite" so. Isn\'t it? Yes!'
    assert DETOKENISERS[name](text).removeprefix("\n") == text
    assert DETOKENISERS[name]("").strip() == ""


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def test_wikitext_with_and_without_its_rare_words(real_data: Path) -> None:
    """.raw and .tokens differ in <unk> alone. So lines without it agree, 2,134 of 4,358 (1,467 are blank); of
    the others all do when a word is put for each <unk>, but for 40: the rules look at the s and the apostrophes of rare
    words, too."""
    raw, tokens = (_lines(real_data / "wikitext2" / f"wiki.test.{kind}") for kind in ("raw", "tokens"))
    pairs = [(wikitext(one), wikitext(two)) for one, two in zip(raw, tokens, strict=True)]
    assert len(pairs) == 4358
    assert sum(not one.strip() for one in raw) == 1467
    assert sum(one == two for one, two in pairs) == sum("<unk>" not in two for two in tokens) == 2134
    filled = [re.fullmatch(re.escape(two).replace("<unk>", r"\S+?"), one) is not None for one, two in pairs]
    assert sum(filled) == 4358 - 40
    before, after = "".join(raw), "".join(one for one, _ in pairs)
    for sign, times, left in (
        (" @-@ ", 2114, 0),
        (" , ", 11120, 0),
        (" . ", 8919, 0),
        (" 's ", 1444, 0),
        (" ( ", 1615, 10),
    ):
        assert (before.count(sign), after.count(sign)) == (times, left), sign


def test_sentences_of_lm1b(real_data: Path) -> None:
    lines = [line.rstrip("\n") for line in _lines(real_data / "lm1b" / "1b_benchmark.dev.tokens")]
    assert len(lines) == 12216
    assert lm1b(lines[0]) == (
        "But now, it's looking like the page that list Reps who won't talk will be the most popular."
    )
    before, after = "\n".join(lines), "\n".join(map(lm1b, lines))
    for sign, times, left in (
        (" , ", 14218, 0),
        (" .\n", 11504, 361),
        (" 's", 2804, 4),
        (" ? ", 81, 0),
        ("$ ", 477, 0),
    ):
        assert (before.count(sign), after.count(sign)) == (times, left), sign


def test_passages_of_lambada(real_data: Path) -> None:
    with open(real_data / "lambada" / "lambada_test.first500.jsonl", encoding="utf-8") as file:
        passages = [lambada(json.loads(line)["text"]) for line in file]
    assert len(passages) == 500
    assert all(re.match(r"\n\S", one) and one == "\n" + one.strip() for one in passages)
    assert not any(sign in one for one in passages for sign in "\u201c\u201d")
