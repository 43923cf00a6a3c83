"""The page of a run that was killed, stopped, finished; of two; of an old folder; of one that means harm."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from ggm_lightning.cli.report import report
from ggm_lightning.report.callback import Report
from ggm_lightning.report.figures import closing_line, words_of
from ggm_lightning.report.page import write_run_page
from ggm_lightning.report.pictures import save_png
from ggm_lightning.report.story import Run, Story, read_run, read_story, write_story
from ggm_lightning.rundir.csv_log import CSVLog
from ggm_lightning.rundir.endings import NonFinite, Stopped
from tests.callbacks.tiny import N, TinyData, V
from tests.report.test_page import EVIL, Page


class Ends(Callback):
    """Raises at a step, as a signal, the guard or a user's code does; the page that is there is kept."""

    def __init__(self, step, error, folder):
        self.step, self.error, self.folder, self.seen = step, error, folder, ""

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            self.seen = (self.folder / "report.html").read_text()
            raise self.error


class Rows:
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": torch.as_tensor(self.x[index])}


class Data(TinyData):
    def rows(self, split):
        return Rows(np.arange(3 * N).reshape(3, N) % V)


@pytest.fixture
def run(tiny, fit, tmp_path):
    """run(error, step) -> what killed it saw of the page, and the page after that; validations every second step."""

    def go(error=None, step=3, **more):
        ends = Ends(step, error, tmp_path)
        callbacks = [Report(num_samples=3, num_steps=2, at_validations=2), *([ends] if error else [])]
        options = {"max_epochs": -1, "max_steps": 5, "val_check_interval": 2, "check_val_every_n_epoch": None, **more}
        train = lambda: fit(tiny(), *callbacks, data=Data(12), logger=CSVLog(str(tmp_path)), **options)  # noqa: E731
        if error is None:
            train()
        else:
            with pytest.raises(type(error)):
                train()
        return ends.seen, (tmp_path / "report.html").read_text()

    return go


def headings(text):
    return [data for where, data in Page(text).text if where[-1] == "h2"]


def state(text):
    return re.sub("<.*?>", "", re.search(r'<p class="state.*?</p>', text, re.DOTALL)[0])


def test_of_a_killed_run(run):
    """What lies there at the kill: of the last validation, with curve and samples, and a word on what may be."""
    killed, _ = run(RuntimeError("out of luck"))
    assert state(killed).startswith("Running, step 2 of 5")
    assert "it was killed" in state(killed)
    assert {"Learning curve", "Samples", "The run", "How it was started"} <= set(headings(killed))
    assert "One sample, step by step" not in headings(killed)
    assert "2.7500" in killed
    assert killed.count("<pre>\n") == 2
    assert 'class="real"' in killed  # a held-out text


def test_of_a_crashed_run(run):
    _, crashed = run(RuntimeError(f"out of luck {EVIL}"))
    assert state(crashed).startswith("Ended by an error, step 3 of 5: RuntimeError: out of luck")
    assert [tag for tag, _ in Page(crashed).elements].count("script") == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            Stopped("stopped by Ctrl-C after step 3; last.ckpt is saved", 130),
            "Stopped, step 3 of 5: by Ctrl-C after step 3",
        ),
        (NonFinite("loss is not finite since step 3"), "Stopped, step 3 of 5: loss is not finite since step 3"),
        (KeyboardInterrupt(), "Stopped, step 3 of 5: by Ctrl-C"),
    ],
)
def test_of_a_stopped_run(run, error, said, tmp_path):
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(SystemExit):  # Lightning turns it into that
            run(error)
        stopped = (tmp_path / "report.html").read_text()
    else:
        _, stopped = run(error)
    assert state(stopped).startswith(said)
    assert "The figures are of step 2, the last validation; the run has gone on to step 3." in stopped
    assert read_story(tmp_path).complete is False


