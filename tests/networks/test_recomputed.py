"""Image networks that compute their blocks again in the backward pass: the same gradients, fewer numbers kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning.networks.ncsnpp import NCSNpp
from ggm_lightning.networks.unet import UNet
from ggm_lightning.networks.uvit import UViT

V = 11
SIZES = {
    UNet: {"num_classes": V, "shape": (3, 5, 7), "feature_dim": 64, "num_layers": 2},
    UViT: {"num_classes": V, "shape": (3, 5, 7), "feature_dim": 64, "num_layers": 2, "num_dit_layers": 2}
    | {"dit_width": 12, "dit_heads": 3},
    NCSNpp: {"shape": (3, 4, 12), "feature_dim": 8, "multipliers": (1, 2), "num_blocks": 2, "attention_sizes": (2,)},
}


def built(kind: type[nn.Module], **more: object) -> nn.Module:
    torch.manual_seed(1)
    network = kind(**SIZES[kind], **more)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def inputs(kind: type[nn.Module]) -> tuple[Tensor, Tensor]:
    z = torch.randint(V, (2, *SIZES[kind]["shape"]), generator=torch.Generator().manual_seed(0))
    return (z.float() if kind is NCSNpp else z), torch.tensor([0.23, 0.71])


@pytest.mark.parametrize("kind", list(SIZES))
def test_recomputing_changes_no_gradient(kind: type[nn.Module]) -> None:
    gradients = []
    for again in (False, True):
        network = built(kind, dropout=0.3, checkpoint_activations=again)
        torch.manual_seed(2)
        network(*inputs(kind)).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


def kept(network: nn.Module, kind: type[nn.Module]) -> int:
    """Numbers saved for the backward pass beside parameters, in the forward pass."""
    own = {parameter.data_ptr() for parameter in network.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            seen[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(*inputs(kind)).sum()
    return sum(seen.values())


@pytest.mark.parametrize("kind", list(SIZES))
def test_blocks_keep_nothing_but_their_inputs(kind: type[nn.Module]) -> None:
    assert kept(built(kind, checkpoint_activations=True), kind) < kept(built(kind), kind) / 3
    idle = built(kind, checkpoint_activations=True).eval()  # in evaluation there is nothing to recompute
    assert kept(idle, kind) == kept(built(kind).eval(), kind)
