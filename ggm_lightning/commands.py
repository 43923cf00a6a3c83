"""`lightning sample` and `lightning infill`: from a checkpoint alone, on any device, without the trainer's settings."""

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
from ggm_lightning.callbacks.samples import page
from ggm_lightning.data.codecs import Codec, Integers
from ggm_lightning.models.base import Family
from ggm_lightning.rundir import checkpoint as checkpoint_files
from ggm_lightning.rundir.pictures import grid as picture_grid
from ggm_lightning.rundir.pictures import save_png
from ggm_lightning.rundir.report import write_report
from ggm_lightning.rundir.trace import trace_html
from ggm_lightning.sampling.loop import Samples


def run(command: str, experiment: dict[str, Any], args: list[str]) -> None:
    """Parses the command's own arguments. An experiment file may be named too: its model must be the checkpoint's."""
    function = {"sample": sample, "infill": infill}[command]
    given = [a for i, a in enumerate(args) if (i and args[i - 1] == "--ckpt_path") or a.startswith("--ckpt_path=")]
    if experiment.get("model") and given:
        _refuse_another_model(experiment["model"], given[0].removeprefix("--ckpt_path="))
    auto_cli(function, args=args, as_positional=False, exit_on_error=False, allow_abbrev=False)  # type: ignore[arg-type]


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
    grid: str = "cosine",
    sampler: str | None = None,
    label: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    out: str | None = None,
    device: str = "auto",
) -> None:
    """Draw samples from a checkpoint.

    Args:
        ckpt_path: file written by `lightning fit`; its averaged weights are used.
        num_samples: how many.
        num_steps: reverse steps; more is closer to the model's own law.
        temperature: 1 draws from the model, less sharpens.
        top_p: mass of the nucleus; 1 draws from the model.
        grid: times of the steps, cosine or uniform.
        sampler: for families that have several; the default is the family's first.
        label: class to condition on.
        seed: sample r is a function of (seed, r), whatever the batch size.
        batch_size: samples drawn at once.
        out: folder for the results; default samples-seed<seed>/ beside the checkpoint.
        device: auto, cpu, cuda, ...
    """
    model = _load(ckpt_path, device)
    labels = None if label is None else torch.full((num_samples,), label, device=model.device)
    begin = time.monotonic()
    drawn = _in_batches(
        model,
        num_samples,
        num_steps,
        batch_size,
        labels,
        None,
        temperature=temperature,
        top_p=top_p,
        grid=grid,
        sampler=sampler,
        seed=seed,
    )
    folder = Path(out) if out else Path(ckpt_path).parent / f"samples-seed{seed}"
    _write(folder, model, drawn, {"seed": seed, "num_steps": num_steps, "temperature": temperature, "top_p": top_p})
    print(_summary(folder, num_samples, drawn, time.monotonic() - begin), file=sys.stderr)


def infill(
    ckpt_path: str,
    text: str | None = None,
    input: str | None = None,
    blank: str = "_",
    num_samples: int = 4,
    num_steps: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    grid: str = "cosine",
    sampler: str | None = None,
    label: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    out: str | None = None,
    device: str = "auto",
) -> None:
    """Fill what is missing, leaving everything else untouched.

    Args:
        ckpt_path: file written by `lightning fit`; its averaged weights are used.
        text: a text in which each blank symbol stands for one token (one character for character models).
        input: instead of text: a .txt file with such a text, or an .npz with `x` (integers, the model's shape, or a
            batch of them) and `mask` (bool, True where x is to be filled).
        blank: the symbol that marks a blank in texts.
        num_samples: fillings of each input.
        num_steps: reverse steps.
        temperature: 1 draws from the model, less sharpens.
        top_p: mass of the nucleus; 1 draws from the model.
        grid: times of the steps, cosine or uniform.
        sampler: for families that have several; the default is the family's first.
        label: class to condition on.
        seed: filling r is a function of (seed, r).
        batch_size: fillings drawn at once.
        out: folder for the results; default infilled-seed<seed>/ beside the checkpoint.
        device: auto, cpu, cuda, ...
    """
    model = _load(ckpt_path, device)
    values, known, length = _with_blanks(model, text, input, blank)
    values, known = (part.repeat_interleave(num_samples, 0).to(model.device) for part in (values, known))
    labels = None if label is None else torch.full((len(values),), label, device=model.device)
    begin = time.monotonic()
    drawn = _in_batches(
        model,
        len(values),
        num_steps,
        batch_size,
        labels,
        (values, known),
        temperature=temperature,
        top_p=top_p,
        grid=grid,
        sampler=sampler,
        seed=seed,
    )
    if len(model.shape) == 1:  # what the model added behind a text that is shorter than its window is cut off
        drawn.x = drawn.x[:, :length]
        drawn.trace = [state[:, :length] for state in drawn.trace or []]
    folder = Path(out) if out else Path(ckpt_path).parent / f"infilled-seed{seed}"
    texts = _write(folder, model, drawn, {"seed": seed, "num_steps": num_steps, "known": int(known[0].sum())})
    print("\n\n".join(texts))
    print(_summary(folder, len(values), drawn, time.monotonic() - begin), file=sys.stderr)


