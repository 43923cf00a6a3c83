"""Weights put into another model: what fits, the rows of a vocabulary by their tokens, and a list that leaves nothing
out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ggm_lightning import GGM, MD4, FujiLDDM, GenMD4
from ggm_lightning.codecs.codec import Codec
from ggm_lightning.codecs.text import Characters
from ggm_lightning.models.trained import Trained
from ggm_lightning.networks.hollow import HollowTransformer
from ggm_lightning.networks.latent import JointDenoiser
from ggm_lightning.networks.latent_encoder import LatentEncoder
from ggm_lightning.networks.transformer import Transformer
from ggm_lightning.rundir import start, transfer
from ggm_lightning.rundir.checkpoint import describe

THEIRS, OURS = Characters("abcdefg", None), Characters("xgéad", None)  # 7 and 5 classes, three in common
SAME = {1: 6, 3: 0, 4: 3}  # of ours -> of theirs


def built(family: type[Trained], num_classes: int, network: nn.Module, **arguments: Any) -> Any:
    """As the command line makes it: it knows its own configuration."""
    torch.manual_seed(num_classes)
    model = family(network=network, num_classes=num_classes, shape=(5,), **arguments)  # type: ignore[call-arg]
    with torch.no_grad():
        for parameter in model.parameters():  # zeros would hide a wrong row
            parameter.copy_(torch.randn_like(parameter))
    sizes = {"feature_dim": 4, "num_heads": 2, "num_layers": 1}
    name = f"{type(network).__module__}.{type(network).__qualname__}"
    if type(network) is Transformer:
        section = {"network": {"class_path": name, "init_args": {**sizes, "num_labels": network.num_labels}}}
        model.resolved_config = {
            "model": {"class_path": f"{family.__module__}.{family.__qualname__}", "init_args": section}
        }
    return model


def transformer(num_classes: int, **arguments: Any) -> Transformer:
    return Transformer(num_classes, feature_dim=4, num_heads=2, num_layers=1, **arguments)


def weights(model: Any, codec: Codec | None) -> start.Weights:
    about = {**describe(model), "codec": None if codec is None else json.loads(json.dumps(codec.to_dict()))}
    about["model"] = about["model"] or {"init_args": {"num_classes": model.num_classes}}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    return start.Weights("runs/x", Path("runs/x/last.ckpt"), values, True, about, 17, "0123456789abcdef")


def same_rows(ours: Tensor, theirs: Tensor) -> dict[int, int]:
    """Which row of ours equals which of theirs, bit for bit."""
    return {
        i: j for i in range(len(ours)) for j in range(len(theirs)) if torch.equal(ours[i].double(), theirs[j].double())
    }


def test_rows_of_a_vocabulary_are_carried_by_their_tokens() -> None:
    old, new = built(MD4, 7, transformer(7)), built(MD4, 5, transformer(5))
    before = {name: value.clone() for name, value in new.state_dict().items()}
    said = start.begin(new, weights(old, THEIRS), OURS)
    for name, mask in (("network.embedding.weight", {5: 7}), ("network.head.weight", {})):
        assert same_rows(new.state_dict()[name], old.state_dict()[name]) == {**SAME, **mask}
        left = [i for i in range(5) if i not in SAME]
        assert torch.equal(new.state_dict()[name][left], before[name][left])  # new tokens are as they were initialised
    assert torch.equal(new.network.blocks[0].attention.out.weight, old.network.blocks[0].attention.out.weight)
    assert "3 of 5 tokens are known there; 2 new ones start as initialised ('x' 'é'); 4 of its tokens are unknown" in (
        " ".join(said)
    )
    assert new.started_from == {
        "given": "runs/x",
        "file": "runs/x/last.ckpt",
        "step": 17,
        "identity": "0123456789abcdef",
    }


def test_as_many_classes_in_another_order() -> None:
    """Equal shapes do not mean equal tokens. Control: the same codec's rows stay where they are."""
    old, new = built(MD4, 5, transformer(5)), built(MD4, 5, transformer(5))
    start.begin(new, weights(old, Characters("axgéd", None)), OURS)
    moved = {0: 1, 1: 2, 2: 3, 3: 0, 4: 4}
    assert same_rows(new.network.embedding.weight, old.network.embedding.weight) == {**moved, 5: 5}
    again = built(MD4, 5, transformer(5))
    start.begin(again, weights(old, OURS), OURS)
    assert same_rows(again.network.embedding.weight, old.network.embedding.weight) == {i: i for i in range(6)}


