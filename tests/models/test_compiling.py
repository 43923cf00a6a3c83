"""Blocks are compiled by default where a trainer takes the model to a GPU, which is said; nowhere else. As CUDA graphs
only where one asks for it, and in training alone."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from ggm_lightning.models import declared
from ggm_lightning.models.base import Family
from ggm_lightning.models.md4 import MD4
from ggm_lightning.networks.blocks import BlockNetwork, Compiling, Stack
from ggm_lightning.networks.transformer import Transformer
from ggm_lightning.networks.unet import UNet
from tests.models.test_fused_training import N, family


def network(choice: Compiling) -> Transformer:
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
        model._trainer = trainer_of(device)
    model.configure_model()
    assert compiled(model.network) is expected
    assert len(said) == (expected and choice is None)
    assert all("compile_blocks: false leaves it out" in line for line in said)


def on(trainer: SimpleNamespace, choice: Compiling) -> MD4:
    model = MD4(network(choice), 7, (5,))
    model._trainer = trainer
    return model


def trainer_of(device: str, micro_batches: int = 1) -> SimpleNamespace:
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(strategy=strategy, accumulate_grad_batches=micro_batches)


def test_graphs_are_for_steps_of_one_micro_batch() -> None:
    with pytest.raises(ValueError, match=r"Transformer: compile_blocks is 'graphs', but a step has 2 micro-batches"):
        on(trainer_of("cuda", 2), "graphs").configure_model()
    on(trainer_of("cuda", 2), True).configure_model()
    model = on(trainer_of("cuda"), "graphs")
    model.configure_model()
    assert compiled(model.network)
    assert model.network.blocks._as_graph is not None


def test_graphs_are_for_blocks_in_a_row() -> None:
    unet = UNet(7, (1, 8, 8), feature_dim=32, num_layers=1)
    unet.compile_blocks = "graphs"
    with pytest.raises(ValueError, match="the blocks of UNet do not stand in a row; choose true"):
        unet.compile_network()


def test_graphs_are_asked_in_training_alone() -> None:
    model = on(trainer_of("cpu"), "graphs")
    keys = list(model.state_dict())
    model.configure_model()
    stack, asked = model.network.blocks, []
    plain = stack._run

    def counted(*given: Tensor, last: Tensor | None = None) -> tuple[Tensor, ...]:
        asked.append(given)
        return plain(*given, last=last)

    for block in stack:
        block._compiled_call_impl = None
    stack._as_graph = counted
    x = torch.zeros(2, 5, dtype=torch.int64)
    model.loss(x, step=0).backward()
    assert len(asked) == 1
    model.nelbo(x)
    model.sample(2, 3)
    assert len(asked) == 1
    assert list(model.state_dict()) == keys
    assert copy.deepcopy(model.network).blocks._as_graph is None


def gradients(model: Family, x: Tensor, step: int) -> list[Tensor]:
    """Of the loss and of all parameters: one that does not count gets none, or zeros where it is compiled with others
    that do."""
    model.zero_grad()
    loss = model.loss(x, step=step)
    loss.backward()
    found = (p.grad for p in model.parameters())
    return [loss.detach(), *(torch.zeros(()) if g is None or not g.any() else g.clone() for g in found)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["md4", "md4, recomputed", "hollow_bce of 7", "ggm", "fuji", "seq"])
def test_a_step_by_graphs_is_the_step_and_nothing_is_compiled_again(name: str) -> None:
    """On a CPU the whole row of blocks is compiled, but no CUDA graph is made of it: that `make gpu` looks at."""
    plain, model = (family(name.partition(",")[0]) for _ in range(2))
    x = torch.randint(model.num_classes, (4, N), generator=torch.Generator().manual_seed(0))
    for module in model.modules():
        if isinstance(module, BlockNetwork):
            module.compile_blocks = "graphs"
        if isinstance(module, Stack):
            module.checkpoint_activations = name.endswith("recomputed")
    model.configure_model()
    assert any(isinstance(module, Stack) and module._as_graph is not None for module in model.modules())
    made = []
    for step in range(4):
        torch.testing.assert_close(gradients(model, x, step), gradients(plain, x, step), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.nelbo(x), plain.nelbo(x), rtol=1e-5, atol=1e-5)
        made.append(counters["stats"]["unique_graphs"])
    assert made[1:] == made[1:2] * 3
    assert made[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["md4", "hollow_bce of 7", "ggm", "seq"])
def test_bounds_and_samples_of_other_sizes_compile_nothing_again(name: str) -> None:
    """A block has a graph for training, one for bounds, and few of free sizes for samples, whose rows grow fewer."""
    model = family(name)
    x = torch.randint(model.num_classes, (4, N), generator=torch.Generator().manual_seed(0))
    for module in model.modules():
        if isinstance(module, BlockNetwork):
            module.compile_blocks = True
    model.configure_model()
    made = []
    for rows in ((4, 7, 2, 16), (5, 9, 3, 12)):
        model.loss(x, step=0).backward()
        model.nelbo(x)
        for num_samples in rows:
            model.sample(num_samples, 8, seed=num_samples)
        made.append(counters["stats"]["unique_graphs"])
    assert made[0] == made[1] > 0
