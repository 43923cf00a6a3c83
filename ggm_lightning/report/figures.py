"""The figures of a run: bounds of the last validation, and what has to be said of them before anybody believes them."""

from __future__ import annotations

import math

from ggm_lightning.metrics.latent import does_not_pay
from ggm_lightning.report.story import Run, Story
from ggm_lightning.rundir.csv_log import Curve

FEW_ROWS = 32  # below, the error is itself hardly known
Bounds = dict[str, tuple[float, float | None]]


def bounds_of(metrics: dict[str, Curve], scale: float | None, by_class: bool) -> Bounds:
    """The last validation's bounds; bits per character are bits per token over characters per token."""
    last = {name: curve[-1][1] for name, curve in metrics.items() if name.startswith("val/")}
    shown: dict[str, tuple[str, float]] = {}
    if scale is not None and scale != 1:
        shown["Bits per character"] = ("bpd", scale)
    is_text = "val/ppl" in last
    unit = "dimension" if not is_text else "character" if scale == 1 else "token"
    shown |= {f"Bits per {unit}": ("bpd", 1.0), "Perplexity": ("ppl", 1.0), "Nats per example": ("nelbo", 1.0)}
    bounds, given = {}, " given the class" if by_class else ""
    for title, (name, divisor) in shown.items():
        value, stderr = last.get(f"val/{name}"), last.get(f"val/{name}_stderr")
        if value is not None:
            bounds[f"{title}{given}"] = (value / divisor, None if stderr is None else stderr / divisor)
    return bounds


def unit_of(story: Story, metrics: dict[str, Curve]) -> str:
    """Of the y axis."""
    if story.measure:
        return story.measure[1]
    is_text = "val/ppl" in metrics or story.scale is not None
    unit = "dimension" if not is_text else "token" if story.scale is None else "character"
    return f"bits per {unit}"


def words_of(run: Run) -> list[str]:
    """What has to be said of the figures, a sentence each; none where they are as usual."""
    story, metrics = run.story, run.metrics
    bits, measured = metrics.get("val/bpd", []), _measured(run)
    if not measured:
        return [f"No figure: no validation was due in {story.step:,} steps (trainer.val_check_interval)."]
    step = measured[-1][0]
    words = []
    if step < story.step:
        words.append(
            f"The figures are of step {step:,}, the last validation; the run has gone on to step {story.step:,}."
        )
    if step < story.stage1_steps:
        words.append(
            f"The figures are of stage 1 (before step {story.stage1_steps:,}), in which the latent's own network is "
            "not trained yet: bounds and samples say little."
        )
    if story.rows is not None and story.rows < FEW_ROWS:
        words.append(
            f"The figures are of {story.rows} held-out rows only: too few to compare with, and to know the error."
        )
    if bits and story.num_classes:
        words += _of_guessing(bits[-1][1], story.num_classes)
    return words + _of_the_latent(metrics, story.stage1_steps)


def _measured(run: Run) -> Curve:
    """What the validations have measured, by whose last step the figures are."""
    measure = run.story.measure
    return run.metrics.get("val/bpd") or run.metrics.get(f"val/{measure[0]}" if measure else "val/nelbo", [])


def _of_the_latent(metrics: dict[str, Curve], stage1_steps: int) -> list[str]:
    """The two parts of a bound with a latent, and whether it pays."""
    needed = ("val/bpd_tokens", "val/bpd_latent", "val/latent_saves")
    if not all(metrics.get(name) for name in needed):
        return []
    tokens, cost, saves = (metrics[name][-1][1] for name in needed)
    words = [f"Of the bits per token {tokens:.3g} are the tokens' given the latent, {cost:.3g} the latent's."]
    line = does_not_pay(cost, saves)
    if line and metrics[needed[0]][-1][0] > stage1_steps:
        words.append(line[0].upper() + line[1:] + ".")
    return words


def _of_guessing(bits: float, num_classes: int) -> list[str]:
    uniform = math.log2(num_classes)
    if not bits > uniform:
        return []
    return [
        f"{bits:,.4g} bits are more than the {uniform:.3g} of guessing all {num_classes:,} classes alike: as yet the "
        "bound says nothing of the model, and its perplexity no more than that."
    ]


def number(value: float, like: float) -> str:
    """As many decimals as five significant digits of `like` have; of a million and more three digits and a power."""
    if not abs(like) < 1e6:
        return f"{value:.2e}"
    decimals = 4 if abs(like) < 10 else 3 if abs(like) < 100 else 2 if abs(like) < 1000 else 1
    return f"{value:,.{decimals}f}"


def closing_line(run: Run, measuring: str = "") -> str:
    """How a run ended, in a line for the terminal: its first figure with its error, and of which step it is where that
    is not the last one; `measuring` is the command that gives one, for where there is none."""
    story = run.story
    bounds = list(bounds_of(run.metrics, story.scale, story.by_class).items())[:1]
    said = f"{story.state} at step {story.step:,}"
    if story.said and story.state != "finished":
        said += f" {story.said}"
    for title, (value, stderr) in bounds:
        error = "" if stderr is None else f" ± {number(stderr, value)}"
        kind = "" if story.exact else ", upper bound"
        measured = _measured(run)
        if measured and measured[-1][0] < story.step:
            kind += f", of step {measured[-1][0]:,}"
        said += f"; {title[0].lower()}{title[1:]}: {number(value, value)}{error} (held-out{kind})"
    if not bounds and not story.measure:
        said += "; no figure, as no validation was due"
        said += f"; measure one: {measuring}" if measuring else ""
    return said
