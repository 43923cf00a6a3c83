"""metrics/images.py: FID, KID and IS against their formulas; what torchmetrics takes without a word is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from ggm_lightning.codecs.pictures import Images
from ggm_lightning.data.toy.digits import digits
from ggm_lightning.metrics import images
from ggm_lightning.metrics.images import Features

D = 11


def features(count: int, seed: int, shift: float = 0.0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D, D, generator=generator, dtype=torch.float64)
    values = torch.randn(count, D, generator=generator, dtype=torch.float64) @ mixing + shift
    return Features(values, torch.randn(count, 7, generator=generator, dtype=torch.float64))


def test_fid_is_the_formula() -> None:
    real, drawn = features(53, 0), features(47, 1, 0.3)
    means = [one.values.numpy().mean(0) for one in (real, drawn)]
    covariances = [np.cov(one.values.numpy(), rowvar=False) for one in (real, drawn)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert images.frechet_distance(real, drawn) == pytest.approx(wanted, rel=1e-10)
    assert images.frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    biased = [np.cov(one.values.numpy(), rowvar=False, bias=True) for one in (real, drawn)]
    root = scipy.linalg.sqrtm(biased[0] @ biased[1]).real
    other = ((means[0] - means[1]) ** 2).sum() + np.trace(biased[0] + biased[1] - 2 * root)
    assert abs(other - wanted) > 1e-3 * wanted, "control: covariances divided by n"


def test_kid_is_the_mean_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_TOGETHER", 13)
    real, drawn = features(31, 0), features(23, 1, 0.3)

    def mean(x: torch.Tensor, y: torch.Tensor, same: bool) -> float:
        pairs = [(i, j) for i, j in itertools.product(range(len(x)), range(len(y))) if not (same and i == j)]
        return float(np.mean([(float(x[i] @ y[j]) / D + 1) ** 3 for i, j in pairs]))

    x, y = real.values, drawn.values
    wanted = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    value, error = images.kernel_distance(real, drawn)
    assert value == pytest.approx(wanted, rel=1e-10)
    assert error > 0
    biased = mean(x, x, False) + mean(y, y, False) - 2 * mean(x, y, False)
    assert abs(biased - wanted) > 1e-3 * abs(wanted), "control: pairs of a picture with itself"


def test_the_error_of_kid_is_that_of_its_splits() -> None:
    """Over many draws, KID of laws that differ deviates by what its splits say. Of equal laws it is 0 in the mean, and
    its error, which falls faster there, is said too large and never too small."""
    torch.manual_seed(0)

    def drawn(shift: float) -> tuple[np.ndarray, np.ndarray]:
        pairs = [(torch.randn(60, 3).double(), torch.randn(60, 3).double() + shift) for _ in range(100)]
        found = [images.kernel_distance(Features(one), Features(other)) for one, other in pairs]
        return tuple(np.array(found).T)  # type: ignore[return-value]

    values, errors = drawn(1.0)
    assert 0.8 < np.sqrt((errors**2).mean()) / values.std() < 1.3
    values, errors = drawn(0.0)
    assert abs(values.mean()) < 4 * values.std() / 100**0.5
    assert 1 < np.sqrt((errors**2).mean()) / values.std() < 4


def test_inception_score_is_the_formula() -> None:
    drawn = features(60, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        logits = drawn.logits[torch.randperm(60)]  # type: ignore[index]
    parts = logits.softmax(1).reshape(10, 6, 7)
    scores = [float((part * (part / part.mean(0)).log()).sum(1).mean().exp()) for part in parts]
    before = torch.get_rng_state()
    value, error = images.inception_score(drawn, seed=3)  # type: ignore[misc]
    assert torch.equal(before, torch.get_rng_state()), "torch's own generator is left alone"
    assert value == pytest.approx(np.mean(scores), rel=1e-10)
    assert error == pytest.approx(np.std(scores, ddof=1) / 10**0.5, rel=1e-10)
    assert value != images.inception_score(drawn, seed=4)[0]  # type: ignore[index]
    assert images.inception_score(Features(drawn.values)) is None


# ------------------------------------------------------------------ what goes through the network


class Means(nn.Module):
    """The mean of each channel; other answers by name."""

    def __init__(self, fault: str = ""):
        super().__init__()
        self.fault, self.seen = fault, []

    def forward(self, pictures: torch.Tensor) -> object:
        self.seen.append((tuple(pictures.shape), pictures.dtype))
        values = pictures.float().mean((2, 3))
        faults = {"nan": values * float("nan"), "map": pictures.float(), "integers": values.long(), "text": "x"}
        return faults.get(self.fault, (values, values * 2))


def batches(*counts: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (count, 3, 5, 2), dtype=torch.uint8, generator=generator) for count in counts]


def test_every_picture_goes_through_once_as_bytes() -> None:
    """No dummy of 299 x 299, no floats: what torchmetrics would ask an injected network."""
    network, given = Means(), batches(2, 5, 1)
    found = images.features_of(network, given)
    assert network.seen == [((count, 3, 5, 2), torch.uint8) for count in (2, 5, 1)]
    assert torch.equal(found.values, torch.cat(given).float().mean((2, 3)).double())
    assert torch.equal(found.logits, found.values * 2)
    images.frechet_distance(Features(found.values.repeat(9, 1)), Features(found.values.repeat(9, 1) + 1))
    assert len(network.seen) == 3


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("nan", "its features hold NaN or infinity"),
        ("map", r"its features of 2 pictures are shape \(2, 3, 5, 2\); return Float\[2, d\]"),
        ("integers", "its features of 2 pictures"),
        ("text", "are a str"),
    ],
)
def test_refused_answers(fault: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        images.features_of(Means(fault), batches(2))


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="there are no pictures"):
        images.features_of(Means(), [])
    wide = [Features(torch.randn(count, 32).double()) for count in (32, 33)]
    with pytest.raises(ValueError, match=r"FID of drawn pictures: 32 pictures are too few for the covariance of 32"):
        images.frechet_distance(wide[1], wide[0])
    images.frechet_distance(wide[1], wide[1])
    with pytest.raises(ValueError, match="19 pictures are too few for 10 splits"):
        images.refuse_too_few(19, 3, "--num_drawn", "draw more")
    images.refuse_too_few(20, 3, "--num_drawn", "draw more")


# ------------------------------------------------------------------ a small classifier of the digits


class Classifier(nn.Module):
    """Two layers; its 16 hidden numbers are the features."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.hidden(pictures[:, 0].float().flatten(1) / 255).relu()
        return features, self.last(features)


