"""What networks/pretrained.py promises: pooling, clipping, normalisation, hidden inputs, and staying out of the way."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ggm_lightning.data.text import TextData
from ggm_lightning.networks.pretrained import PretrainedEncoder, chunk_means

B, N, V, D, S, C = 2, 7, 11, 5, 3, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class StandIn(nn.Module):
    """A causal language model in three lines; dropout, so that train mode would show."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(V, D)
        self.mix = nn.Linear(D, D)
        self.drop = nn.Dropout(0.5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.drop(self.mix(self.table(ids)).cumsum(1))


def encoder(**changes) -> PretrainedEncoder:
    options = {"source": StandIn(), "num_latents": S, "latent_dim": C, "normalise": "none"}
    return PretrainedEncoder(**(options | changes))


def ids() -> Tensor:
    return torch.randint(V, (B, N))


# Pooling


def test_chunks_by_definition():
    states = torch.randn(B, N, D, dtype=torch.float64)
    for chunks in (1, 2, 3, 5, 7):
        members = [[i for i in range(N) if i * chunks // N == chunk] for chunk in range(chunks)]
        by_hand = torch.stack([states[:, chunk].mean(1) for chunk in members], dim=1)
        torch.testing.assert_close(chunk_means(states, chunks), by_hand, rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="7 tokens do not fill 8 chunks; set num_latents to 7"):
        chunk_means(states, 8)


def test_poolings():
    model, x = StandIn().eval(), ids()
    states = model(x)[..., :C]
    torch.testing.assert_close(encoder(source=model)(x), chunk_means(states, S))
    with_eos = encoder(source=model, pooling="chunks_eos")
    torch.testing.assert_close(with_eos(x), torch.cat([chunk_means(states, S - 1), states[:, -1:]], dim=1))
    torch.testing.assert_close(encoder(source=model, pooling="tokens", num_latents=N)(x), states)
    longer = model(F.pad(x, (0, 1), value=9))[..., :C]
    appended = encoder(source=model, pooling="chunks_eos", eos=9)(x)
    torch.testing.assert_close(appended, torch.cat([chunk_means(longer[:, :N], S - 1), longer[:, -1:]], dim=1))
    assert (appended - with_eos(x)).abs().max() > 1e-2


def test_normalisations():
    model, x = StandIn(), ids()
    plain = encoder(source=model)(x)
    unit = encoder(source=model, normalise="unit")(x)
    torch.testing.assert_close(unit, plain / plain.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(encoder(source=model, normalise="sphere")(x), unit * C**0.5)
    coordinates = encoder(source=model, normalise="coordinate")
    mean, std = torch.randn(S, C), torch.rand(S, C) + 0.5
    coordinates.set_statistics(mean, std)
    for mode in (True, False):
        coordinates.train(mode)
        torch.testing.assert_close(coordinates(x), (plain - mean) / std, rtol=1e-4, atol=1e-4)
    assert torch.equal(coordinates.raw(x), plain)


def test_hidden_tokens_cannot_be_told():
    model, x = StandIn(), ids()
    hidden = torch.zeros(B, N, dtype=torch.bool)
    hidden[0, 1:3] = hidden[1, 6] = True
    changed = torch.where(hidden, (x + 1) % V, x)
    for pooling, size in (("chunks", S), ("chunks_eos", S), ("tokens", N)):
        frozen = encoder(source=model, pooling=pooling, num_latents=size, eos=3)
        latent = frozen(x, hidden)
        assert torch.equal(frozen(changed, hidden), latent)
        assert (frozen(changed) - frozen(x)).abs().amax((1, 2)).min() > 1e-3
        if pooling == "tokens":  # token by token: no latent, either
            assert torch.equal((latent == 0).all(-1), hidden)
    assert not model.table._forward_hooks, "the model is left as it was"


# Out of the way


def test_it_is_no_part_of_the_module():
    model = StandIn()
    owner = nn.Module()
    owner.encoder = encoder(source=model)
    assert list(owner.parameters()) == []
    assert owner.state_dict() == {}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    coordinates = encoder(source=model, normalise="coordinate")
    assert set(coordinates.state_dict()) == {"norm.mean", "norm.variance", "norm.fixed"}


def test_it_is_always_in_eval_mode_and_without_gradients():
    frozen, x = encoder().train(), ids()
    assert torch.equal(frozen(x), frozen(x))
    assert not frozen(x).requires_grad
    frozen._foreign[0].train()
    assert not torch.equal(frozen(x), frozen(x)), "control: the stand-in does drop out"


def test_it_moves_with_its_owner():
    owner = nn.Module()
    owner.encoder = encoder()
    x = ids()
    before = owner.encoder(x)
    owner.double()
    after = owner.encoder(x)
    assert after.dtype is torch.float64
    torch.testing.assert_close(after.float(), before)
    owner.to("meta")
    assert owner.encoder(x.to("meta")).device.type == "meta"


def test_states_may_come_as_a_field():
    class Wrapped(StandIn):
        def forward(self, ids: Tensor) -> SimpleNamespace:
            return SimpleNamespace(last_hidden_state=super().forward(ids))

    model, wrapped, x = StandIn(), Wrapped(), ids()
    wrapped.load_state_dict(model.state_dict())
    assert torch.equal(encoder(source=wrapped)(x), encoder(source=model)(x))


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "mean"}, "'mean'.*chunks, chunks_eos, tokens"),
        ({"normalise": "batch"}, "'batch'.*unit, sphere, coordinate, none"),
        ({"num_latents": 0}, "num_latents is 0"),
        ({"num_latents": 1, "pooling": "chunks_eos"}, "num_latents is 1.*at least 2"),
        ({"num_classes": V + 1}, "knows 11 tokens, the data has 12"),
    ],
)
def test_wrong_arguments_are_named(changes: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        encoder(**changes)
    assert "\n" not in str(caught.value)


def test_wrong_sizes_are_named():
    x = ids()
    with pytest.raises(ValueError, match="5 coordinates; set latent_dim to that or less, not 6"):
        encoder(latent_dim=6)(x)
    with pytest.raises(ValueError, match="set num_latents to 7"):
        encoder(pooling="tokens")(x)
    with pytest.raises(ValueError, match=r"'none'.*no statistics"):
        encoder().set_statistics(torch.zeros(S, C), torch.ones(S, C))
    model = StandIn()
    model.positions = nn.Embedding(N, D)
    with pytest.raises(ValueError, match="get_input_embeddings"):
        encoder(source=model)(x, torch.zeros(B, N, dtype=torch.bool))
    model.get_input_embeddings = lambda: model.table
    assert encoder(source=model)(x, torch.zeros(B, N, dtype=torch.bool)).shape == (B, S, C)


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *rest):
        if name.split(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    frozen = encoder(source="models/some")  # building needs nothing, as sampling never encodes
    with pytest.raises(ModuleNotFoundError, match=r"models/some.*pip install 'ggm-lightning\[eval\]'") as caught:
        frozen(ids())
    assert "\n" not in str(caught.value)


# transformers


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """A folder with a random Qwen3 of a few thousand weights and a tokenizer of its vocabulary."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300, "max_position_embeddings": 64}
    transformers.Qwen3Model(transformers.Qwen3Config(**sizes, **heads)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_of_transformers(qwen: Path):
    from transformers import AutoModel

    frozen, x = encoder(source=str(qwen), normalise="unit", num_classes=300), torch.randint(300, (B, N))
    states = AutoModel.from_pretrained(str(qwen)).eval()(x).last_hidden_state.detach()
    torch.testing.assert_close(frozen(x), F.normalize(chunk_means(states[..., :C], S), dim=-1))
    hidden = torch.zeros(B, N, dtype=torch.bool)
    hidden[:, 2] = True
    changed = torch.where(hidden, (x + 1) % 300, x)
    assert torch.equal(frozen(changed, hidden), frozen(x, hidden))
    assert list(frozen.parameters()) == []
    with pytest.raises(ValueError, match="knows 300 tokens, the data has 301"):
        encoder(source=str(qwen), num_classes=301)(x)


def test_a_wrong_folder_is_one_line(tmp_path: Path):
    pytest.importorskip("transformers")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"empty cannot be loaded.*folder or name") as caught:
        encoder(source=str(tmp_path / "empty"))(ids())
    assert "\n" not in str(caught.value)


def test_the_models_folder_is_the_datas_tokenizer(tmp_path: Path):
    """By the vocabulary alone: 70,000 entries, more than a uint16 holds."""
    vocabulary = {f"w{i}": i for i in range(70_000)}
    words = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": words})
    )
    (tmp_path / "text.txt").write_text("w1 w69999 w2 w3 " * 30)
    data = TextData(
        str(tmp_path / "text.txt"), tokenizer=str(tmp_path), length=5, val_fraction=0.3, folder=str(tmp_path / "shards")
    )
    data.prepare_data()
    assert data.num_classes == 70_000
    assert json.loads((tmp_path / "shards" / "header.json").read_text())["dtype"] == "uint32"
    assert data.rows("train")[0]["x"].tolist() == [1, 69_999, 2, 3, 1]
