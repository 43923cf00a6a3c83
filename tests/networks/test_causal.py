"""A causal transformer says nothing of a site that the tokens behind it could change, and reads on from a cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ggm_lightning.networks.causal import Memory
from ggm_lightning.networks.transformer import Transformer

B, N, V, LABELS = 2, 5, 7, 3
CONFIGURATIONS = {
    "no time": {"time_features": "none"},
    "no time, geglu": {"time_features": "none", "mlp": "geglu"},
    "no time, swiglu, one block": {"time_features": "none", "mlp": "swiglu", "num_layers": 1},
    "labels": {"time_features": "none", "num_labels": LABELS},
    "labels, adaln": {"time_features": "none", "num_labels": LABELS, "conditioning": "adaln"},
    "a constant time": {},
    "site vectors": {"time_features": "none", "site_vectors": N},
    "outside_embed": {"time_features": "none", "outside_embed": True, "depth_scaled_init": False},
    "dropout, checkpointed": {"time_features": "none", "dropout": 0.3, "checkpoint_activations": True},
}


def network(name: str, causal: bool = True, dtype: torch.dtype = torch.float32) -> Transformer:
    torch.manual_seed(0)
    sizes = {"num_classes": V, "feature_dim": 6, "num_heads": 3, "num_layers": 2}
    found = Transformer(**{**sizes, **CONFIGURATIONS[name]}, causal=causal).to(dtype)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return found.eval()


def inputs(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor | None]:
    z = torch.randint(V + 1, (B, N), generator=torch.Generator().manual_seed(1))
    label = torch.tensor([2, 0]) if "labels" in name else None
    return z, torch.zeros(B, dtype=dtype), label


def moved(net: Transformer, name: str) -> Tensor:
    """Bool[n, n]: whether what is said at site i (row) changes to the bit when the token at j (column) does."""
    z, t, label = inputs(name)
    before = net(z, t, label)
    columns = []
    for j in range(N):
        other = z.clone()
        other[:, j] = (z[:, j] + 1) % V
        columns.append((net(other, t, label) != before).any(-1).any(0))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_site_moves_with_those_before_it_and_by_no_bit_with_those_behind(name: str) -> None:
    before_or_at = torch.ones(N, N, dtype=torch.bool).tril()
    assert torch.equal(moved(network(name), name), before_or_at)
    assert moved(network(name, causal=False), name).all()  # control


def test_long_sequences_too() -> None:
    """Longer than the blocks of positions that a kernel takes at once."""
    n, net = 131, network("no time")
    z = torch.randint(V, (B, n), generator=torch.Generator().manual_seed(1))
    t = torch.zeros(B)
    before = net(z, t)
    for cut in (1, 31, 32, 64, 97, 130):
        later = torch.where(torch.arange(n) < cut, z, (z + 1) % V)
        after = net(later, t)
        assert torch.equal(after[:, :cut], before[:, :cut])
        assert (after != before).any(-1)[:, cut:].all()
        earlier = torch.where(torch.arange(n) < cut, (z + 1) % V, z)
        assert (net(earlier, t) != before).any(-1)[:, cut:].all()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_gradients_come_from_those_before_alone(name: str) -> None:
    """In training mode, where dropout has no part in what is seen."""
    net = network(name).train()
    z, t, label = inputs(name)
    embedded: list[Tensor] = []
    net.embedding.register_forward_hook(lambda module, given, out: embedded.append(out) or out.retain_grad())
    for i in range(N):
        net.features(z, t, label)[:, i].square().sum().backward()
        gradient = embedded[-1].grad
        assert gradient is not None
        assert (gradient[:, i + 1 :] == 0).all()
        assert (gradient[:, : i + 1].abs().sum((0, 2)) > 0).all()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_some_sites_are_those_of_all(name: str) -> None:
    net = network(name, dtype=torch.float64)
    z, t, label = inputs(name, torch.float64)
    sites = torch.tensor([[3, 0, 3], [4, 2, 1]])
    every = net.features(z, t, label)
    some = net.features(z, t, label, sites=sites)
    torch.testing.assert_close(some, every.take_along_dim(sites[..., None], 1), rtol=0, atol=1e-12)
    with pytest.raises(AssertionError):  # control: the sites matter
        torch.testing.assert_close(some, every.take_along_dim(sites.flip(1)[..., None], 1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("parts", [(1, 1, 1, 1, 1), (3, 1, 1), (2, 3), (5,)], ids=str)
def test_a_cache_reads_on(name: str, parts: tuple[int, ...]) -> None:
    net = network(name, dtype=torch.float64)
    z, t, label = inputs(name, torch.float64)
    cache = net.new_cache(N)
    read = torch.cat([net.extend(part, t, label, cache) for part in z.split(list(parts), 1)], 1)
    assert cache.length == N
    torch.testing.assert_close(read, net.features(z, t, label), rtol=0, atol=1e-12)
    forgetful = torch.cat([net.extend(part, t, label, net.new_cache(N)) for part in z.split(1, 1)], 1)  # control
    assert (forgetful - read)[:, 1:].abs().max() > 1e-3


def test_what_a_cache_refuses() -> None:
    with pytest.raises(ValueError, match="set its causal: true"):
        network("no time", causal=False).new_cache(N)
    memory = Memory(2)
    part = torch.zeros(B, 2, 3, 6)
    memory.append(part, part)
    with pytest.raises(ValueError, match=r"^the cache was made for 2 sites, 3 came; make it for more$"):
        memory.append(part[:, :1], part[:, :1])


def test_causal_adds_no_parameters() -> None:
    """The same sizes, names and start: a checkpoint of one is one of the other."""
    plain, causal = network("no time", causal=False), network("no time")
    assert [(n, p.shape) for n, p in plain.named_parameters()] == [(n, p.shape) for n, p in causal.named_parameters()]
    z, t, _ = inputs("no time")
    assert torch.allclose(plain(z[:, :1], t), causal(z[:, :1], t), atol=1e-6)  # alone a site sees all there is
    assert not torch.allclose(plain(z, t), causal(z, t), atol=1e-2)


@pytest.mark.slow
def test_compiled_blocks_are_causal_and_compute_the_same() -> None:
    plain = network("no time")
    compiled = network("no time")
    compiled.compile_blocks = True
    compiled.compile_network()
    z, t, _ = inputs("no time")
    torch.testing.assert_close(compiled(z, t), plain(z, t), rtol=0, atol=1e-5)
    assert torch.equal(moved(compiled, "no time"), torch.ones(N, N, dtype=torch.bool).tril())
    cache = compiled.new_cache(N)
    read = torch.cat([compiled.extend(part, t, None, cache) for part in z.split(1, 1)], 1)
    torch.testing.assert_close(read, plain.features(z, t), rtol=0, atol=1e-5)
