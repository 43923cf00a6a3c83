"""The latent-first loops of LDDM: which row's label and latent stand beside which candidate."""

from __future__ import annotations

import torch
from torch import Tensor

from ggm_lightning.models.lddm import SeqLDDM
from tests.models.every_family import LABELS, N, V, small

B, CANDIDATES = 4, 3


def labelled() -> SeqLDDM:
    model = small("seq", infill_latents=CANDIDATES)
    assert isinstance(model, SeqLDDM)
    return model


def labels_of(model: SeqLDDM, part: str) -> list[Tensor]:
    """What the joint network ("network") or the latent's ("latent_network") is told in each call."""
    found: list[Tensor] = []
    table = getattr(model, part).condition.label_table
    table.register_forward_pre_hook(lambda module, given: found.append(given[0]))
    return found


def test_every_candidate_of_a_row_has_the_rows_label() -> None:
    """Candidates stand next to each other, so the labels are 0 0 0 1 1 1 2 2 2, and not 0 1 2 0 1 2 0 1 2."""
    model, label = labelled(), torch.arange(B) % LABELS
    of_latents, of_tokens = labels_of(model, "latent_network"), labels_of(model, "network")
    known = torch.arange(N) < 2
    model.sample(B, 2, label=label, clamp=(torch.zeros(N).long(), known), latent_steps=2)
    expected = label.repeat_interleave(CANDIDATES)
    assert [given.tolist() for given in of_latents] == [expected.tolist()] * 2
    assert expected.tolist() != label.repeat(CANDIDATES).tolist()
    weighing = of_tokens[: 2 * CANDIDATES]  # two known tokens, one after the other; afterwards only rows that need it
    assert [given.tolist() for given in weighing] == [label.tolist()] * 2 * CANDIDATES


def test_the_candidates_of_a_row_are_those_of_the_row_alone() -> None:
    """Known and unknown tokens, labels and latents of a row do not depend on its batch."""
    model, label = labelled(), torch.arange(B) % LABELS
    values = torch.arange(B * N).reshape(B, N) % V
    known = torch.rand(B, N, generator=torch.Generator().manual_seed(0)) < 0.5
    together = model.sample(B, 3, label=label, clamp=(values, known), latent_steps=2, seed=5).x
    for i in range(B):
        one, row = slice(i, i + 1), torch.tensor([i])
        options = {"clamp": (values[one], known[one]), "latent_steps": 2, "seed": 5, "row": row}
        assert torch.equal(model.sample(1, 3, label=label[one], **options).x[0], together[i])
    other = model.sample(B, 3, label=label.flip(0), clamp=(values, known), latent_steps=2, seed=5).x
    assert not torch.equal(other, together)
