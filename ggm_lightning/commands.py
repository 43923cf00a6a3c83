"""`lightning sample` and `lightning infill`: from a checkpoint alone, on any device, without the trainer's settings.

`evaluate`, the third command of that kind, has a module of its own.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from ggm_lightning import config as config_files
from ggm_lightning import evaluation, infill_input, inspection
from ggm_lightning.callbacks.samples import classes_in_turn, columns_of, page
from ggm_lightning.loading import Loaded, load_family, trusted_names
from ggm_lightning.models.base import Family
from ggm_lightning.results import Results, excerpt, folder_name, place, said
from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir.pictures import beside, save_png
from ggm_lightning.rundir.pictures import grid as picture_grid
from ggm_lightning.rundir.report import Figure, write_report
from ggm_lightning.rundir.terminal import visible
from ggm_lightning.rundir.trace import trace_gif, trace_html
from ggm_lightning.sampling.request import Samples, checked


def run(command: str, experiment: dict[str, Any], args: list[str]) -> None:
    """Parses the command's own arguments. An experiment file may be named too: its model must be the checkpoint's, and
    the classes that it names may be built."""
    given = [a for i, a in enumerate(args) if (i and args[i - 1] == "--ckpt_path") or a.startswith("--ckpt_path=")]
    if experiment.get("model") and given:
        _refuse_another_model(experiment["model"], given[0].removeprefix("--ckpt_path="))
    if command == "evaluate":
        evaluation.run(experiment, args)
        return
    if command == "inspect" and args and not args[0].startswith("-"):
        args = ["--ckpt_path", *args]  # the file alone is enough
    parser = ArgumentParser(
        prog=f"lightning {command}", description=(COMMANDS[command].__doc__ or "").split("\n")[0], **_STRICT
    )
    parser.add_function_arguments(COMMANDS[command], as_group=False, skip={"named"})
    named = {} if command == "inspect" else {"named": trusted_names(None, experiment)}
    COMMANDS[command](**parser.parse_args(args).as_dict(), **named)


_STRICT: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
evaluate = evaluation.evaluate  # here, too, as the command line looks up what a command takes
inspect = inspection.inspect


def _refuse_another_model(section: dict[str, Any], path: str) -> None:
    theirs = checkpoint_files.about(checkpoint_files.read(path)).get("model") or {}
    found = [text for text in config_files.differences(section, theirs) if not text.split(" is ")[1].startswith("None")]
    if found:
        raise ValueError(f"--config and --ckpt_path {path} disagree: {'; '.join(found[:3])}; leave --config out")


def sample(
    ckpt_path: str,
    num_samples: int = 16,
    num_steps: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    grid: str | None = None,
    sampler: str | None = None,
    latent_steps: int | None = None,
    label: int | str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    out: str | None = None,
    device: str = "auto",
    again: bool = False,
    trust: str | None = None,
    named: Sequence[str] = (),
) -> None:
    """Draw samples from a checkpoint.

    Args:
        ckpt_path: file written by `lightning fit`; its averaged weights are used.
        num_samples: how many.
        num_steps: reverse steps; more is closer to the model's own law. GGM: of sampler parallel alone.
        temperature: 1 draws from the model, less sharpens.
        top_p: mass of the nucleus; 1 draws from the model.
        grid: times of the steps, cosine or uniform, for families that let you choose.
        sampler: for families that have several (an unknown name lists them); the default is the family's first.
        latent_steps: steps of the latent before those of the tokens, for families that draw it first (LDDM).
        label: class to condition on, or `each` for all of them in turn.
        seed: sample r is a function of (seed, r), whatever the batch size.
        batch_size: samples drawn at once.
        out: folder for the results; default samples-<settings>/ beside the checkpoint.
        device: auto, cpu, cuda, ...
        again: draw again what is there already.
        trust: packages or classes of your own that the checkpoint may build, separated by commas.
        named: (library) more such names.
    """
    loaded = load_family(ckpt_path, device, (*trusted_names(trust, {}), *named))
    model = loaded.model
    labels = _labels(model, label, num_samples)
    options = {"temperature": temperature, "top_p": top_p, "grid": grid, "sampler": sampler, "seed": seed}
    options["latent_steps"] = latent_steps
    asked = {"num_samples": num_samples, "num_steps": num_steps, "label": label, **options}
    results = _place("samples", loaded, asked, out, again)
    if results.done:
        _show(results, model, num_samples)
        return
    begin = time.monotonic()
    drawn = _in_batches(model, results, num_samples, num_steps, batch_size, labels, None, **options)
    facts = {"seed": seed, "num_steps": num_steps, "temperature": temperature, "top_p": top_p}
    with results.writing() as folder:
        _write(folder, model, drawn, facts, columns=columns_of(labels))
    _show(results, model, num_samples, drawn, time.monotonic() - begin)


def infill(
    ckpt_path: str,
    text: str | None = None,
    input: str | None = None,
    mask: str | None = None,
    blank: str = "_",
    num_samples: int = 4,
    num_steps: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    grid: str | None = None,
    sampler: str | None = None,
    latent_steps: int | None = None,
    label: int | str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    out: str | None = None,
    device: str = "auto",
    again: bool = False,
    trust: str | None = None,
    named: Sequence[str] = (),
) -> None:
    """Fill what is missing, leaving everything else untouched.

    Args:
        ckpt_path: file written by `lightning fit`; its averaged weights are used.
        text: a text in which each blank symbol stands for one token (one character for character models).
        input: instead of text: a .txt file with such a text, a picture of the model's size (8-bit grey or RGB, each
            pixel taken to the nearest of the model's levels), or an .npz with `x` (integers, the model's shape, or a
            batch of them) and `mask` (bool, True where x is to be filled).
        mask: what to fill of a picture: a picture that is white there and black elsewhere, or left, right, top, bottom.
        blank: the symbol that marks a blank in texts.
        num_samples: fillings of each input.
        num_steps: reverse steps. GGM: of sampler parallel alone.
        temperature: 1 draws from the model, less sharpens.
        top_p: mass of the nucleus; 1 draws from the model.
        grid: times of the steps, cosine or uniform, for families that let you choose.
        sampler: for families that have several (an unknown name lists them); the default is the family's first.
        latent_steps: steps of the latent before those of the tokens, for families that draw it first (LDDM).
        label: class to condition on.
        seed: filling r is a function of (seed, r).
        batch_size: fillings drawn at once.
        out: folder for the results; default infilled-<settings>/ beside the checkpoint.
        device: auto, cpu, cuda, ...
        again: fill again what is there already.
        trust: packages or classes of your own that the checkpoint may build, separated by commas.
        named: (library) more such names.
    """
    loaded = load_family(ckpt_path, device, (*trusted_names(trust, {}), *named))
    model = loaded.model
    given = infill_input.read(model, text, input, mask, blank)
    values, known = (part.repeat_interleave(num_samples, 0).to(model.device) for part in (given.values, given.known))
    labels = _labels(model, label, len(values))
    options = {"temperature": temperature, "top_p": top_p, "grid": grid, "sampler": sampler, "seed": seed}
    options["latent_steps"] = latent_steps
    asked = {"num_samples": num_samples, "num_steps": num_steps, "label": label, **options}
    asked["input"] = hashlib.sha256(given.values.numpy().tobytes() + given.known.numpy().tobytes()).hexdigest()[:8]
    results = _place("infilled", loaded, asked, out, again)
    if results.done:
        _show(results, model, len(values))
        return
    begin = time.monotonic()
    drawn = _in_batches(model, results, len(values), num_steps, batch_size, labels, (values, known), **options)
    if len(model.shape) == 1:  # what the model added behind a text that is shorter than its window is cut off
        drawn.x = drawn.x[:, : given.length]
        drawn.trace = [state[:, : given.length] for state in drawn.trace or []]
    facts = {"seed": seed, "num_steps": num_steps, "known": int(known[0].sum())}
    with results.writing() as folder:
        _write(folder, model, drawn, facts, given=given, columns=num_samples)
    _show(results, model, len(values), drawn, time.monotonic() - begin)


def _place(command: str, loaded: Loaded, asked: dict[str, Any], out: str | None, again: bool) -> Results:
    """The results' folder; all that can be wrong with the request is found here, before the first network call."""
    model = loaded.model
    request = checked(
        model, **{name: asked[name] for name in _REQUEST}, label=None, clamp=None, trace=False, row=None, progress=False
    )
    if model.codec is not None:
        model.codec.check()
    settings = {
        "command": command,
        "checkpoint": loaded.path.name,
        "checkpoint_identity": loaded.identity,
        "step": loaded.step,
        **asked,
        "sampler": request.sampler,
    }
    name = folder_name(
        command,
        loaded.step,
        ("", request.sampler, ""),
        ("", asked["num_steps"], "steps"),
        ("latent", asked["latent_steps"], "steps"),
        ("", asked["grid"], ""),
        ("temp", asked["temperature"], ""),
        ("top_p", None if asked["top_p"] == 1 else asked["top_p"], ""),
        ("label", asked["label"], ""),
        ("seed", asked["seed"], ""),
        ("n", asked["num_samples"], ""),
        ("input", asked.get("input"), ""),
    )
    return place(loaded.path.parent, name, settings, out, again)


