"""What `sample` and `infill` share: the request checked, rows drawn batch by batch, and the files of what was drawn."""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from ggm_lightning.cli import infill_input, ranks
from ggm_lightning.cli.loading import Loaded
from ggm_lightning.cli.parts import batches, divided
from ggm_lightning.cli.results import Results, excerpt, folder_name, place, said
from ggm_lightning.codecs.grids import DrawsPictures
from ggm_lightning.core.categorical import Sharpening
from ggm_lightning.data.arrays import DAMAGE
from ggm_lightning.models.base import Family
from ggm_lightning.networks.labels import labels_known
from ggm_lightning.report.drawing import classes_in_turn, columns_of, numbered_texts
from ggm_lightning.report.page import Figure, write_report
from ggm_lightning.report.pictures import grid as picture_grid
from ggm_lightning.report.pictures import save_png, side_by_side
from ggm_lightning.report.trace import trace_gif, trace_html
from ggm_lightning.rundir.terminal import counted, visible
from ggm_lightning.sampling import naming
from ggm_lightning.sampling.guidance import NONE
from ggm_lightning.sampling.guidance import check as check_guidance
from ggm_lightning.sampling.request import Samples, checked


@dataclass(frozen=True)
class Asked:
    """What samples depend on besides the checkpoint; see cli/sample.py."""

    num_samples: int
    num_steps: int
    grid: str | None
    sampler: str | None
    label: int | str | None
    seed: int
    options: dict[str, Any]  # of `Family.sample`: temperature and its like, of the sampler, of the denoiser


def draw_samples(loaded: Loaded, asked: Asked, batch_size: int, out: str | None, again: bool) -> None:
    """`lightning sample`."""
    model = loaded.model
    labels = labels_of(model, asked.label, asked.num_samples)
    results = results_of("samples", loaded, asked, labels, "", out, again)
    here = ranks.current()
    if here.agree(lambda: results.done):
        if here.is_first:
            show(results, model, asked.num_samples)
        return
    begin = time.monotonic()
    with loaded.computing():
        drawn = in_batches(model, results, asked, asked.num_samples, batch_size, labels, None)
    if drawn is None:  # rank 0 goes on
        return
    facts = {"step": str(loaded.step), "sampler": results.settings["sampler"], "num_steps": asked.num_steps}
    facts |= {**asked.options, "seed": asked.seed}
    with results.writing() as folder:
        write(folder, model, drawn, facts, columns=columns_of(labels))
    show(results, model, asked.num_samples, drawn, time.monotonic() - begin)


def fill(
    loaded: Loaded, given: infill_input.Given, asked: Asked, batch_size: int, out: str | None, again: bool
) -> None:
    """`lightning infill`: `num_samples` fillings of each input."""
    model = loaded.model
    if asked.num_samples < 1:
        raise ValueError(f"num_samples is {asked.num_samples}; it must be at least 1")
    values, known = (
        part.repeat_interleave(asked.num_samples, 0).to(model.device) for part in (given.values, given.known)
    )
    count = len(values)
    labels = labels_of(model, asked.label, count)
    what = hashlib.sha256(given.values.numpy().tobytes() + given.known.numpy().tobytes()).hexdigest()[:8]
    results = results_of("infilled", loaded, asked, labels, what, out, again)
    if results.done:
        show(results, model, count)
        return
    begin = time.monotonic()
    with loaded.computing():
        drawn = in_batches(model, results, asked, count, batch_size, labels, (values, known))
    assert drawn is not None, "an infilling is not divided over ranks"
    if len(model.shape) == 1:  # what the model added behind a text that is shorter than its window is cut off
        drawn.x = drawn.x[:, : given.length]
        drawn.trace = [state[:, : given.length] for state in drawn.trace or []]
    facts = {"step": str(loaded.step), "sampler": results.settings["sampler"], "num_steps": asked.num_steps}
    facts |= {"seed": asked.seed, "known": int(known[0].sum())}
    with results.writing() as folder:
        write(folder, model, drawn, facts, given=given, columns=asked.num_samples)
    show(results, model, count, drawn, time.monotonic() - begin)


def sharpened(temperature: float, top_p: float, top_k: int | None, nucleus: str, guidance: float) -> dict[str, Any]:
    """The options of `Family.sample` that every sampler has; of the later ones those that say something, so that the
    settings of results that lie there already stay what they were."""
    values: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    if top_k is not None:
        values["top_k"] = top_k
    if nucleus != Sharpening().nucleus:
        values["nucleus"] = nucleus
    if guidance != NONE:
        values["guidance"] = guidance
    return values


