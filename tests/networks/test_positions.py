"""Time embedding and rotary positions against the official arrays in tests/data, and what they promise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ggm_lightning.networks.attention import rotary_tables, rotate, rotate_real
from ggm_lightning.networks.conditioning import time_embedding

MISC = np.load(Path(__file__).parents[1] / "data" / "md4_oracle_misc.npz")


@pytest.mark.parametrize("dim", [8, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_embedding(dim: int, dtype: torch.dtype):
    """Angles reach 1000 t and the reference rounds them, and the frequencies, to float32: an error of that size."""
    t = torch.from_numpy(MISC["misc__time_emb_t"])
    allowed = 1000 * t[:, None] * 2**-23 + 1e-7
    gap = (time_embedding(t, dim, dtype) - torch.from_numpy(MISC[f"misc__time_emb_dim{dim}_f64"])).abs()
    assert (gap <= allowed).all()
    swapped = time_embedding(t, dim, dtype).roll(dim // 2, dims=1)
    assert (swapped - torch.from_numpy(MISC[f"misc__time_emb_dim{dim}_f64"])).abs().max() > 0.5


def test_time_embedding_pads_an_odd_size():
    assert time_embedding(torch.tensor([0.3]), 7)[0, -1] == 0


@pytest.mark.parametrize("turn", [rotate, rotate_real])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotary(turn: Callable, dtype: torch.dtype):
    cos, sin = rotary_tables(6, 16, dtype)
    torch.testing.assert_close(cos.float(), torch.from_numpy(MISC["misc__rope_cos_hd16_len6"]), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin.float(), torch.from_numpy(MISC["misc__rope_sin_hd16_len6"]), rtol=0, atol=1e-6)
    x, expected = (torch.from_numpy(MISC[f"misc__rope_{end}"]).to(dtype) for end in ("in", "out"))
    torch.testing.assert_close(turn(x, cos, sin), expected, rtol=0, atol=1e-6)
    halves = x.unflatten(-1, (2, 8)).transpose(-1, -2).flatten(-2)  # pairs (i, i + 8), as other code bases rotate
    assert (turn(halves, cos, sin).unflatten(-1, (8, 2)).transpose(-1, -2).flatten(-2) - expected).abs().max() > 0.1


def test_attention_sees_distances_only():
    """<R_m q, R_n k> depends on m - n."""
    q, k = torch.randn(2, 1, 1, 1, 6, dtype=torch.float64)
    cos, sin = rotary_tables(11, 6, torch.float64)
    queries, keys = (rotate(x.expand(1, 11, 1, 6), cos, sin)[0, :, 0] for x in (q, k))
    scores = queries @ keys.T
    torch.testing.assert_close(scores[3:, 3:], scores[:-3, :-3], rtol=0, atol=1e-12)
    assert (scores[3:] - scores[:-3]).abs().max() > 1e-3


def test_tables_are_fine_for_long_texts():
    cos, _ = rotary_tables(4096, 64)
    exact = np.cos(4095 * 1e4 ** (-2 * np.arange(32) / 64))
    np.testing.assert_allclose(cos[-1], exact, rtol=0, atol=1e-7)
