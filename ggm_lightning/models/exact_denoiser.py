"""The exact denoiser of a known law in the place of a model's network, in the same sampler: what is wrong then with its
samples is the sampler's, and what is better than with the network was not learned (arXiv 2602.19619).

    masked diffusion (arXiv 2406.04329)    log p(x_i | the sites that are shown), whatever the time
    from left to right (AR)                log p(x_i | x_1 .. x_{i-1})
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ggm_lightning.core.known_law import KnownLaw
from ggm_lightning.models.base import Family


class ExactDenoiser(nn.Module):
    """Called as a network; computed on the CPU in float64, whatever the device of the model.

    Args:
        law: of the data. from_left: of the sites before alone, as an autoregressive network; its rows are moved by one.
    """

    def __init__(self, law: KnownLaw, from_left: bool) -> None:
        super().__init__()
        self.law, self.from_left = law, from_left
        self.num_classes, self.causal = law.num_classes, from_left
        # by which a model knows its device and that times are to be told in float64
        self.precision = nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)

    def forward(self, z: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        flat = z.flatten(1).cpu()
        if not self.from_left:
            return self.law.log_posterior(flat).to(z.device)
        last = torch.zeros_like(flat[:, :1])  # nothing is asked behind the last site
        return self.law.log_next(torch.cat([flat[:, 1:], last], 1)).to(z.device)


def refusal(model: Family, law: KnownLaw | None, name: str = "the data") -> str | None:
    """Why there is none for this model and these data; None where there is one."""
    if law is None:
        return f"the law of {name} is not known; a Markov chain, the sawtooth and the dictionary have one"
    if (law.num_sites, law.num_classes) != (model.num_sites, model.num_classes):
        return (
            f"the law of {name} is of {law.num_sites} sites of {law.num_classes} classes, the model of "
            f"{model.num_sites} of {model.num_classes}"
        )
    masks = model.mask_id is not None and model.schedule is not None
    if model.network_keywords or not (masks or model.fills_beginnings_only):
        return (
            f"what the network of {type(model).__name__} says is no law of a site given those that are shown; MD4, "
            "AutoregressiveModel and MarkovDiffusion with process absorbing take one"
        )
    return None


@contextmanager
def put_in(model: Family, law: KnownLaw | None, name: str = "the data") -> Iterator[Family]:
    """Inside, the model with the exact denoiser as its network. Raises ValueError where there is none."""
    reason = refusal(model, law, name)
    if law is None or reason is not None:
        raise ValueError(f"denoiser exact: {reason}")
    network = model.network
    model.network = ExactDenoiser(law, model.fills_beginnings_only).to(model.device)
    try:
        yield model
    finally:
        model.network = network
