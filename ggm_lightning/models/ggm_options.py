"""Which options of GGM (arXiv 2405.17035) go together: one line for what does not."""

from __future__ import annotations

from torch import nn

from ggm_lightning.models import declared

LOSSES = ("bce", "ce_xt", "ce_x0")
ALL_SITES_LOSSES = ("bce", "bce_sampled", "ce_x0", "bound")  # with order: random


def check(
    network: nn.Module,
    num_sites: int,
    order: str,
    loss: str,
    block_size: int,
    hide: str,
    redenoise: int,
    noise_draws: int,
    corrector_steps: int,
) -> None:
    """Raises ValueError; see GGM for what they mean."""
    if hide not in ("own", "block"):
        raise ValueError(f"hide is '{hide}'; choose own or block")
    if not 1 <= block_size <= num_sites:
        raise ValueError(
            f"block_size is {block_size}; a block has between 1 and {num_sites} sites, all sites of an example"
        )
    if redenoise < 0:
        raise ValueError(f"redenoise is {redenoise}; it must be at least 0 rounds")
    if noise_draws < 1:
        raise ValueError(f"noise_draws is {noise_draws}; it must be at least 1 class")
    if corrector_steps < 0:
        raise ValueError(f"corrector_steps is {corrector_steps}; it must be at least 0 calls")
    if order == "random":
        _check_all_sites(loss, block_size, hide)
    else:
        _check_one_site(loss, corrector_steps)
    if not declared.by(network).visited_bits:  # of ours, which take the argument in any case
        raise ValueError(
            f"GGM: the network {type(network).__name__} was built without the visited bits; set its visited_bits: true "
            "(a class of your own takes the keyword argument visited, Bool[b, n])"
        )


def _check_all_sites(loss: str, block_size: int, hide: str) -> None:
    if loss == "ce_xt":
        raise ValueError(
            "loss is 'ce_xt', which no site may learn with order: random, as others see its token; ce_x0 may"
        )
    if loss not in ALL_SITES_LOSSES:
        raise ValueError(f"loss is '{loss}'; with order: random choose {', '.join(ALL_SITES_LOSSES)}")
    if block_size != 1 or hide != "own":
        raise ValueError(
            f"block_size is {block_size} and hide '{hide}' with order: random, where all sites learn from one call and "
            "nothing is hidden; leave both out"
        )


def _check_one_site(loss: str, corrector_steps: int) -> None:
    if loss in ALL_SITES_LOSSES and loss not in LOSSES:
        raise ValueError(
            f"loss is '{loss}', which needs order: random and a hollow network; or choose bce, ce_xt or ce_x0"
        )
    if loss not in LOSSES:
        raise ValueError(f"loss is '{loss}'; choose bce, ce_xt or ce_x0")
    if corrector_steps:
        raise ValueError(
            f"corrector_steps is {corrector_steps}, which asks many sites in one call: take order: random and a hollow "
            "network, or leave it out"
        )