def typed(model: Family, sampler: str | None, texts: Mapping[str, str]) -> dict[str, Any]:
    """The options of a sampler from their texts on the command line, by the annotations of its constructor; those of
    the model's denoiser as YAML reads them."""
    make = naming.maker(model, sampler)
    cls, taken = naming.class_of(make), naming.parameters(make)
    own = {name: text for name, text in texts.items() if name in taken}
    parser = ArgumentParser(exit_on_error=False)
    # what the short name has settled is not asked for either
    parser.add_class_arguments(cls, as_group=False, skip=set(naming.parameters(cls)) - set(own))
    parsed = parser.parse_args([f"--{name}={text}" for name, text in own.items()])
    return {name: parsed[name] if name in own else yaml.safe_load(text) for name, text in texts.items()}


def results_of(
    command: str, loaded: Loaded, asked: Asked, labels: Tensor | None, given: str, out: str | None, again: bool
) -> Results:
    """The results' folder; all that can be wrong with the request is found here, before the first network call."""
    model = loaded.model
    options = dict(asked.options)
    naming.sharpening(options)
    weight = options.pop("guidance", NONE)
    chosen = naming.chosen(model, asked.sampler, options)[0]
    check_guidance(model, chosen, weight, labels)
    sampler = chosen.name
    count = asked.num_samples if labels is None else len(labels)
    checked(model, count, asked.num_steps, labels, seed=asked.seed, grid=asked.grid)
    # decoded once as the results will be: a codec of other sizes, or a VQGAN that is gone, is noticed here
    _decoded(model, torch.zeros(1, *model.shape, dtype=torch.int64))
    settings = {
        "command": command,
        "checkpoint": loaded.path.name,
        "checkpoint_identity": loaded.identity,
        "step": loaded.step,
        "num_samples": asked.num_samples,
        "num_steps": asked.num_steps,
        "grid": asked.grid,
        "label": asked.label,
        "seed": asked.seed,
        **asked.options,
        "sampler": sampler,
        "input": given,
        **loaded.noted,
    }
    name = folder_name(
        command,
        loaded.step,
        ("", sampler, ""),
        ("", asked.num_steps, "steps"),
        ("", asked.grid, ""),
        *_words(asked.options),
        ("label", asked.label, ""),
        ("seed", asked.seed, ""),
        ("n", asked.num_samples, ""),
        ("input", given or None, ""),
        ("", loaded.noted.get("precision"), ""),
    )
    return place(loaded.results, name, settings, out, again)