def test_digits_measured_by_a_classifier_of_digits() -> None:
    """Half of the real digits is near the other half; noised ones are farther, the more the farther."""
    ids, label = digits()
    pictures = torch.from_numpy(Images(17, (1, 8, 8)).decode(ids).copy()).permute(0, 3, 1, 2)
    torch.manual_seed(0)
    network = Classifier()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for step in range(120):
        rows = torch.arange(step * 64, step * 64 + 64) % 1500
        loss = nn.functional.cross_entropy(network(pictures[rows])[1], torch.from_numpy(label)[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = (network(pictures[1500:])[1].argmax(1) == torch.from_numpy(label)[1500:]).float().mean()
    assert right > 0.85
    real = images.features_of(network, pictures[:750].split(64))
    found = []
    for share in (0.0, 0.25, 1.0):
        noise = torch.randint(256, (750, 1, 8, 8), dtype=torch.uint8).expand(-1, 3, -1, -1)
        noised = torch.where(torch.rand(750, 1, 8, 8) < share, noise, pictures[750:1500])
        drawn = images.features_of(network, noised.split(64))
        score = images.inception_score(drawn)
        assert score is not None
        found.append((images.frechet_distance(real, drawn), images.kernel_distance(real, drawn)[0], score[0]))
    distances, kernels, scores = zip(*found, strict=True)
    assert 2 * distances[0] < distances[1] < distances[2] / 2
    assert 2 * kernels[0] < kernels[1] < kernels[2] / 2
    assert scores[0] > scores[1] > scores[2]
    assert 6 < scores[0] <= 10
