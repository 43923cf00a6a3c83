"""The table of bounds that `lightning evaluate` prints."""

from __future__ import annotations

from ggm_lightning.cli.bound_files import Bound, Settings

_COLUMNS = (
    ("nats_per_token", ".4f"),
    ("bpd", ".4f"),
    ("ppl", ".3f"),
    ("bits_per_character", ".4f"),
    ("ppl_word", ".2f"),
)


def table(found: list[Bound], title: str, settings: Settings, exact: bool = False) -> str:
    """What the command prints. exact: -log p itself, which no samples are needed for."""
    several = any(not one.text for one in found)
    unit = "dimension" if several else "token"
    states = f"{settings.num_samples} sample{'s' * (settings.num_samples != 1)} per row, seed {settings.seed}"
    states += " and the set's name" * (len(found) > 1)
    if settings.estimator != "times":
        states += f", by {settings.estimator}"
    what = "-log p, exact" if exact else f"upper bounds on -log p, {states}"
    head = ["set", "split", "rows", f"{unit}s", f"nats/{unit}", f"bits/{'dim' if several else 'token'}"]
    head += ["perplexity", "bits/character", "perplexity/word", f"nats/{unit}: ± of rows, of masks"]
    lines = [head]
    for one in found:
        figures = one.figures()
        part = f" of {one.of_rows:,}" if len(one.nats) < one.of_rows else ""
        line = [one.name, one.split, f"{len(one.nats):,}{part}", f"{len(one.nats) * one.num_sites:,}"]
        lines.append([*line, *(_with_error(figures, figure, form) for figure, form in _COLUMNS), _split(figures)])
    used = [column for column in range(len(head)) if any(line[column] for line in lines[1:])]
    widths = {column: max(len(line[column]) for line in lines) for column in used}
    rows = ["  ".join(line[column].ljust(widths[column]) for column in used).rstrip() for line in lines]
    return "\n".join([f"{title}: {what}", *rows, *_notes(found)])


def _with_error(figures: dict[str, float | None], name: str, form: str) -> str:
    value, error = figures.get(name), figures.get(f"{name}_stderr")
    if value is None:
        return ""
    return f"{value:{form}}" if error is None else f"{value:{form}} ± {error:{form}}"


def _split(figures: dict[str, float | None]) -> str:
    rows, masks = (figures.get(f"nats_per_token_stderr_{source}") for source in ("rows", "masks"))
    return "" if rows is None or masks is None else f"± {rows:.4f} ± {masks:.4f}"


def _notes(found: list[Bound]) -> list[str]:
    """In what the sets depart from their protocols, each departure once."""
    named: dict[str, list[str]] = {}
    for one in found:
        for departure in one.departures:
            named.setdefault(departure, []).append(one.name)
    return [f"departs from {departure} ({', '.join(names)})" for departure, names in named.items()]
