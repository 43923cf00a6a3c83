"""Which options of GGM (arXiv 2405.17035) go together: one line for what does not."""

from __future__ import annotations

from torch import nn

from ggm_lightning.models import declared

LOSSES = ("bce", "ce_xt", "ce_x0")
ALL_SITES_LOSSES = ("bce", "bce_sampled", "ce_x0", "bound")  # with order: random


def check(
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


def check_levels(
    network: nn.Module, order: str, levels: bool, train_sweeps: list[int] | None, known_rows: float | None
) -> None:
    """Raises ValueError; see GGM for what they mean."""
    own, name = declared.by(network), declared.name_of(network)
    if levels:
        _check_with_levels(own.levels, name, order, train_sweeps, known_rows)
        return
    if own.levels:
        raise ValueError(
            f"GGM: the network {name} was built for the sites' levels; set levels: true in the model, too, or leave "
            "it out in the network"
        )
    if not own.visited_bits:  # of ours, which take the argument in any case
        raise ValueError(
            f"GGM: the network {name} was built without the visited bits; set its visited_bits: true "
            "(a class of your own takes the keyword argument visited, Bool[b, n])"
        )
    for option, given in (("train_sweeps", train_sweeps), ("known_rows", known_rows)):
        if given is not None:
            raise ValueError(f"{option} is {given}, which needs levels: true in the model and the network")


def _check_with_levels(
    network_has_levels: bool, name: str, order: str, train_sweeps: list[int] | None, known_rows: float | None
) -> None:
    if order != "random":
        raise ValueError(
            f"levels is true and order '{order}'; take order: random and a hollow network, or leave it out"
        )
    if not network_has_levels:
        raise ValueError(
            f"GGM: levels is true, but the network {name} was built without them; set its levels: true (a class of "
            "your own has an attribute levels = True and takes the keyword argument levels, Float[b, n])"
        )
    if train_sweeps is not None and (not train_sweeps or min(train_sweeps) < 1):
        raise ValueError(f"train_sweeps is {train_sweeps}; give numbers of sweeps of at least 1, such as [2, 4, 8]")
    if known_rows is not None and not 0 <= known_rows <= 1:
        raise ValueError(f"known_rows is {known_rows}; it is a share: give a number in [0, 1]")


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