def _load(ckpt_path: str, device: str) -> Family:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = checkpoint_files.load(ckpt_path, device)
    if not isinstance(model, Family):
        raise ValueError(f"--ckpt_path {ckpt_path}: holds a {type(model).__name__}, which cannot be sampled")
    return model


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
    return Samples(x, sum(part.network_calls for part in parts), parts[0].trace)


def _with_blanks(model: Family, text: str | None, input: str | None, blank: str) -> tuple[Tensor, Tensor, int]:
    """(values [b, *shape], known Bool[b, *shape], sites that belong to the input)."""
    if (text is None) == (input is None):
        raise ValueError("infill: give either --text 'words with _ blanks' or --input FILE (.txt or .npz)")
    if input is None:
        return _from_text(model, text or "", blank)
    if not Path(input).is_file():
        raise FileNotFoundError(f"--input {input}: no such file; give a .txt with blanks or an .npz with x and mask")
    if input.endswith(".npz"):
        return *_from_npz(model, input), model.num_sites
    return _from_text(model, Path(input).read_text(encoding="utf-8"), blank)


def _from_text(model: Family, text: str, blank: str) -> tuple[Tensor, Tensor, int]:
    """(values [1, n], known [1, n], sites the text takes). The parts between blanks are encoded one by one, so that
    they decode to themselves; sites behind the text are left to the model."""
    if len(model.shape) != 1 or model.codec is None:
        raise ValueError("infill: this model is not of text; give --input FILE.npz with x and mask")
    if len(blank) != 1:
        raise ValueError(f"--blank is {blank!r}; it must be one symbol")
    text = text.removesuffix("\n")
    ids: list[int] = []
    known: list[bool] = []
    for i, part in enumerate(text.split(blank)):
        if i:
            ids.append(0)
            known.append(False)
        encoded = [int(v) for v in model.codec.encode(part)] if part else []
        if part and not _same(model.codec, model.codec.decode(np.array([encoded]))[0], part):  # type: ignore[arg-type]
            raise ValueError(f"infill: {part[:40]!r} holds symbols that the model's vocabulary lacks")
        ids += encoded
        known += [True] * len(encoded)
    if all(known):
        raise ValueError(f"infill: nothing to fill; mark each missing token by {blank!r}, or choose --blank")
    if len(ids) > model.num_sites:
        raise ValueError(f"infill: the text takes {len(ids)} tokens, the model reads {model.num_sites}; shorten it")
    rest = model.num_sites - len(ids)
    return torch.tensor([ids + [0] * rest]), torch.tensor([known + [False] * rest]), len(ids)


def _same(codec: Codec, decoded: str, text: str) -> bool:
    """Numbers are separated by any white space; every other text must come back to the letter."""
    return decoded.split() == text.split() if isinstance(codec, Integers) else decoded == text


def _from_npz(model: Family, path: str) -> tuple[Tensor, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        missing = [name for name in ("x", "mask") if name not in arrays]
        if missing:
            raise ValueError(f"--input {path}: has no array '{missing[0]}'; x (integers) and mask (bool) are needed")
        x, mask = arrays["x"], arrays["mask"]
    if mask.dtype != bool or mask.shape != x.shape or tuple(x.shape[-len(model.shape) :]) != model.shape:
        raise ValueError(
            f"--input {path}: x is {list(x.shape)}, mask {mask.dtype} {list(mask.shape)}; both must be [b, *shape] or "
            f"shape with shape {list(model.shape)}, mask bool"
        )
    values = torch.from_numpy(x.astype(np.int64)).reshape(-1, *model.shape)
    return values, ~torch.from_numpy(mask).reshape(-1, *model.shape)


def _write(folder: Path, model: Family, drawn: Samples, facts: dict[str, Any]) -> list[str]:
    """samples.npz always; samples.txt and trace.html for texts, samples.png for images. Returns the texts."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "samples.npz", x=drawn.x.numpy(), network_calls=drawn.network_calls, **facts)
    decoded = (
        model.codec.decode(drawn.x) if model.codec else [" ".join(map(str, r)) for r in drawn.x.flatten(1).tolist()]
    )
    if not isinstance(decoded, list):
        save_png(picture_grid(decoded), folder / "samples.png")
        return []
    (folder / "samples.txt").write_text(page(decoded), encoding="utf-8")
    pieces = model.codec.pieces if model.codec else lambda ids: [f"{i} " for i in ids]
    shown = {name.replace("_", " "): str(value) for name, value in facts.items()}
    fragment = trace_html(drawn.trace or [], pieces, mask_id=model.num_classes) if len(model.shape) == 1 else ""  # type: ignore[arg-type]
    title = f"{len(decoded)} samples of {type(model).__name__}"
    write_report(folder / "trace.html", title, None, {}, decoded[:8], fragment, shown, {})
    return decoded


def _summary(folder: Path, num_samples: int, drawn: Samples, seconds: float) -> str:
    files = ", ".join(sorted(file.name for file in folder.iterdir()))
    return f"{num_samples} samples in {drawn.network_calls} network calls, {seconds:.1f} s: {folder}/ ({files})"