def test_which_axes_are_a_vocabulary_is_not_guessed_from_sizes() -> None:
    """Eight classes, a width of eight and eight labels."""
    model = built(MD4, 8, transformer(8, num_labels=8))
    axes = transfer.vocabulary_axes(model, 8)
    assert axes == {"network.embedding.weight": {0: 1}, "network.head.weight": {0: 0}}
    assert model.network.condition.label_table.weight.shape == (9, 4)
    model.resolved_config = None  # of a model that cannot be built again the tables' sizes have to do
    assert "network.condition.label_table.weight" in transfer.vocabulary_axes(model, 8)


def test_genmd4_from_md4_and_back() -> None:
    old, new = built(MD4, 7, transformer(7)), built(GenMD4, 5, transformer(5))
    exponents = new.raw_exponents.detach().clone()
    said = start.begin(new, weights(old, THEIRS), OURS)
    assert torch.equal(new.raw_exponents, exponents)
    assert said[said.index("  new        starts as initialised") + 1].split() == ["raw_exponents"]
    other = built(GenMD4, 7, transformer(7))
    start.begin(other, weights(new, OURS), THEIRS)
    assert same_rows(other.raw_exponents[:, None], new.raw_exponents[:, None]) == {j: i for i, j in SAME.items()}
    assert "raw_exponents" in " ".join(start.begin(old, weights(other, THEIRS), THEIRS)[-1:])  # left out


def joint(**arguments: Any) -> FujiLDDM:
    sizes = {"feature_dim": 4, "num_heads": 2, "num_layers": 1, "num_latents": 3, "latent_dim": 2}
    return built(FujiLDDM, 7, JointDenoiser(7, mlp="glu", **sizes), encoder=LatentEncoder(7, **sizes), **arguments)


def test_the_stream_of_tokens_of_lddm_is_a_transformers() -> None:
    old, new = built(MD4, 7, transformer(7)), joint()
    latents = new.network.blocks[0].latents.attention.out.weight.detach().clone()
    start.begin(new, weights(old, THEIRS), THEIRS)
    ours, theirs = new.network.state_dict(), old.network.state_dict()
    for name, value in theirs.items():
        place = name.replace("blocks.0.", "blocks.0.tokens.").replace("condition.", "latent_condition.")
        assert torch.equal(ours[place], value), name
    assert torch.equal(new.network.blocks[0].latents.attention.out.weight, latents)


def test_the_token_network_of_diladd_starts_from_md4_and_its_codes_from_nothing() -> None:
    """The stream of tokens is the Transformer's; encoder, codebook and the codes' own network stay as they were."""
    from ggm_lightning.models.diladd import DiLADD

    sizes = {"feature_dim": 4, "num_heads": 2, "num_layers": 1, "num_latents": 5, "latent_dim": 2}
    old = built(MD4, 7, transformer(7))
    encoder = LatentEncoder(7, chunk=1, normalise="none", **sizes)
    network = JointDenoiser(7, mlp="glu", latent_positions="aligned", **sizes)
    prior = MD4(transformer(3), 3, (5,))
    new = built(DiLADD, 7, network, encoder=encoder, prior=prior, num_codes=3)
    untouched = [name for name in new.state_dict() if name.startswith(("prior.", "encoder.", "codebook."))]
    before = {name: new.state_dict()[name].clone() for name in untouched}
    start.begin(new, weights(old, THEIRS), THEIRS)
    ours, theirs = new.network.state_dict(), old.network.state_dict()
    for name, value in theirs.items():
        place = name.replace("blocks.0.", "blocks.0.tokens.").replace("condition.", "latent_condition.")
        assert torch.equal(ours[place], value), name
    assert all(torch.equal(new.state_dict()[name], value) for name, value in before.items())
    assert len(untouched) > 20


def test_a_trained_encoder_begins_with_stage_1_again() -> None:
    from ggm_lightning.models.lddm_stages import Recipe

    old = joint()
    old.freeze_encoder([torch.arange(35).reshape(7, 5) % 7])
    given = joint()
    start.begin(given, weights(old, THEIRS), THEIRS)  # stage1_steps 0: the encoder is as it was given
    assert given.is_fixed
    assert bool(given.encoder.norm.fixed)
    anew = joint(recipe=Recipe(stage1_steps=3))
    start.begin(anew, weights(old, THEIRS), THEIRS)
    assert not anew.is_fixed
    assert not bool(anew.encoder.norm.fixed)
    assert torch.equal(anew.encoder.queries, old.encoder.queries)