def _words(options: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Options as parts of a folder's name: the temperature in any case, others where they are not their default."""
    plain = {field.name: field.default for field in fields(Sharpening)}
    words = [("temp", options["temperature"], "")]
    others = {name: value for name, value in options.items() if name != "temperature"}
    return words + [(name, value, "") for name, value in others.items() if value != plain.get(name)]


def show(results: Results, model: Family, num_samples: int, drawn: Samples | None = None, seconds: float = 0.0) -> None:
    """On stdout the texts themselves: all fillings, of samples the first; what they cost and where they are, beside."""
    file = results.folder / "samples.npz"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            x = arrays["x"]
    except (*DAMAGE, KeyError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); --again true draws the samples again") from None
    decoded = _decoded(model, torch.from_numpy(x)) if len(model.shape) == 1 else None
    if isinstance(decoded, list):
        every = results.settings["command"] == "infilled"
        print("\n\n".join(map(visible, decoded)) if every else excerpt(decoded))
    else:
        print(results.folder / "samples.png" if (results.folder / "samples.png").is_file() else file)
    print(said(results) if drawn is None else _summary(results.folder, num_samples, drawn, seconds), file=sys.stderr)


def in_batches(
    model: Family,
    results: Results,
    asked: Asked,
    count: int,
    batch_size: int,
    labels: Tensor | None,
    clamp: tuple[Tensor, Tensor] | None,
) -> Samples | None:
    """All rows, `batch_size` at a time, each batch kept on the disk when it is finished; the trace is that of the
    first. Of several ranks rank 0 has them, the others None."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")

    def draw(start: int, stop: int) -> dict[str, np.ndarray]:
        row = torch.arange(start, stop, device=model.device)
        drawn = model.sample(
            len(row),
            asked.num_steps,
            label=None if labels is None else labels[row],
            clamp=None if clamp is None else (clamp[0][row], clamp[1][row]),
            row=row,
            trace=start == 0,
            progress=True,
            grid=asked.grid,
            sampler=asked.sampler,
            seed=asked.seed,
            **asked.options,
        )
        return {
            "x": drawn.x.cpu().numpy(),
            "calls": np.array([drawn.network_calls, drawn.rows]),
            "others": np.array(list(drawn.other_calls), dtype=str),
            "other_calls": np.array(list(drawn.other_calls.values()), dtype=np.int64),
            "trace": np.array([state.numpy() for state in drawn.trace or []]),
        }

    parts = divided(results.parts, batches(count, batch_size), draw)
    if parts is None:
        return None
    calls, rows = np.sum([part["calls"] for part in parts], axis=0).tolist()
    others: Counter[str] = Counter()
    for part in parts:
        others.update(dict(zip(part["others"].tolist(), part["other_calls"].tolist(), strict=True)))
    trace = [torch.from_numpy(state) for state in parts[0]["trace"]]
    return Samples(torch.from_numpy(np.concatenate([part["x"] for part in parts])), calls, trace, rows, others)


def labels_of(model: Family, label: int | str | None, count: int) -> Tensor | None:
    """Int64[count]; None leaves the class to the model, which then must have seen the null class in training."""
    known = labels_known(model.network) or 0
    if label is None and (not known or model.label_dropout > 0):
        return None
    if not known:
        raise ValueError(f"--label {label}: this model knows no classes; leave it out")
    if label in (None, "each"):
        return classes_in_turn(model, count)
    if not isinstance(label, int) or not 0 <= label < known:
        raise ValueError(f"--label {label}: the model's classes are 0..{known - 1}; give one of them, or each")
    return torch.full((count,), label, device=model.device)


def _decoded(model: Family, x: Tensor) -> list[str] | np.ndarray:
    """Texts or pictures; lines of numbers where the checkpoint says nothing of them."""
    return model.codec.decode(x) if model.codec else [" ".join(map(str, row)) for row in x.flatten(1).tolist()]


def write(
    folder: Path,
    model: Family,
    drawn: Samples,
    facts: dict[str, Any],
    given: infill_input.Given | None = None,
    columns: int | None = None,
) -> None:
    """samples.npz and trace.html; for texts samples.txt; for images, and texts that are drawn (codecs/grids.py),
    samples.png and trace.gif.

    Of infilled images a row of samples.png is one input with `columns` fillings beside it.
    """
    # beside the ids and not in settings.json, by which results that lie there already are known
    meaning = {"tokenizer_hash": model.codec.tokenizer_hash} if model.codec else {}
    about: dict[str, Any] = {"network_calls": drawn.network_calls, "rows": drawn.rows, **facts, **meaning}
    np.savez_compressed(folder / "samples.npz", x=drawn.x.numpy(), **about)
    shown = {name.replace("_", " "): str(value) for name, value in facts.items()}
    title = f"{len(drawn.x)} {'samples' if given is None else 'fillings'} of {type(model).__name__}"
    decoded = _decoded(model, drawn.x)
    if not isinstance(decoded, list):
        figures = _figures(folder, model, drawn, decoded, given, columns)
        write_report(folder / "trace.html", title, None, {}, [], "", shown, {}, figures)
        return
    (folder / "samples.txt").write_text(numbered_texts(decoded), encoding="utf-8")
    if isinstance(model.codec, DrawsPictures) and drawn.x[0].numel() == model.num_sites:
        known = None if given is None else given.known.repeat_interleave(len(drawn.x) // len(given.known), 0)
        figures = _figures(folder, model, drawn, model.codec.pictures(drawn.x, known), given, columns)
        write_report(folder / "trace.html", title, None, {}, [], "", shown, {}, figures)
        return
    pieces = model.codec.pieces if model.codec else lambda ids: [f"{i} " for i in ids]
    fragment = trace_html(drawn.trace or [], pieces, mask_id=model.num_classes) if len(model.shape) == 1 else ""  # type: ignore[arg-type]
    write_report(folder / "trace.html", title, None, {}, decoded[:8], fragment, shown, {})


def _figures(
    folder: Path,
    model: Family,
    drawn: Samples,
    decoded: np.ndarray,
    given: infill_input.Given | None,
    columns: int | None,
) -> list[Figure]:
    """Writes samples.png and trace.gif."""
    heading, note, canvas = "Samples", "Not selected.", picture_grid(decoded, columns)
    draw = model.codec.pictures if isinstance(model.codec, DrawsPictures) else model.codec.decode
    if given is not None:
        heading, note = "Fillings", "Left: what was given. Beside it its fillings, not selected."
        blanked = draw(torch.where(given.known, given.values, model.num_classes))
        canvas = side_by_side(picture_grid(blanked, 1), canvas)
    save_png(canvas, folder / "samples.png")
    count = trace_gif(drawn.trace or [], draw, folder / "trace.gif", columns)  # type: ignore[arg-type]
    first = "" if count == len(decoded) else f", of the first {count}"
    return [
        Figure(heading, note, {"samples.png": folder / "samples.png"}),
        Figure("Step by step", f"The reverse process from the prior{first}.", {"trace.gif": folder / "trace.gif"}),
    ]


def _summary(folder: Path, num_samples: int, drawn: Samples, seconds: float) -> str:
    files = ", ".join(sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")))
    calls = f"{counted(drawn.network_calls, 'network call')} ({drawn.rows / num_samples:.4g} rows per sample)"
    for name, count in drawn.other_calls.items():
        calls = f"{counted(count, 'call')} of the {name.removesuffix('_network')}'s network, {calls}"
    return f"{counted(num_samples, 'sample')} in {calls}, {seconds:.1f} s: {folder}/ ({files})"