def test_of_a_finished_run(run, tmp_path):
    _, finished = run()
    assert state(finished).startswith("Finished, step 5 of 5")
    assert {"One sample, step by step", "Share of words"} <= set(headings(finished))
    assert finished.count("<pre>\n") == 3
    story = read_story(tmp_path)
    assert (story.complete, story.sampled_at, story.per_step) == (True, 5, None)
    assert re.fullmatch(
        r"Data: 3 training rows \(fingerprint (\w{12})\), 3 held-out rows \(fingerprint \1\)", story.facts["Data"]
    )
    (start,) = story.starts
    assert {"Command", "Date", "Versions"} <= start.keys()
    page = Page(finished)
    assert page.open == []
    assert page.addresses == []  # nothing to load
    assert not re.search(r"https?://|@import|url\(", finished)
    assert closing_line(read_run(tmp_path)) == (
        "finished at step 5; bits per character: 2.7500 ± 0.1250 (held-out, upper bound, of step 4)"
    )


def test_of_a_run_that_had_no_time_left(run, tmp_path):
    _, text = run(max_time=None, max_steps=5)
    assert "time limit" not in text
    _, text = run(max_steps=50, max_time={"seconds": 0}, min_steps=3)
    assert state(text).startswith("Stopped, step 12 of 50: by its time limit")
    assert closing_line(read_run(tmp_path)).startswith("stopped at step 12 by its time limit (trainer.max_time); bits")


def test_no_failure_ends_a_run(tiny, fit, tmp_path):
    """Every way to fail: one warning, and the run goes on to its end."""

    class Broken(Report):
        def _told(self, trainer, pl_module):
            raise RuntimeError("no luck")

    with pytest.warns(UserWarning, match="report cannot be written") as warned:
        trainer = fit(tiny(), Broken(), max_epochs=3)
    assert trainer.global_step == 3
    assert len([w for w in warned if "report cannot be written" in str(w.message)]) == 1


def test_drawing_early_leaves_training_as_it_is(tiny, tiny_data, fit):
    weights = []
    for count in (0, 2):
        model = tiny()
        model.training_step = lambda batch, i, model=model, own=model.training_step: own(batch, i) * torch.rand(())
        torch.manual_seed(3)
        fit(model, Report(num_samples=2, num_steps=2, at_validations=count), data=tiny_data(3), max_epochs=2)
        weights.append(model.head.weight.detach().clone())
    assert torch.equal(*weights)


def test_drawing_early_takes_a_share_of_the_time(tiny, fit, monkeypatch):
    """A clock that only drawing moves: after the first drawing none is due; control: where it is cheap, each is."""
    for cost, expected in ((1.0, 1), (0.0, 4)):
        clock, drawn = [0.0], []
        monkeypatch.setattr("ggm_lightning.report.callback.time.monotonic", lambda clock=clock: clock[0])

        class Slow(Report):
            def _draw_early(self, trainer, pl_module, clock=clock, drawn=drawn, cost=cost):
                drawn.append(trainer.global_step)
                clock[0] += cost

        fit(tiny(), Slow(num_samples=2, num_steps=2), max_epochs=4)
        assert len(drawn) == expected


def story_of(**values) -> Story:
    return Story(model="MD4", state="running", step=10, num_classes=V, **values)


def run_of(tmp_path, bpd=2.0, step=10, **values) -> Run:
    return Run(tmp_path, story_of(**values), {"val/bpd": [(step, bpd)]}, "")


def test_the_closing_line_says_of_which_step_its_figure_is(tmp_path):
    story = story_of(exact=True)
    assert closing_line(Run(tmp_path, story, {"val/bpd": [(10, 2.0)]}, "")).endswith("2.0000 (held-out)")  # control
    older = Run(tmp_path, story, {"val/bpd": [(4, 2.5), (7, 2.0)], "train/bpd": [(10, 1.0)]}, "")
    assert closing_line(older).endswith("2.0000 (held-out, of step 7)")
    none = closing_line(Run(tmp_path, story, {"train/bpd": [(10, 1.0)]}, ""), "lightning x")
    assert none == "running at step 10; no figure, as no validation was due; measure one: lightning x"


