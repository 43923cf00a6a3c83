"""The page of a sweep: its plots say where the points are, its words who is ahead, and nothing is fetched."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ggm_lightning.report.sweep_charts import Curve, Dot, Plot, log_ticks, svg
from ggm_lightning.report.sweep_page import Row, Sweep, plots, summary, verdicts, write_sweep


def row(name: str, steps: int | None, temperature: float, judge: float, entropy: float, rows: float = 8.0) -> Row:
    figures: dict[str, float | None] = {"judge": judge, "judge_stderr": 0.02, "entropy": entropy}
    figures |= {"entropy_stderr": 0.01, "distinct_2": 0.3, "distinct_4": None, "duplicates": 0.0}
    figures |= {"rows_per_sample": rows, "network_calls": 9, "seconds": 6.0}
    return Row(name, steps, temperature, 1.0, figures)


ROWS = [
    row("<md4>", 8, 0.7, 4.0, 4.2),
    row("<md4>", 8, 1.0, 6.0, 4.8),
    row("<md4>", 64, 0.7, 3.0, 4.2, 64.0),
    row("<md4>", 64, 1.0, 5.0, 4.8, 64.0),
    row("ar", None, 0.7, 2.5, 4.3, 128.0),
    row("ar", None, 1.0, 3.5, 4.7, 128.0),
]
SWEEP = Sweep(ROWS, row("", None, 1.0, 3.2, 4.5).figures, 50, 64, "a judge", "seconds", 8, {"ggm, 2 steps": "<few>"})


def points(drawing: str) -> list[tuple[float, float]]:
    tree = ElementTree.fromstring(drawing)
    circles = tree.iterfind(".//{*}g/{*}circle")
    return [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in circles]


def test_both_axes_are_logarithmic() -> None:
    """Equal factors are equal distances; on a straight axis they are not."""
    dots = [Dot(8.0, 2.0), Dot(64.0, 4.0), Dot(512.0, 8.0)]
    (a, b), (c, d), (e, f) = points(svg(Plot("x", "y", [Curve("k", 0, dots)], log=True)))
    assert c - a == pytest.approx(e - c, abs=0.2)
    assert b - d == pytest.approx(d - f, abs=0.2)
    (a, b), (c, d), (e, f) = points(svg(Plot("x", "y", [Curve("k", 0, dots)])))
    assert e - c > 5 * (c - a)
    assert a < c < e
    assert b > d > f


def test_what_the_plots_show() -> None:
    drawn = plots(SWEEP)
    by_rows = {curve.key: [(dot.x, dot.y, dot.error) for dot in curve.dots] for curve in drawn["rows"].curves}
    assert by_rows == {"<md4>": [(8.0, 6.0, 0.02), (64.0, 5.0, 0.02)], "ar": [(128.0, 3.5, 0.02)]}  # temperature 1
    assert drawn["rows"].level == (3.2, 0.02)
    frontier = [(curve.key, [(dot.x, dot.y, dot.text) for dot in curve.dots]) for curve in drawn["frontier"].curves]
    assert frontier == [
        ("<md4>", [(4.2, 4.0, ""), (4.8, 6.0, "8")]),
        ("<md4>", [(4.2, 3.0, ""), (4.8, 5.0, "64")]),
        ("ar", [(4.3, 2.5, ""), (4.7, 3.5, "")]),
    ]
    assert drawn["frontier"].mark == (4.5, 0.01, 3.2, 0.02)
    assert [curve.strength for curve in drawn["frontier"].curves] == pytest.approx([0.675, 1.0, 1.0])
    assert drawn["seconds"].curves[0].dots[0].x == pytest.approx(6 / 64)
    none = Sweep([*ROWS, Row("bad", 8, 1.0, 1.0, dict.fromkeys(ROWS[0].figures))], SWEEP.real, 50, 64, "a judge")
    assert [curve.dots for curve in plots(none)["rows"].curves if curve.key == "bad"] == [[]]


def test_error_bars_and_real_text_are_drawn() -> None:
    drawing = svg(plots(SWEEP)["rows"])
    assert drawing.count('class="error"') == 3
    assert drawing.count('class="real"') == 1
    assert drawing.count("real text") == 1
    assert svg(plots(SWEEP)["frontier"]).count('class="cross"') == 2  # in the plot and in the key
    assert "&lt;md4&gt;" in drawing
    assert "<md4>" not in drawing


def test_who_is_ahead_at_equal_entropy() -> None:
    few, many = verdicts(SWEEP)
    assert few.startswith("8 steps: at entropy 4.500 ar 3.000 ±")
    assert "<md4> 5.000 ±" in few
    lead = 5.0 - 3.0
    # judge's 0.02 and the slope (2 / .6, 1 / .4) times the entropy's 0.01
    error = math.hypot(0.02 + 2 / 0.6 * 0.01, 0.02 + 1 / 0.4 * 0.01)
    assert f"ar is ahead of <md4> by {lead:.3f} ± {error:.3f}." in few
    assert "<md4> 4.000 ±" in many
    near = [row("b", 8, 0.7, 2.45, 4.3), row("b", 8, 1.0, 3.45, 4.7), *ROWS[4:]]
    (even,) = verdicts(Sweep(near, SWEEP.real, 50, 64, "a judge"))
    assert even.endswith("b and ar cannot be told apart.")


def test_the_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    write_sweep(tmp_path, SWEEP)
    text = (tmp_path / "sweep.html").read_text()
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"<(script|link|img|iframe)|url\(|@import", text)
    assert "<md4>" not in text
    assert "<few>" not in text
    assert "ggm, 2 steps: &lt;few&gt;" in text
    assert "6 of 8 cells" in text
    assert text.count("<svg") == 6  # three plots, each wide and narrow
    assert text.count("<tr") == 1 + 1 + len(ROWS)


def test_files(tmp_path: Path) -> None:
    write_sweep(tmp_path, SWEEP)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "frontier.svg",
        "rows.svg",
        "seconds.svg",
        "sweep.html",
        "table.csv",
    ]
    with (tmp_path / "table.csv").open() as file:
        real, first, *_, last = csv.DictReader(file)
    assert (real["sampler"], real["judge"], real["distinct_4"]) == ("real text", "3.2", "")
    assert (first["sampler"], first["steps"], first["temperature"], first["judge"]) == ("<md4>", "8", "0.7", "4.0")
    assert (last["steps"], last["rows_per_sample"], last["seconds_per_sample"]) == ("", "128.0", str(6 / 64))
    for name in ("rows", "frontier", "seconds"):
        ElementTree.fromstring((tmp_path / f"{name}.svg").read_text())


def test_for_the_terminal() -> None:
    lines = summary(SWEEP).splitlines()
    assert lines[0] == "Judged by a judge, bits per token"
    assert lines[1].startswith("sampler")
    assert lines[1].split()[1:8] == ["steps", "temperature", "judge", "±", "entropy", "±", "distinct"]
    assert "distinct 4" not in lines[1]  # where no row has a figure, there is no column
    assert lines[2].startswith("real text")
    assert lines[-1].startswith("64 steps: ")


def test_ticks_of_a_logarithmic_axis() -> None:
    assert log_ticks(7.0, 1100.0, 9) == pytest.approx([10, 20, 50, 100, 200, 500, 1000])
    assert log_ticks(7.0, 1100.0, 5) == pytest.approx([10, 30, 100, 300, 1000])
    short = log_ticks(2.9, 3.7, 7)
    assert 3 <= len(short) <= 9
    assert all(2.9 <= value <= 3.7 for value in short)
