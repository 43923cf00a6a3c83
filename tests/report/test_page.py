"""report.html: well-formed, self-contained, safe against what samples may contain; the trace; the curve."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from ggm_lightning.report.chart import Line, chooser
from ggm_lightning.report.curve import curve_png, smoothed
from ggm_lightning.report.page import Figure, write_report
from ggm_lightning.report.pictures import grid, save_gif, save_png
from ggm_lightning.report.trace import final_step, first_row, trace_gif, trace_html

EVIL = '</script><script>alert("1")</script> & <b>\n'
VOID = {"meta", "img", "input", "br", "line", "circle", "polyline", "polygon"}
MASK = 7


class Page(HTMLParser):
    """Collects text, elements and addresses; fails at an end tag that does not fit."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.elements, self.text, self.addresses = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text.append((tuple(self.open), data))


@pytest.fixture
def states():
    """Sites take their final values at steps 1, 0 (prior), 3, 2 and 3, the last after a draft at 1."""
    final = np.array([0, 1, 2, 3, 4])
    rows = [
        [MASK, 1, MASK, MASK, MASK],
        [0, 1, MASK, MASK, 6],
        [0, 1, MASK, 3, 6],
        final,
    ]
    return [np.stack([row, np.zeros(5, int)]) for row in rows]


def pieces(ids):
    return [["a", "\n", "<i>", "&", EVIL, "f", "draft"][i] for i in ids]


@pytest.fixture
def page(tmp_path, states):
    save_png(np.zeros((3, 3, 3), np.uint8), tmp_path / "a.png")
    line = Line(EVIL, "held-out", np.array([5.0, 10.0]), np.array([2.5, 2.25]), np.array([0.1, 0.1]), dots=True)
    curve = chooser({"optimiser steps": [line], EVIL: [line]}, EVIL, {EVIL: 2.4})
    path = tmp_path / "report.html"
    write_report(
        path,
        f"MD4 {EVIL}",
        curve,
        {"Bits per token": (2.25, 0.1), "Perplexity": (4.7568, None)},
        [EVIL, "\nfirst line empty", "\ud800 alone"],
        trace_html(states, pieces, MASK),
        {"Hardware": EVIL},
        {"Shares": {"samples": 0.25, EVIL: 1.0}, "Numbers": {"entropy": 5.25}},
        [Figure("Pictures", EVIL, {EVIL: tmp_path / "a.png"})],
    )
    return Page(path.read_text(encoding="utf-8"))


def test_page_is_balanced_and_self_contained(page):
    assert page.open == []
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert len(page.addresses) == 1
    everything = " ".join(data for _, data in page.text)
    assert not re.search(r"https?://|@import|url\(", everything)


def test_nothing_that_was_sampled_becomes_an_element(page):
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert scripts == [{"type": "application/json"}, {}]
    assert "b" not in {tag for tag, _ in page.elements}
    texts = [data for where, data in page.text if where[-1] == "pre"]
    assert texts[0] == "\n" + EVIL  # a parser of pages drops the line break after <pre>
    assert texts[1] == "\n\nfirst line empty"


def test_bounds_are_called_bounds(page):
    names = [data for where, data in page.text if "upper bound" in data and where[-1] == "div"]
    assert names == ["Bits per token, upper bound", "Perplexity, upper bound"]
    everything = " ".join(data for _, data in page.text)
    for value in ("2.2500", "± 0.1000", "4.7568", "25.0%", "5.25"):
        assert value in everything


def test_trace_shows_the_final_text_without_scripts(page):
    spans = [dict(attributes) for tag, attributes in page.elements if tag == "span"]
    assert [span["title"] for span in spans] == [f"step {k}" for k in (1, 0, 3, 2, 3)]
    assert "".join(data for where, data in page.text if where[-1] == "span") == "a\n<i>&" + EVIL


def test_trace_holds_every_token_that_was_there(page):
    (history,) = [json.loads(data) for where, data in page.text if where[-1] == "script" and data.startswith("[")]
    assert history == [[[1, "a"]], [[0, "\n"]], [[3, "<i>"]], [[2, "&"]], [[1, "draft"], [3, EVIL]]]


def test_final_step_is_for_images_too():
    states = [np.full((1, 2, 3), MASK), np.arange(6).reshape(1, 2, 3), np.arange(6).reshape(1, 2, 3) % 5]
    assert final_step(first_row(states)).tolist() == [[1, 1, 1], [1, 1, 2]]


def test_trace_of_images_is_refused():
    with pytest.raises(ValueError, match="it shows texts"):
        trace_html([np.zeros((1, 2, 3), int)] * 2, pieces, MASK)


def test_a_mask_that_stays_is_shown_as_a_blank():
    assert ">_</span>" in trace_html([np.array([[MASK, 0]])] * 2, pieces, MASK)


