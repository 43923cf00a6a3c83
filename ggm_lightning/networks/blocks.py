"""What the networks do with their blocks: run them in a row, recompute them in the backward pass, compile each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

GRAPHS = "graphs"
Compiling = bool | Literal["graphs"] | None  # compile_blocks of a network whose blocks stand in Stacks
_AS_GRAPH: dict[str, str | int | bool | Callable[..., Any]] = {
    "triton.cudagraphs": True,
    "triton.cudagraph_skip_dynamic_graphs": True,
}  # of static shapes alone


def recomputed(when: bool, part: Callable[..., Any], *inputs: Any) -> Any:
    """part(*inputs); `when` says to keep nothing of it but its inputs, and to compute it again in the backward pass,
    with the same dropout."""
    return checkpoint(part, *inputs, use_reentrant=False) if when else part(*inputs)


def joined(block: nn.Module, x: Tensor, skip: Tensor, *given: Tensor | None) -> Tensor:
    """block([x, skip], ...): recomputed as a whole, the two are kept but not their concatenation."""
    return block(torch.cat([x, skip], dim=1), *given)


class Stack(nn.ModuleList):
    """Blocks in a row: state = block(*state, *given), the state being one tensor or, for a network with several
    streams, as many as a block returns. `last` is given to the last block besides.

    Args:
        blocks: in their order; their names in a checkpoint are those of a ModuleList.
        checkpoint_activations: recompute each block in the backward pass: less memory, about a third more time.
    """

    _as_graph: Callable[..., tuple[Tensor, ...]] | None = None

    def __init__(self, blocks: list[nn.Module], checkpoint_activations: bool = False):
        super().__init__(blocks)
        self.checkpoint_activations = checkpoint_activations

    def compile_as_graph(self) -> None:
        """Compile all blocks as one function, which a GPU replays as one CUDA graph. With gradients only: the shapes of
        sampling change, and what a graph returned is overwritten by the next."""
        self._as_graph = torch.compile(self._run, options=_AS_GRAPH)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was compiled, as torch leaves it out of every module."""
        return {name: value for name, value in super().__getstate__().items() if name != "_as_graph"}

    def forward(
        self, state: tuple[Tensor, ...], *given: Tensor | None, last: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        run = self._run if self._as_graph is None or not torch.is_grad_enabled() else self._as_graph
        return run(state, *given, last=last)

    def _run(self, state: tuple[Tensor, ...], *given: Tensor | None, last: Tensor | None = None) -> tuple[Tensor, ...]:
        for i, block in enumerate(self, 1):
            inputs = (*state, *given) if last is None or i < len(self) else (*state, *given, last)
            out = recomputed(self.checkpoint_activations and self.training, block, *inputs)
            state = out if isinstance(out, tuple) else (out,)
        return state


class BlockNetwork(nn.Module):
    """A network that can compile its blocks, the modules of the classes `compiled`, one by one.

    compile_blocks: whether it does; None: where it is to run on a GPU, which whoever trains it knows; "graphs": its
        Stacks besides, each as one CUDA graph.
    """

    compiled: tuple[type[nn.Module], ...] = ()
    compile_blocks: Compiling = None

    def compile_network(self) -> None:
        """Compile each block in place, so the checkpoint's keys stay as they are; nothing unless compile_blocks."""
        if not self.compile_blocks:
            return
        import torch._dynamo  # here: it takes a second

        if self.compile_blocks == GRAPHS:
            stacks = [module for module in self.modules() if isinstance(module, Stack)]
            if not stacks:
                raise ValueError(
                    f"compile_blocks is '{GRAPHS}', but the blocks of {type(self).__name__} do not stand in a row; "
                    "choose true"
                )
            for stack in stacks:
                stack.compile_as_graph()
        blocks = [module for module in self.modules() if isinstance(module, self.compiled)]
        # A block that differs from the others in its sizes or its resampling needs a graph of its own, twice, with and
        # without gradients; beyond the limit (8) torch would run the rest uncompiled.
        settings = torch._dynamo.config
        settings.recompile_limit = max(settings.recompile_limit, 2 * len(blocks))
        for block in blocks:
            block.compile()


def check_sizes(
    feature_dim: int, dropout: float, mlp: str, mlps: Collection[str], num_labels: int = 0, **positive: int
) -> None:
    """Raises ValueError, in one line, for sizes that no transformer here can have; `positive` are numbers by name."""
    for name, value, least in [*((name, value, 1) for name, value in positive.items()), ("num_labels", num_labels, 0)]:
        if value is None or value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if feature_dim < 2 or feature_dim % 2:
        raise ValueError(
            f"feature_dim is {feature_dim}; rotary positions turn pairs of features: give a positive even number"
        )
    if mlp not in mlps:
        raise ValueError(f"mlp is {mlp!r}; choose one of {', '.join(mlps)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; it is a probability: give a number in [0, 1)")