_REQUEST = ("num_samples", "num_steps", "temperature", "top_p", "grid", "sampler", "seed", "latent_steps")


def _show(
    results: Results, model: Family, num_samples: int, drawn: Samples | None = None, seconds: float = 0.0
) -> None:
    """On stdout the texts themselves: all fillings, of samples the first; what they cost and where they are, beside."""
    file = results.folder / "samples.npz"
    with np.load(file, allow_pickle=False) as arrays:
        x = arrays["x"]
    decoded = _decoded(model, torch.from_numpy(x)) if len(model.shape) == 1 else None
    if isinstance(decoded, list):
        every = results.settings["command"] == "infilled"
        print("\n\n".join(map(visible, decoded)) if every else excerpt(decoded))
    else:
        print(results.folder / "samples.png" if (results.folder / "samples.png").is_file() else file)
    print(said(results) if drawn is None else _summary(results.folder, num_samples, drawn, seconds), file=sys.stderr)


def _in_batches(
    model: Family,
    results: Results,
    num_samples: int,
    num_steps: int,
    batch_size: int,
    labels: Tensor | None,
    clamp: tuple[Tensor, Tensor] | None,
    **options: Any,
) -> Samples:
    """All rows, `batch_size` at a time, each batch kept on the disk when it is finished; the trace is that of the
    first."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")

    def draw(start: int, stop: int) -> dict[str, np.ndarray]:
        row = torch.arange(start, stop, device=model.device)
        drawn = model.sample(
            len(row),
            num_steps,
            label=None if labels is None else labels[row],
            clamp=None if clamp is None else (clamp[0][row], clamp[1][row]),
            row=row,
            trace=start == 0,
            progress=True,
            **options,
        )
        calls = np.array([drawn.network_calls, drawn.latent_calls])
        return {
            "x": drawn.x.cpu().numpy(),
            "calls": calls,
            "trace": np.array([state.numpy() for state in drawn.trace or []]),
        }

    parts = []
    for start in range(0, num_samples, batch_size):
        stop = min(start + batch_size, num_samples)
        parts.append(results.part(start, stop, lambda: draw(start, stop)))  # noqa: B023 - called at once
    calls, latent_calls = np.sum([part["calls"] for part in parts], axis=0).tolist()
    trace = [torch.from_numpy(state) for state in parts[0]["trace"]]
    return Samples(torch.from_numpy(np.concatenate([part["x"] for part in parts])), calls, trace, latent_calls)


def _labels(model: Family, label: int | str | None, count: int) -> Tensor | None:
    """Int64[count]; None leaves the class to the model, which then must have seen the null class in training."""
    known = getattr(model.network, "num_labels", 0) or 0
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


def _write(
    folder: Path,
    model: Family,
    drawn: Samples,
    facts: dict[str, Any],
    given: infill_input.Given | None = None,
    columns: int | None = None,
) -> None:
    """samples.npz and trace.html; for texts samples.txt, for images samples.png and trace.gif.

    Of infilled images a row of samples.png is one input with `columns` fillings beside it.
    """
    np.savez_compressed(folder / "samples.npz", x=drawn.x.numpy(), network_calls=drawn.network_calls, **facts)
    shown = {name.replace("_", " "): str(value) for name, value in facts.items()}
    title = f"{len(drawn.x)} {'samples' if given is None else 'fillings'} of {type(model).__name__}"
    decoded = _decoded(model, drawn.x)
    if not isinstance(decoded, list):
        figures = _figures(folder, model, drawn, decoded, given, columns)
        write_report(folder / "trace.html", title, None, {}, [], "", shown, {}, figures)
        return
    (folder / "samples.txt").write_text(page(decoded), encoding="utf-8")
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
    if given is not None:
        heading, note = "Fillings", "Left: what was given. Beside it its fillings, not selected."
        blanked = model.codec.decode(torch.where(given.known, given.values, model.num_classes))
        canvas = beside(picture_grid(blanked, 1), canvas)
    save_png(canvas, folder / "samples.png")
    count = trace_gif(drawn.trace or [], model.codec.decode, folder / "trace.gif", columns)  # type: ignore[arg-type]
    first = "" if count == len(decoded) else f", of the first {count}"
    return [
        Figure(heading, note, {"samples.png": folder / "samples.png"}),
        Figure("Step by step", f"The reverse process from the prior{first}.", {"trace.gif": folder / "trace.gif"}),
    ]


def _summary(folder: Path, num_samples: int, drawn: Samples, seconds: float) -> str:
    files = ", ".join(sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")))
    calls = f"{drawn.network_calls} network calls"
    if drawn.latent_calls:
        calls = f"{drawn.latent_calls} calls of the latent's network, {calls}"
    return f"{num_samples} samples in {calls}, {seconds:.1f} s: {folder}/ ({files})"


COMMANDS = {"sample": sample, "infill": infill, "inspect": inspect}
