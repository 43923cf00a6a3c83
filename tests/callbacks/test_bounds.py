"""bounds.csv has a line for each example, in the data set's order, whatever rank and batch it came from."""

from __future__ import annotations

import csv
import math
from types import SimpleNamespace

import pytest
import torch

from ggm_lightning.callbacks.bounds import Bounds

N = 5


@pytest.fixture
def written(tmp_path):
    """written(predictions of each rank) -> the lines of bounds.csv."""

    def run(*ranks):
        model = SimpleNamespace(num_sites=N)
        strategy = SimpleNamespace(barrier=lambda name: None)
        for rank in reversed(range(len(ranks))):  # rank zero joins them, so it comes last
            trainer = SimpleNamespace(
                default_root_dir=tmp_path,
                global_rank=rank,
                world_size=len(ranks),
                is_global_zero=rank == 0,
                strategy=strategy,
            )
            Bounds().write_on_epoch_end(trainer, model, ranks[rank], [])
        with (tmp_path / "bounds.csv").open() as file:
            return list(csv.DictReader(file))

    return run


def prediction(rows, nats):
    return {"row": torch.tensor(rows), "nelbo": torch.tensor(nats, dtype=torch.float64)}


def test_two_ranks_with_uneven_ends(written, tmp_path):
    first = [prediction([0, 2], [10.0, 12.5]), prediction([4], [14.0])]
    second = [prediction([1, 3], [11.0, 13.0])]
    lines = written(first, second)
    assert [int(line["example"]) for line in lines] == [0, 1, 2, 3, 4]
    assert [float(line["nats"]) for line in lines] == [10.0, 11.0, 12.5, 13.0, 14.0]
    bits = [float(line["bits_per_dimension"]) for line in lines]
    assert bits == [float(line["nats"]) / (N * math.log(2)) for line in lines]
    assert [path.name for path in tmp_path.iterdir()] == ["bounds.csv"]


def test_a_rank_without_rows(written):
    assert [line["nats"] for line in written([prediction([0], [0.1])], [])] == ["0.1"]
