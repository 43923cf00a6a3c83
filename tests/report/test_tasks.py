"""Tasks of the data: all ways get the same ones, and the page says which share came out right, beside chance."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from ggm_lightning.codecs.grids import Grids
from ggm_lightning.report.callback import Report
from ggm_lightning.report.story import read_story
from ggm_lightning.report.tasks import answered
from ggm_lightning.sampling.request import Samples
from tests.callbacks.tiny import B, N, TinyData, V

SIDE, COUNT = 2, 11


class Squares:
    """Rows of 2 x 2 cells, of which the first is given; right is what repeats it."""

    task = "Repeat it"
    codec = Grids("abcdefg", SIDE)

    def tasks(self, count):
        solution = (torch.arange(count) % V)[:, None].repeat(1, SIDE**2)
        return solution, torch.arange(SIDE**2).expand(count, -1) == 0

    def right(self, x, solution):
        return (x == solution).all(1)

    def guessed(self, solution, known):
        return torch.where(known, solution, 0)


def fill(count, clamp, trace, shift=0):
    """Repeats what is given, the first `shift` rows with a mistake."""
    solution, known = clamp
    x = solution.clone()
    x[:shift, -1] = (x[:shift, -1] + 1) % V
    return Samples(x, 3, [torch.where(known, solution, V), x] if trace else None)


def test_shares_of_each_way_and_of_chance(tmp_path) -> None:
    found = answered(Squares(), {"sure": {}, "careless": {"shift": 3}}, COUNT, fill, tmp_path)
    assert found["table"] == pytest.approx({"sure": 1.0, "careless": 8 / 11, "by chance": 2 / 11})
    assert found["images"] == {"sure": "filled-1.gif", "careless": "filled-2.gif"}


def test_the_frame_says_right_or_wrong(tmp_path) -> None:
    """In the first picture, which is the finished one; the next has none yet."""
    answered(Squares(), {"first wrong": {"shift": 1}}, COUNT, fill, tmp_path)
    with Image.open(tmp_path / "filled-1.gif") as gif:
        finished = gif.convert("RGB")
        gif.seek(1)
        begun = gif.convert("RGB")
    left, right = finished.getpixel((0, 0)), finished.getpixel((finished.width - 1, 0))
    assert left[0] > 150 > left[1]  # red
    assert right[1] > 150 > right[0]  # green
    assert begun.getpixel((0, 0)) == (255, 255, 255)


class Asks(TinyData):
    """Tiny data whose rows can be asked for."""

    task = "Which row is it?"

    def tasks(self, count):
        return torch.zeros(count, N, dtype=torch.int64), torch.zeros(count, N, dtype=torch.bool)

    def right(self, x, solution):
        return torch.arange(len(x)) < 1

    def guessed(self, solution, known):
        return solution

    def compare(self, drawn):
        return {"Letters": {name: float(len(texts)) for name, texts in drawn.items()}}


class Filler:
    """Adds to a model's `sample` what fillings ask for."""

    def __call__(self, cls):
        class Fills(cls):
            def sample(self, num_samples, num_steps, clamp=None, **options):
                return super().sample(num_samples, num_steps, **options)

        return Fills


def test_on_the_page(tiny, fit, tmp_path) -> None:
    """The words of the experiment, further samples under their names with tables of all, the task above the figures."""
    report = Report(
        num_samples=B,
        about="One sees <this>.",
        further={"sharpened": {"temperature": 0.5}},
        fillings={"drawn": {}},
        num_tasks=5,
    )
    fit(Filler()(tiny)(), report, data=Asks(), max_epochs=1)
    text, story = (tmp_path / "report.html").read_text(), read_story(tmp_path)
    assert story.task["table"] == {"drawn": 0.2, "by chance": 0.2}
    assert story.tables == {"Letters": {"plain": 2.0, "sharpened (temperature 0.5)": 2.0}}
    parts = ["One sees &lt;this&gt;.", "Which row is it?", "by chance", "upper bound", "<h3>plain</h3>"]
    places = [text.index(part) for part in [*parts, "<h3>sharpened (temperature 0.5)</h3>"]]
    assert places == sorted(places)
    assert text.count("<pre>") == 2 * B


def test_refused_before_training(tiny, fit) -> None:
    with pytest.raises(ValueError, match="fillings is given, but the data set no tasks"):
        fit(tiny(), Report(fillings={"drawn": {}}), max_epochs=1)
    with pytest.raises(ValueError, match="num_tasks is 0"):
        Report(num_tasks=0)