def test_another_number_of_labels_and_a_time_that_is_found_again() -> None:
    """The columns of the time stand before those of a label; the table of labels is new."""
    old, new = built(MD4, 7, transformer(7)), built(MD4, 7, transformer(7, num_labels=3))
    table = new.network.condition.label_table.weight.detach().clone()
    start.begin(new, weights(old, THEIRS), THEIRS)
    columns = new.network.condition.mlp[0].weight
    assert torch.equal(columns[:, :4], old.network.condition.mlp[0].weight)
    assert columns.shape == (16, 8)
    assert torch.equal(new.network.condition.label_table.weight, table)


def test_hollow_takes_what_fits_by_name_and_shape() -> None:
    old = built(MD4, 7, transformer(7))
    new = built(GGM, 7, HollowTransformer(7, feature_dim=4, num_heads=2, num_layers=1, num_merges=1), order="random")
    merges = new.network.merge_blocks[0].attention.out.weight.detach().clone()
    start.begin(new, weights(old, THEIRS), THEIRS)
    assert torch.equal(new.network.embedding.weight, old.network.embedding.weight)
    assert torch.equal(new.network.merge_blocks[0].attention.out.weight, merges)


def test_every_tensor_is_in_the_list() -> None:
    """Groups name how many they are; all numbers add up to both models."""
    old, new = built(MD4, 7, transformer(7)), joint()
    plan = transfer.planned(new, old.state_dict(), {}, None)
    fates = [*plan.whole, *plan.rows, *plan.beginnings, *plan.new]
    assert sorted(fates) == sorted(new.state_dict())
    assert {*plan.whole.values(), *plan.left_out} | plan.new.keys() >= old.state_dict().keys()
    counted = {"": 0}
    for line in start.begin(new, weights(old, THEIRS), THEIRS)[1:]:
        heading, _, rest = line.strip().partition("  ")
        if line.startswith("             "):
            (group, *_) = line.split(":")
            number = int(group.rpartition("(")[2].rstrip(")")) if group.endswith(")") else 1
            counted[""] += number
        else:
            assert heading in ("carried", "new", "left out"), rest
    assert counted[""] == len(fates) + len(plan.left_out)


def test_nothing_fits() -> None:
    old = built(MD4, 7, Transformer(7, feature_dim=6, num_heads=1, num_layers=1))
    with pytest.raises(ValueError, match=r"--init_from runs/x: nothing of it fits: .* take a network of the same kind"):
        start.begin(built(MD4, 5, transformer(5)), weights(old, THEIRS), OURS)


def test_a_vocabulary_that_is_not_known() -> None:
    """As many rows are taken for the same tokens, and this is said; others start anew, and this is said, too."""
    old, new = built(MD4, 7, transformer(7)), built(MD4, 7, transformer(7))
    said = start.begin(new, weights(old, None), THEIRS)
    assert "its 7 rows are taken for the same 7 tokens, in their order" in said[-1]
    assert same_rows(new.network.embedding.weight, old.network.embedding.weight) == {i: i for i in range(8)}
    other = built(MD4, 5, transformer(5))
    before = other.network.embedding.weight.detach().clone()
    said = start.begin(other, weights(old, None), OURS)
    assert "rows of tokens start as initialised" in said[-1]
    assert torch.equal(other.network.embedding.weight, before)


class Positions(nn.Module):
    """A network of one's own with learned positions."""

    begins_alike = ("positions",)

    def __init__(self, num_classes: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes + 1, 3)
        self.positions = nn.Parameter(torch.randn(length, 3))
        self.head = nn.Linear(3, num_classes)

    def forward(self, z: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.head(self.embedding(z) + self.positions[: z.shape[1]])


def test_longer_positions_begin_as_the_shorter_ones() -> None:
    for longer, shorter in ((11, 7), (7, 11)):
        old, new = built(MD4, 7, Positions(7, shorter)), built(MD4, 7, Positions(7, longer))
        before = new.network.positions.detach().clone()
        start.begin(new, weights(old, THEIRS), THEIRS)
        assert torch.equal(new.network.positions[:7], old.network.positions[:7])
        assert torch.equal(new.network.positions[7:], before[7:])