def test_words_beside_figures(tmp_path):
    assert words_of(run_of(tmp_path, rows=100)) == []  # control: of usual figures nothing is said
    assert "of stage 1 (before step 11)" in words_of(run_of(tmp_path, stage1_steps=11))[0]
    assert words_of(run_of(tmp_path, stage1_steps=10)) == []
    assert "of 31 held-out rows only" in words_of(run_of(tmp_path, rows=31))[0]
    assert "7 classes alike" in words_of(run_of(tmp_path, bpd=2.9))[0]  # log2 7 is 2.81
    none = Run(tmp_path, story_of(), {"train/bpd": [(10, 2.0)]}, "")
    assert words_of(none) == ["No figure: no validation was due in 10 steps (trainer.val_check_interval)."]


def test_a_perplexity_of_four_billion_has_a_word(tmp_path):
    rows = "step,epoch,seconds,val/bpd,val/ppl,val/ppl_stderr\n10,0,1.0,32,4294967296,100000000\n"
    (tmp_path / "metrics.csv").write_text(rows)
    write_story(tmp_path, story_of())
    text = write_run_page(tmp_path).read_text()
    assert "4.29e+09" in text
    assert "as yet the bound says nothing of the model" in text


def test_everything_of_a_folder_is_escaped(tmp_path):
    """A story that somebody else wrote, in a folder of a wicked name."""
    folder = tmp_path / "<script>alert(1)<b>"
    folder.mkdir()
    (folder / "metrics.csv").write_text(f'step,seconds,val/bpd,"{EVIL.strip()}"\n10,1,2.5,3\n')
    (folder / "config.yaml").write_text(EVIL)
    values = {
        "said": EVIL,
        "facts": {EVIL: EVIL},
        "starts": [{EVIL: EVIL}],
        "example": [EVIL],
        "samples": [EVIL],
        "references": {EVIL: 2.0},
        "tables": {EVIL: {EVIL: 0.5}},
        "figures": [{"heading": EVIL, "note": EVIL, "images": {EVIL: "../../etc/passwd"}}],
        "trace": {"histories": [[[1, EVIL]]], "final": [1], "last": 1},
        "per_step": [EVIL, 3],
        "loss": "train/" + EVIL,
    }
    write_story(folder, Story(model=EVIL, state="stopped", step=10, **values))
    for path in (write_run_page(folder), both(folder, tmp_path)):
        page = Page(path.read_text())
        assert page.open == []
        tags = [tag for tag, _ in page.elements]
        assert tags.count("script") <= 2  # data and slider of the trace
        assert tags.count("b") <= 1  # the state
        assert page.addresses == []
        inside = [data for where, data in page.text if where[-1] == "script"]
        assert not any("alert" in data and not data.startswith("[") for data in inside)


def test_no_picture_from_outside_the_folder(tmp_path):
    save_png(np.zeros((3, 3, 3), np.uint8), tmp_path / "secret.png")
    figures = [{"heading": "Samples", "note": "", "images": {"a": "../secret.png"}}]
    folder = folder_of(tmp_path / "a", figures=figures)
    assert Page(write_run_page(folder).read_text()).addresses == []
    save_png(np.zeros((3, 3, 3), np.uint8), folder / "secret.png")  # control: one of its own
    (address,) = Page(write_run_page(folder).read_text()).addresses
    assert address.startswith("data:image/png;base64,")


def both(folder, tmp_path):
    report([folder, folder_of(tmp_path / "plain")], tmp_path / "both.html")
    return tmp_path / "both.html"


def folder_of(folder, bpd=2.25, **values):
    """Files of a small run."""
    folder.mkdir(parents=True)
    rows = [f"{step},{step / 2},{bpd + 1 / step},0.1,{bpd}" for step in (2, 4, 6)]
    (folder / "metrics.csv").write_text("\n".join(["step,seconds,val/bpd,val/bpd_stderr,train/bpd", *rows]) + "\n")
    about = {"state": "finished", "step": 6, "scale": 1.0, "per_step": ["tokens", N], "samples": [f"by {folder.name}"]}
    write_story(folder, Story(model="MD4", **{**about, **values}))
    return folder


