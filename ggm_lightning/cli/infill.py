"""`lightning infill`: from a checkpoint alone, on any device, without the trainer's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ggm_lightning.cli import drawing, infill_input
from ggm_lightning.cli.drawing import Asked
from ggm_lightning.cli.loading import load_family, trusted_names


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
    top_k: int | None = None,
    nucleus: str = "crossing",
    guidance: float = 1.0,
    grid: str | None = None,
    sampler: str | None = None,
    label: int | str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    out: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    again: bool = False,
    trust: str | None = None,
    named: Sequence[str] = (),
    options: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Fill what is missing, leaving everything else untouched.

    Args:
        ckpt_path: file written by `lightning fit`; its averaged weights are used.
        text: in it each blank symbol stands for one token (one character for character models).
        input: instead of text: a .txt file with such a text, a picture of the model's size (8-bit grey or RGB, each
            pixel taken to the nearest of the model's levels), or an .npz with `x` (integers, the model's shape, or a
            batch of them) and `mask` (bool, True where x is to be filled).
        mask: what to fill of a picture: a picture that is white there and black elsewhere, or left, right, top, bottom.
        blank: the symbol that marks a blank in texts.
        num_samples: fillings of each input.
        num_steps: reverse steps. GGM: of sampler parallel alone.
        temperature: 1 draws from the model, less sharpens, 0 takes the mode.
        top_p: mass of the nucleus; 1 draws from the model.
        top_k, nucleus, guidance: see `sample`.
        grid: times of the steps, cosine or uniform, for families that let you choose.
        sampler: its name (an unknown one lists them, the default first) or the path of your own class; its options as
            --sampler.NAME VALUE. --latent_steps is LDDM's, --particles K Blackout's and MarkovDiffusion's: K states of
            each filling, among which what is known chooses.
        label: class to condition on.
        seed, batch_size: filling r is a function of (seed, r); so many are drawn at once.
        out: folder for the results; default infilled-<settings>/ beside the checkpoint.
        device, precision: see `sample`.
        again: fill again what is there already.
        trust: packages or classes of your own that the checkpoint may build, with commas.
        named: (library) more such names.
        options: (library) of the sampler, as texts.
    """
    loaded = load_family(ckpt_path, device, (*trusted_names(trust, {}), *named), precision)
    given = infill_input.read(loaded.model, text, input, mask, blank)
    values = drawing.sharpened(temperature, top_p, top_k, nucleus, guidance)
    values |= drawing.typed(loaded.model, sampler, options)
    asked = Asked(num_samples, num_steps, grid, sampler, label, seed, values)
    drawing.fill(loaded, given, asked, batch_size, out, again)
