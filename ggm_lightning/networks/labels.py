"""Which labels a network knows: what everybody asks who hands it labels, or chooses them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class KnowsLabels(Protocol):
    """A network that says how many labels it has an embedding for; one of a user's own need not say."""

    num_labels: int  # 0: it takes none


def labels_known(network: object) -> int | None:
    """How many labels the network knows; None where it does not say."""
    return network.num_labels if isinstance(network, KnowsLabels) else None


def labels_of_model(model: nn.Module) -> int | None:
    """The same of a model's network; None for a model without one."""
    return labels_known(dict(model.named_children()).get("network"))