def test_writing_fails_without_touching_the_old_report(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(AttributeError):
        write_report(path, "x", None, {}, [None], "", {}, {})
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"val/bpd": [(1, 2.0)]},
        {"train/loss": [(1, math.inf), (2, 2.0)]},
        {"train/bpd": [(k, 3.0) for k in range(50)], "val/bpd": [(49, 3.0)], "val/bpd_stderr": [(49, 0.1)]},
    ],
)
@pytest.mark.parametrize("scale", [None, 4.0])
def test_curve_of_few_points(tmp_path, metrics, scale):
    curve_png(metrics, {f"order-{k}": 3 + 0.001 * k for k in range(4)}, scale, tmp_path / "curve.png")
    width, height = Image.open(tmp_path / "curve.png").size
    assert width / height == pytest.approx(900 / 500, rel=0.01)


def test_smoothing_keeps_lines_and_averages_noise():
    line = np.linspace(3, 2, 101)
    np.testing.assert_allclose(smoothed(line)[:99], line[:99], atol=1e-12)
    noisy = line + np.where(np.arange(101) % 2, 0.5, -0.5)
    assert np.abs(smoothed(noisy, 0.4)[20:] - line[20:]).max() < 0.1
    assert smoothed([2.0]).tolist() == [2.0]


def test_grid_puts_images_in_rows(tmp_path):
    images = np.arange(3, dtype=np.uint8)[:, None, None] + np.zeros((1, 5, 7), np.uint8)
    canvas = grid(images, columns=2)
    assert canvas.shape == (11, 15, 3)
    assert canvas[0, 0].tolist() == [0, 0, 0]
    assert canvas[0, 8].tolist() == [1, 1, 1]
    assert canvas[6, 0].tolist() == [2, 2, 2]
    assert canvas[5, 0].tolist() == [255, 255, 255]
    save_png(canvas, tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size == (15 * 23, 11 * 23)
    with pytest.raises(ValueError, match="uint8 images"):
        grid(np.zeros((2, 5)))


def levels(states):
    """A decoder of two levels and a mask, which is red."""
    table = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0]], np.uint8)
    return table[np.asarray(states)[:, 0]]


def frames_of(path):
    with Image.open(path) as image:
        assert image.info["loop"] == 0  # for ever
        frames, times = [], []
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
            times.append(image.info["duration"])
        return frames, times


def test_gif_from_the_prior_to_the_samples(tmp_path):
    rng = np.random.default_rng(0)
    x, appears = rng.integers(2, size=(6, 1, 5, 7)), rng.random((6, 1, 5, 7))
    states = [np.where(appears < k / 128, x, 2) for k in range(129)]
    assert trace_gif(states, levels, tmp_path / "t.gif", columns=3) == 6
    frames, times = frames_of(tmp_path / "t.gif")
    scale = 256 // 11
    assert frames[0].shape == (11 * scale, 23 * scale, 3)
    assert len(frames) == 37
    assert (frames[0] == frames[-1]).all()  # paper shows the samples, not the prior
    frames = frames[1:]
    assert times[-1] > 5 * times[1]  # the end is held
    expected = [grid(levels(states[round(i * 128 / 35)]), 3) for i in range(36)]
    for frame, exact in zip(frames, expected, strict=True):
        assert (frame[::scale, ::scale] == exact).all()  # every pixel in its very colour
        assert (frame[scale - 1 :: scale, scale - 1 :: scale] == exact).all()


def test_gif_of_few_steps_and_of_many_pictures(tmp_path):
    states = [np.full((50, 1, 60, 60), k) for k in (2, 0, 1)]
    assert trace_gif(states, levels, tmp_path / "t.gif", columns=10) == 20  # whole rows of at most 90,000 pixels
    frames, _ = frames_of(tmp_path / "t.gif")
    assert len(frames) == 4
    assert frames[0].shape[1] // frames[0].shape[0] == 5


def test_gif_of_more_than_256_colours(tmp_path):
    ramp = np.linspace(0, 255, 64 * 64).reshape(64, 64)
    frames = [np.stack([ramp, ramp.T, np.full_like(ramp, 40 * k)], -1).astype(np.uint8) for k in range(4)]
    save_gif(frames, tmp_path / "t.gif", smallest_side=64)
    shown, _ = frames_of(tmp_path / "t.gif")
    errors = [np.abs(a.astype(int) - b).mean() for a, b in zip(shown, frames, strict=True)]
    assert max(errors) < 20  # 16,384 colours by 256
    assert np.abs(shown[0].astype(int) - frames[3]).mean() > 40  # control


def test_figures_are_in_the_page(tmp_path, states):
    save_png(np.zeros((3, 3, 3), np.uint8), tmp_path / "a.png")
    save_gif([np.zeros((3, 3, 3), np.uint8)] * 2, tmp_path / "b.gif")
    figure = Figure("Pictures", "seen `here` <b>", {EVIL: tmp_path / "a.png", "moving": tmp_path / "b.gif"})
    write_report(tmp_path / "r.html", "x", None, {}, [], "", {}, {}, [figure])
    page = Page((tmp_path / "r.html").read_text())
    assert page.open == []
    assert [address.split(",")[0] for address in page.addresses] == ["data:image/png;base64", "data:image/gif;base64"]
    captions = [data for where, data in page.text if where[-1] == "figcaption"]
    assert captions == [EVIL, "moving"]
    assert [data for where, data in page.text if where[-1] == "code"] == ["here"]
