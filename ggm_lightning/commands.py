"""`lightning sample` and `lightning infill`: from a checkpoint alone, on any device, without the trainer's settings.

`evaluate`, the third command of that kind, has a module of its own.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from ggm_lightning import config as config_files
from ggm_lightning import evaluation, infill_input
from ggm_lightning.callbacks.samples import classes_in_turn, columns_of, page
from ggm_lightning.loading import load_family
from ggm_lightning.models.base import Family
from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir.pictures import beside, save_png
from ggm_lightning.rundir.pictures import grid as picture_grid
from ggm_lightning.rundir.report import Figure, write_report
from ggm_lightning.rundir.trace import trace_gif, trace_html
from ggm_lightning.sampling.request import Samples


def run(command: str, experiment: dict[str, Any], args: list[str]) -> None:
    """Parses the command's own arguments. An experiment file may be named too: its model must be the checkpoint's."""
    given = [a for i, a in enumerate(args) if (i and args[i - 1] == "--ckpt_path") or a.startswith("--ckpt_path=")]
    if experiment.get("model") and given:
        _refuse_another_model(experiment["model"], given[0].removeprefix("--ckpt_path="))
    if command == "evaluate":
        evaluation.run(experiment, args)
        return
    function = {"sample": sample, "infill": infill}[command]
    auto_cli(function, args=args, as_positional=False, exit_on_error=False, allow_abbrev=False)  # type: ignore[arg-type]


evaluate = evaluation.evaluate  # here, too, as the command line looks up what a command takes


def _refuse_another_model(section: dict[str, Any], path: str) -> None:
    about = checkpoint_files.read(path).get(checkpoint_files.KEY) or {}
    theirs = about.get("model") or {}
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
        out: folder for the results; default samples-seed<seed>/ beside the checkpoint.
        device: auto, cpu, cuda, ...
    """
    model = load_family(ckpt_path, device)
    labels = _labels(model, label, num_samples)
    options = {"temperature": temperature, "top_p": top_p, "grid": grid, "sampler": sampler, "seed": seed}
    options["latent_steps"] = latent_steps
    begin = time.monotonic()
    drawn = _in_batches(model, num_samples, num_steps, batch_size, labels, None, **options)
    folder = Path(out) if out else Path(ckpt_path).parent / f"samples-seed{seed}"
    facts = {"seed": seed, "num_steps": num_steps, "temperature": temperature, "top_p": top_p}
    _write(folder, model, drawn, facts, columns=columns_of(labels))
    print(_summary(folder, num_samples, drawn, time.monotonic() - begin), file=sys.stderr)


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
        out: folder for the results; default infilled-seed<seed>/ beside the checkpoint.
        device: auto, cpu, cuda, ...
    """
    model = load_family(ckpt_path, device)
    given = infill_input.read(model, text, input, mask, blank)
    values, known = (part.repeat_interleave(num_samples, 0).to(model.device) for part in (given.values, given.known))
    labels = _labels(model, label, len(values))
    options = {"temperature": temperature, "top_p": top_p, "grid": grid, "sampler": sampler, "seed": seed}
    options["latent_steps"] = latent_steps
    begin = time.monotonic()
    drawn = _in_batches(model, len(values), num_steps, batch_size, labels, (values, known), **options)
    if len(model.shape) == 1:  # what the model added behind a text that is shorter than its window is cut off
        drawn.x = drawn.x[:, : given.length]
        drawn.trace = [state[:, : given.length] for state in drawn.trace or []]
    folder = Path(out) if out else Path(ckpt_path).parent / f"infilled-seed{seed}"
    facts = {"seed": seed, "num_steps": num_steps, "known": int(known[0].sum())}
    texts = _write(folder, model, drawn, facts, given=given, columns=num_samples)
    print("\n\n".join(texts), end="\n" if texts else "")
    print(_summary(folder, len(values), drawn, time.monotonic() - begin), file=sys.stderr)


def _in_batches(
    model: Family,
    num_samples: int,
    num_steps: int,
    batch_size: int,
    labels: Tensor | None,
    clamp: tuple[Tensor, Tensor] | None,
    **options: Any,
) -> Samples:
    """All rows, `batch_size` at a time; the trace is that of the first batch."""
    if num_samples < 1 or batch_size < 1:
        raise ValueError(f"num_samples is {num_samples} and batch_size {batch_size}; both must be at least 1")
    parts: list[Samples] = []
    for start in range(0, num_samples, batch_size):
        row = torch.arange(start, min(start + batch_size, num_samples), device=model.device)
        parts.append(
            model.sample(
                len(row),
                num_steps,
                label=None if labels is None else labels[row],
                clamp=None if clamp is None else (clamp[0][row], clamp[1][row]),
                row=row,
                trace=start == 0,
                progress=True,
                **options,
            )
        )
    x = torch.cat([part.x.cpu() for part in parts])
    calls, latent_calls = (sum(getattr(part, name) for part in parts) for name in ("network_calls", "latent_calls"))
    return Samples(x, calls, parts[0].trace, latent_calls)


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


def _write(
    folder: Path,
    model: Family,
    drawn: Samples,
    facts: dict[str, Any],
    given: infill_input.Given | None = None,
    columns: int | None = None,
) -> list[str]:
    """samples.npz and trace.html; for texts, which are returned, samples.txt, for images samples.png and trace.gif.

    Of infilled images a row of samples.png is one input with `columns` fillings beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "samples.npz", x=drawn.x.numpy(), network_calls=drawn.network_calls, **facts)
    shown = {name.replace("_", " "): str(value) for name, value in facts.items()}
    title = f"{len(drawn.x)} {'samples' if given is None else 'fillings'} of {type(model).__name__}"
    decoded = (
        model.codec.decode(drawn.x) if model.codec else [" ".join(map(str, r)) for r in drawn.x.flatten(1).tolist()]
    )
    if not isinstance(decoded, list):
        figures = _figures(folder, model, drawn, decoded, given, columns)
        write_report(folder / "trace.html", title, None, {}, [], "", shown, {}, figures)
        return []
    (folder / "samples.txt").write_text(page(decoded), encoding="utf-8")
    pieces = model.codec.pieces if model.codec else lambda ids: [f"{i} " for i in ids]
    fragment = trace_html(drawn.trace or [], pieces, mask_id=model.num_classes) if len(model.shape) == 1 else ""  # type: ignore[arg-type]
    write_report(folder / "trace.html", title, None, {}, decoded[:8], fragment, shown, {})
    return decoded


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
    files = ", ".join(sorted(file.name for file in folder.iterdir()))
    calls = f"{drawn.network_calls} network calls"
    if drawn.latent_calls:
        calls = f"{drawn.latent_calls} calls of the latent's network, {calls}"
    return f"{num_samples} samples in {calls}, {seconds:.1f} s: {folder}/ ({files})"
