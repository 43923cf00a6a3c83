"""What a run folder tells: metrics.csv, config.yaml and story.json, of which its page is made, in the run and after.

story.json holds what the other files do not: how the run stands, how it was started, on which machine, with which data,
and what was drawn. `lightning report` needs no model, no data and no code of the user's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ggm_lightning.rundir.csv_log import FILE_NAME, Curve, read_metrics
from ggm_lightning.rundir.folder import write_whole

STORY = "story.json"
_OLDER = "none: the folder is of an earlier version, which kept less"


@dataclass
class Story:
    """How a run stands.

    Attributes:
        model: its class's name.
        state: running, finished, stopped, failed; unknown where the folder does not say.
        said: why it ended.
        step, max_steps: optimiser steps taken, and how many there are to be.
        loss: name of the training loss.
        measure: [name below val/, what it is] of what is drawn in place of a bound.
        exact: whether figures are -log p itself.
        scale: characters per token, for text.
        by_class: whether figures are given the class.
        num_classes: V.
        per_step: [name, count] of the axis beside steps and time: tokens of a global batch; of pictures, examples.
        rows: held-out rows behind a figure.
        stage1_steps: the first stage's, where a model has stages.
        results: of a model without bound, [[name below val/, title], ...].
        references: name -> bits per dimension.
        facts: of the machine, the weights, the data.
        starts: command, commit, versions, date and step of each start.
        example: held-out texts.
        about: what the page shows, in a few sentences.
        samples, sampled_at: texts drawn, and the step.
        further: name -> texts drawn in another way.
        task: what the data ask for and whether it came out right: {heading, note, images, table}, see report/tasks.py.
        trace: of trace.trace_data.
        tables: heading -> row -> number.
        figures: [{heading, note, images: {caption: file name}}, ...].
        written: when.
        latest: the metrics of that moment, where no metrics.csv is kept.
        complete: the fit came to its own end, and what belongs there is drawn.
    """

    model: str = "run"
    state: str = "unknown"
    said: str = ""
    step: int = 0
    max_steps: int | None = None
    loss: str = "train/bpd"
    measure: list[str] | None = None
    exact: bool = False
    scale: float | None = None
    by_class: bool = False
    num_classes: int | None = None
    per_step: list[Any] | None = None
    rows: int | None = None
    stage1_steps: int = 0
    results: list[list[str]] = field(default_factory=list)
    references: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    starts: list[dict[str, str]] = field(default_factory=list)
    example: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    sampled_at: int | None = None
    about: str = ""
    further: dict[str, list[str]] = field(default_factory=dict)
    task: dict[str, Any] | None = None
    trace: dict[str, Any] | None = None
    tables: dict[str, dict[str, float]] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    written: str = ""
    latest: dict[str, float] = field(default_factory=dict)
    complete: bool = False


@dataclass(frozen=True)
class Run:
    """A run folder as its page shows it."""

    folder: Path
    story: Story
    metrics: dict[str, Curve]
    config: str

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def write_story(folder: Path, story: Story) -> None:
    """story.json, as a whole or not at all."""
    text = json.dumps({"format": 1, **asdict(story)}, indent=1, ensure_ascii=True)
    write_whole(folder / STORY, f"{text}\n".encode())


def read_story(folder: Path) -> Story | None:
    """None where there is no story.json. Raises ValueError where it is no such file."""
    try:
        found = json.loads((folder / STORY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / STORY}: cannot be read ({error}); remove it, and the page does without") from None
    plain, known = Story(), {each.name for each in fields(Story)}
    if not isinstance(found, dict) or found.get("format") != 1:
        raise ValueError(f"{folder / STORY}: no story of a run of this version; remove it, and the page does without")
    for name, value in found.items():
        default = getattr(plain, name, None)
        fits = default is None or isinstance(value, int | float if isinstance(default, int) else type(default))
        if name != "format" and not fits:
            raise ValueError(f"{folder / STORY}: '{name}' is {str(value)[:80]!r}; remove it, and the page does without")
    return Story(**{name: value for name, value in found.items() if name in known})


def read_run(folder: Path) -> Run:
    """A run folder, also of an earlier version.

    Raises:
        ValueError: no run is there, or a file of it is damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; give that of a run, such as runs/demo")
    story = read_story(folder)
    configs = sorted(folder.glob("config*.yaml"), key=lambda file: file.stat().st_mtime)
    metrics = read_metrics(folder / FILE_NAME) if (folder / FILE_NAME).is_file() else {}
    if story is None and not metrics:
        raise ValueError(
            f"{folder}: holds no run ({FILE_NAME} and {STORY} are missing); give a folder of `lightning fit`"
        )
    if story is not None and not metrics:
        metrics = {str(name): [(story.step, float(value))] for name, value in story.latest.items()}
    config = configs[-1].read_text(encoding="utf-8", errors="replace") if configs else ""
    return Run(folder, story or _of_the_other_files(folder, metrics, config), metrics, config)


def _of_the_other_files(folder: Path, metrics: dict[str, Curve], config: str) -> Story:
    """Of a run that was trained before there was a story.json."""
    story = Story(facts={"Provenance": _OLDER})
    try:
        settings = yaml.safe_load(config) or {}
        story.model = str(settings["model"]["class_path"]).rpartition(".")[2]
        story.facts["Data"] = str(settings["data"]["class_path"]).rpartition(".")[2]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        pass  # the page does without
    losses = sorted(name for name in metrics if name.startswith("train/") and ("loss" in name or name == "train/bpd"))
    story.loss = "train/bpd" if "train/bpd" in losses or not losses else losses[0]
    story.step = max((curve[-1][0] for curve in metrics.values()), default=0)
    shown = {"Samples": "samples.png", "Filling in": "infilled.png", "Step by step": "trace.gif"}
    story.figures = [
        {"heading": heading, "note": "", "images": {name: name}}
        for heading, name in shown.items()
        if (folder / name).is_file()
    ]
    return story


def sample_file(run: Run) -> tuple[int, Path] | None:
    """(step, file) of the newest drawing of callbacks/samples.py, none of an abandoned continuation."""
    found = []
    for file in (run.folder / "samples").glob("step-*"):
        number = file.stem.removeprefix("step-").split("-")[0]
        if number.isdigit() and int(number) <= run.story.step and file.suffix in (".txt", ".png"):
            found.append((int(number), file.stat().st_mtime, file))
    if not found:
        return None
    step, _, file = max(found)
    return step, file
