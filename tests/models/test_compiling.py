"""Blocks are compiled by default where a trainer takes the model to a GPU, which is said; nowhere else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ggm_lightning.models import declared
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.transformer import Transformer


def network(choice: bool | None) -> Transformer:
    return Transformer(7, feature_dim=4, num_heads=2, num_layers=2, compile_blocks=choice)


def compiled(net: Transformer) -> bool:
    return all(block._compiled_call_impl is not None for block in net.blocks)


@pytest.mark.parametrize(
    ("choice", "device", "expected"),
    [(None, "cuda", True), (None, "cpu", False), (False, "cuda", False), (True, "cpu", True), (None, None, False)],
)
def test_where_blocks_are_compiled(
    choice: bool | None, device: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(declared, "rank_zero_info", said.append)
    model = MD4(network(choice), 7, (5,))
    if device is not None:
        model._trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    model.configure_model()
    assert compiled(model.network) is expected
    assert len(said) == (expected and choice is None)
    assert all("compile_blocks: false leaves it out" in line for line in said)
