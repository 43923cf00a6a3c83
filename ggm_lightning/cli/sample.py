"""`lightning sample`: from a checkpoint alone, on any device, without the trainer's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ggm_lightning.cli import drawing
from ggm_lightning.cli.drawing import Asked
from ggm_lightning.cli.loading import load_family, trusted_names


def sample(
    ckpt_path: str,
    num_samples: int = 16,
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
    """Draw samples from a checkpoint.

    Args:
        ckpt_path: file written by `lightning fit`; its averaged weights are used.
        num_samples: how many.
        num_steps: reverse steps; more is closer to the model's own law. GGM: of sampler parallel alone.
        temperature: 1 draws from the model, less sharpens, 0 takes the mode.
        top_p: mass of the nucleus; 1 draws from the model.
        top_k: keep so many classes before the nucleus is taken.
        nucleus: crossing keeps the class that crosses top_p, inside leaves it out (as ReMDM does).
        guidance: how far the label pulls, for plans; 1 is the model's own law, 0 leaves the label out.
        grid: times of the steps, cosine or uniform, for families that let you choose.
        sampler: by its name (an unknown one lists the family's, whose first is the default), or the path of a class of
            your own. Its options follow as --sampler.NAME VALUE; --latent_steps is LDDM's.
        label: class to condition on, or `each` for all of them in turn.
        seed: sample r is a function of (seed, r), whatever the batch size.
        batch_size: samples drawn at once.
        out: folder for the results; default samples-<settings>/ beside the checkpoint.
        device: auto, cpu, cuda, ...
        precision: of the network's products: 32, bf16, or auto, on cuda that of the training, else 32. Draws and sums
            are in float32 and float64 whatever it is.
        again: draw again what is there already.
        trust: packages or classes of your own that the checkpoint may build, separated by commas.
        named: (library) more such names.
        options: (library) of the sampler, as texts.
    """
    loaded = load_family(ckpt_path, device, (*trusted_names(trust, {}), *named), precision)
    values = drawing.sharpened(temperature, top_p, top_k, nucleus, guidance)
    of_sampler = drawing.typed(loaded.model, sampler, options)
    asked = Asked(num_samples, num_steps, grid, sampler, label, seed, values | of_sampler)
    drawing.draw_samples(loaded, asked, batch_size, out, again)