def test_of_two_runs(tmp_path):
    a = folder_of(tmp_path / "a", facts={"Data": "D: 3 rows"}, example=["real"])
    b = folder_of(tmp_path / "b", 2.5, facts={"Data": "D: 3 rows"})
    said = report([a, b])
    path = tmp_path / "compared-a-b.html"
    assert said == f"written: {path.resolve()}"
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert page.addresses == []
    labels = [data for where, data in page.text if where[-1] == "label"]
    assert labels == ["optimiser steps", "tokens", "time"] * 2
    assert [data for where, data in page.text if where[-1] == "h3"] == ["a", "b"]
    assert "by a" in text
    assert "by b" in text
    assert "2.4167 ± 0.1000" in text
    assert "do not compare" not in text
    # control: other data are named
    other = folder_of(tmp_path / "c", facts={"Data": "E: 3 rows"})
    report([a, other], tmp_path / "other.html")
    assert "The runs are not of the same data" in (tmp_path / "other.html").read_text()


def test_a_page_of_something_else_stays(tmp_path):
    folder = folder_of(tmp_path / "a")
    (folder / "report.html").write_text("mine")
    assert report([folder]) == f"written: {folder}/report-2.html"
    assert report([folder]) == f"written: {folder}/report-2.html"  # a page of ours is written again
    assert (folder / "report.html").read_text() == "mine"
    with pytest.raises(ValueError, match="no page of this command"):
        report([folder], folder / "report.html")
    with pytest.raises(ValueError, match="named twice"):
        report([folder, tmp_path / "." / "a"])


def test_of_a_folder_without_a_story(tmp_path):
    """As earlier versions left it."""
    folder = folder_of(tmp_path / "a")
    (folder / "story.json").unlink()
    (folder / "samples").mkdir()
    (folder / "samples" / "step-000004.txt").write_text("----- sample 0 -----\nearlier one\n\n")
    (folder / "samples" / "step-000006.txt").write_text("----- sample 0 -----\nnewest\n\n----- sample 1 -----\nb\n\n")
    (folder / "config.yaml").write_text("model: {class_path: a.b.MD4}\ndata: {class_path: c.Text}\n")
    text = write_run_page(folder).read_text()
    for part in ("MD4: a", "newest", "2.4167", "earlier version"):
        assert part in text
    assert "earlier one" not in text
    assert state(text).startswith("Read from its folder, step 6")


def test_samples_of_an_abandoned_continuation_are_not_shown(tmp_path):
    folder = folder_of(tmp_path / "a", sampled_at=2)
    (folder / "samples").mkdir()
    (folder / "samples" / "step-000008.txt").write_text("----- sample 0 -----\nabandoned\n")
    assert "abandoned" not in write_run_page(folder).read_text()
    (folder / "samples" / "step-000006.txt").write_text("----- sample 0 -----\nvalid\n")  # control
    assert "valid" in write_run_page(folder).read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "no story of a run"),
        (json.dumps({"format": 1, "starts": "x"}), "'starts' is 'x'"),
        (json.dumps({"format": 1, "step": True, "facts": 3}), "'facts' is"),
        (json.dumps({"format": 1, "figures": [3]}), "is damaged"),
        (json.dumps({"format": 1, "trace": {"last": 2}}), "is damaged"),
    ],
)
def test_a_damaged_story_ends_in_one_line(tmp_path, content, said):
    (tmp_path / "story.json").write_text(content)
    with pytest.raises(ValueError, match=said) as raised:
        write_run_page(tmp_path)
    assert "story.json" in str(raised.value)
    assert not (tmp_path / "report.html").exists()


def test_no_run_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        read_run(tmp_path / "none")


def test_fingerprints_tell_data_apart():
    from ggm_lightning.data.fingerprints import rows_fingerprint

    x = np.arange(N * 11).reshape(11, N) % V
    same, changed = rows_fingerprint(Rows(x)), x.copy()
    changed[7, 3] = (changed[7, 3] + 1) % V
    assert rows_fingerprint(Rows(x.astype(np.uint8))) == same  # how they are kept is no difference
    assert len({same, rows_fingerprint(Rows(changed)), rows_fingerprint(Rows(x[:10]))}) == 3
