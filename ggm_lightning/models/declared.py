"""What a network or an encoder may say of itself besides its call, and the only place where a model asks for it.

Nothing of this is required: a function wrapped in an nn.Module will do. What is said is checked when a model is built.
Used by the families of arXiv 2406.04329, 2405.17035, 2510.18114 and 2305.11089; how they call a network stands in each
one's docstring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from ggm_lightning.core.arguments import is_whole, shown
from ggm_lightning.networks.blocks import GRAPHS, BlockNetwork


class Network(Protocol):
    """A module that predicts; every member is optional.

    Attributes:
        num_classes: V it was built for, to be compared with the data's.
        num_labels: it embeds labels 0..num_labels-1, and num_labels stands for none; 0: it takes no labels. Without
            this attribute it is given labels as they come, None where there are none.
        head: the last layer. With it and `features` (LDDM: `streams`) logits are formed only where they are needed.
        takes_sites: features also takes `sites` Int64[b, m] and computes its last block at no others.
        visited_bits: False where it was built without GGM's visited bits.
        levels: True where it takes the sites' survival levels in the place of these bits (GGM with levels: true).
        causal: False where it says of a site what the sites behind it decide, too (AutoregressiveModel refuses it).
        num_latents, latent_dim: S and d of the latent that it takes (LDDM).
    """

    num_classes: int
    num_labels: int | None
    head: nn.Module
    takes_sites: bool
    visited_bits: bool
    levels: bool
    causal: bool
    num_latents: int
    latent_dim: int

    def features(self, z: Tensor, t: Tensor, label: Tensor | None, **inputs: Tensor) -> Tensor:
        """Float[b, n, d], to which `head` is applied."""

    def streams(self, z: Tensor, t: Tensor, label: Tensor | None, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(features Float[b, n, d], z_0 Float[b, S, d])."""

    def new_cache(self, capacity: int) -> Any:
        """Empty, of a causal network: for `extend`, of that many sites at most. It has a `length`, the sites read."""

    def extend(self, z: Tensor, t: Tensor, label: Tensor | None, cache: Any) -> Tensor:
        """Features Float[b, m, d] of m tokens that stand behind those which the cache has seen, and now has these."""

    def compile_network(self) -> None:
        """Compile what is worth it; called before training."""


class Encoder(Protocol):
    """LDDM's encoder: num_latents and latent_dim are required, the rest is not.

    Attributes:
        num_latents, latent_dim: S and d of what it returns.
        normalise: "coordinate": the normalisation is measured on the data; anything else: it is given.
        foreign: True where it comes from elsewhere and is never trained here, such as a language model.
    """

    num_latents: int
    latent_dim: int
    normalise: str
    foreign: bool

    def raw(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        """Float[b, S, d] before normalisation."""

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Float[S, d] each, of `raw` over the data."""

    def compile_network(self) -> None:
        """As a network's."""


@dataclass(frozen=True)
class Declared:
    """What a module says of itself, with what is taken where it says nothing; see Network and Encoder."""

    num_classes: int | None = None
    num_labels: int | None = None
    num_latents: int | None = None
    latent_dim: int | None = None
    takes_sites: bool = False
    visited_bits: bool = True
    levels: bool = False
    causal: bool = True
    normalise: str = "coordinate"
    foreign: bool = False
    head: Any = None


_FIELDS = tuple(Declared.__dataclass_fields__)
_NUMBERS = ("num_classes", "num_labels", "num_latents", "latent_dim")
_SWITCHES = ("takes_sites", "visited_bits", "levels", "causal", "foreign")


def by(module: nn.Module | None) -> Declared:
    """Asked anew wherever it is needed: a test or a notebook may put another network in the place of one."""
    return Declared(**{name: getattr(module, name) for name in _FIELDS if hasattr(module, name)})


def has(module: nn.Module, method: str) -> bool:
    """Whether it has the optional method: features, streams, new_cache, raw, set_statistics or compile_network."""
    return hasattr(module, method)


def stops_before_head(module: nn.Module) -> bool:
    """Whether it gives what goes into its last layer instead of logits."""
    return has(module, "features") or has(module, "streams")


def sizes_of(head: Any) -> tuple[int | None, int | None]:
    """(what goes into it, what comes out), where it says so as nn.Linear does."""
    return getattr(head, "in_features", None), getattr(head, "out_features", None)


def compile_all(*modules: nn.Module | None, on_gpu: bool = False, micro_batches: int = 1) -> None:
    """Calls `compile_network` of those that have it; one of ours that leaves it open (compile_blocks: null) compiles
    its blocks on a GPU, and says so.

    Raises ValueError for CUDA graphs in a step of several micro-batches: a graph writes its gradients always to the
    same place, where those of the micro-batch before stand.
    """
    for module in modules:
        if module is None or not has(module, "compile_network"):
            continue
        if isinstance(module, BlockNetwork) and module.compile_blocks == GRAPHS and micro_batches > 1:
            raise ValueError(
                f"{name_of(module)}: compile_blocks is '{GRAPHS}', but a step has {micro_batches} micro-batches, whose "
                "gradients a graph would overwrite; choose true, or a data.max_batch_per_device that holds them all"
            )
        if isinstance(module, BlockNetwork) and module.compile_blocks is None and on_gpu:
            module.compile_blocks = True
            rank_zero_info(
                f"{name_of(module)}: its blocks are compiled in the first steps, which take a minute or two for it; "
                "compile_blocks: false leaves it out"
            )
        module.compile_network()  # type: ignore[operator]


def name_of(module: nn.Module) -> str:
    """The class; torch.compile wraps it in one of its own."""
    return type(getattr(module, "_orig_mod", module)).__name__


def check(family: str, part: str, module: nn.Module, fast: str | None = None) -> None:
    """ValueError where a module says of itself what cannot be meant, naming the attribute. `fast`: the method that is
    called instead of the module where it has one, and then needs a `head`."""
    found = by(module)
    for name in _NUMBERS:
        value = getattr(found, name)
        if value is not None and not is_whole(value):
            raise ValueError(
                f"{family}: {part} {name_of(module)}.{name} is {shown(value)}; give a whole number, or leave the "
                "attribute out"
            )
    for name in _SWITCHES:
        value = getattr(found, name)
        if not isinstance(value, bool):
            raise ValueError(f"{family}: {part} {name_of(module)}.{name} is {shown(value)}; give True or False")
    if fast is not None and has(module, fast) and not isinstance(found.head, nn.Module):
        raise ValueError(
            f"{family}: {part} {name_of(module)} has `{fast}` but no `head`, the layer that makes logits of what "
            f"{fast} returns; give it one, or call the method by another name"
        )
