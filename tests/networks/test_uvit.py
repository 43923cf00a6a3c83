"""What only networks/uvit.py promises: the transformer between the residual blocks. The rest stands in test_unet.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ggm_lightning.networks.uvit import DiT, DiTBlock, FeedForward, UViT, position_table

MISC = np.load(Path(__file__).parents[1] / "data" / "md4_oracle_misc.npz")

B, N, D, K = 2, 5, 12, 13  # D: width of the transformer; K: size of the condition


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def tiny(size: tuple[int, int] = (6, 10), condition_dim: int | None = K, randomise: bool = True, **changes) -> DiT:
    sizes = {"channels": 7, "patch_size": 2, "width": D, "num_layers": 2, "num_heads": 3}
    network = DiT(size=size, condition_dim=condition_dim, **{**sizes, **changes})
    for parameter in network.parameters() if randomise else ():
        nn.init.normal_(parameter, std=0.2)
    return network


def test_position_table():
    official = torch.from_numpy(MISC["misc__pos2d_dim16_grid4"]).double()
    torch.testing.assert_close(position_table(4, 4, 16), official, rtol=0, atol=1e-6)
    rows_first = position_table(4, 4, 16).roll(8, dims=1)
    assert (rows_first - official).abs().max() > 0.5


def test_position_table_of_a_rectangle():
    table = position_table(3, 5, 8).reshape(3, 5, 8)
    square = position_table(5, 5, 8).reshape(5, 5, 8)
    assert torch.equal(table, square[:3])
    assert torch.equal(table[0, :, :4], table[2, :, :4])  # the first half tells the column
    assert torch.equal(table[:, 0, 4:], table[:, 4, 4:])  # the second the row


def test_starts_silent_and_with_the_table():
    network = tiny(randomise=False)
    x, condition = torch.randn(B, 7, 6, 10), torch.randn(B, K)
    assert (network(x, condition) == 0).all()
    torch.testing.assert_close(network.positions, position_table(3, 5, D).float())
    assert network.positions.requires_grad
    tokens = torch.randn(B, N, D)
    assert torch.equal(network.blocks[0](tokens, condition), tokens)
    bare = DiTBlock(D, 3, None)
    assert not torch.equal(bare(tokens, None), tokens)


def test_initial_laws():
    """Deviations within 3% (the smallest kernel has 9,216 entries: standard error 0.6%), cut at two deviations."""
    network = tiny(width=96, channels=32, randomise=False)
    block = network.blocks[0]
    laws = [
        (network.embed.weight, 4 * 32),
        (block.attention.qkv.weight, 96),
        (block.attention.out.weight, 96),
        (block.feed_forward.up.weight, 96),
        (block.feed_forward.down.weight, 4 * 96),
    ]
    for kernel, fan_in in laws:
        assert kernel.std().item() == pytest.approx(fan_in**-0.5, rel=0.03)
        assert kernel.abs().max() <= 2 * fan_in**-0.5 / 0.8796
    assert not any(parameter.any() for name, parameter in network.named_parameters() if name.endswith("bias"))


def test_patches_return_to_their_place():
    """Without blocks and norm, a token speaks for its own patch only."""
    network = tiny(num_layers=0)
    x, condition = torch.randn(B, 7, 6, 10), torch.zeros(B, K)
    other = x.clone()
    other[:, 3, 2, 7] += 1
    changed = (network(x, condition) != network(other, condition)).any(1).any(0)
    rows, columns = changed.nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 3, 6, 7)
    assert changed.sum() == 4


@pytest.mark.parametrize("size", [(5, 7), (5, 10), (6, 9), (1, 3)])
def test_odd_sizes_are_padded(size: tuple[int, int]):
    """The same as the map with zeros below and on the right, cut back."""
    height, width = size
    even = (height + height % 2, width + width % 2)
    network, whole = tiny(size), tiny(even)
    whole.load_state_dict(network.state_dict())
    x, condition = torch.randn(B, 7, *size), torch.randn(B, K)
    padded = torch.zeros(B, 7, *even)
    padded[..., :height, :width] = x
    assert network(x, condition).shape == x.shape
    assert torch.equal(network(x, condition), whole(padded, condition)[..., :height, :width])


@pytest.mark.parametrize("condition_dim", [None, K])
def test_attention_loses_channels_not_positions(condition_dim: int | None):
    rate, width = 0.4, 600
    block = DiTBlock(width, 3, condition_dim, rate)
    if condition_dim is not None:
        nn.init.ones_(block.modulation.dense.bias)  # all gates are 1
    block.attention.forward, block.feed_forward.forward = torch.ones_like, torch.zeros_like
    added = block(torch.zeros(B, N, width), torch.zeros(B, K))
    dropped = added == 0
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(added[~dropped], torch.full_like(added[~dropped], 1 / (1 - rate)))
    assert abs(dropped[:, 0].double().mean().item() - rate) < 4 * (rate * (1 - rate) / (B * width)) ** 0.5


def test_attention_loses_probabilities():
    """With one position the only probability is 1: a head's value is kept, scaled up, or lost."""
    rate, rows = 0.4, 500
    attention = tiny(dropout=rate).blocks[1].attention
    attention.out = nn.Identity()
    x = torch.randn(rows, 1, D)
    values = attention.qkv(x)[..., -D:].unflatten(-1, (3, -1))
    heads = attention(x).unflatten(-1, (3, -1))
    lost = (heads == 0).all(-1)
    torch.testing.assert_close(heads[~lost], values[~lost] / (1 - rate))
    assert abs(lost.double().mean().item() - rate) < 4 * (rate * (1 - rate) / lost.numel()) ** 0.5
    torch.testing.assert_close(attention.eval()(x).unflatten(-1, (3, -1)), values)


def test_feed_forward_loses_single_numbers_twice():
    rate, width = 0.4, 600
    layer, seen = FeedForward(width, rate), []
    layer.down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    answer = layer(torch.randn(B, N, width))
    for numbers in (seen[0], answer):
        standard_error = (rate * (1 - rate) / numbers.numel()) ** 0.5
        assert abs((numbers == 0).double().mean().item() - rate) < 4 * standard_error
        assert not torch.equal(numbers[:, 0] == 0, numbers[:, 1] == 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dit_width": 10, "dit_heads": 5}, "dit_width is 10.*multiple of 4"),
        ({"dit_width": 12, "dit_heads": 5}, "dit_heads = 5"),
        ({"patch_size": 0}, "patch_size is 0.*at least 1"),
        ({"dit_heads": 0}, "dit_heads is 0"),
        ({"num_dit_layers": -1}, "num_dit_layers is -1"),
    ],
)
def test_wrong_sizes_are_named(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        UViT(**{"num_classes": 11, "shape": (3, 4, 4), "feature_dim": 32, "num_layers": 1, **changes})
