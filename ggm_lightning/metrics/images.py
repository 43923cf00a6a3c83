"""How near drawn pictures are to real ones, by the features of a network that has seen many pictures.

    FID  |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) of the features' means and covariances          (arXiv 1706.08500)
    KID  the unbiased squared MMD with the kernel (f . f' / d + 1)^3, of all pairs                (arXiv 1801.01401)
    IS   exp(E KL(p(y | x) || p(y))) of the network's classes, without any real picture           (arXiv 1606.03498)

FID and IS are torchmetrics', and KID's parts, too. Pictures go through the network once, in `features_of`, and the
metrics are given the features: which form of a picture a metric hands to a network, and whether it asks how many
features there are by a dummy picture, is then no question.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

SPLITS = 10
_TOGETHER = 2048  # rows of the kernel at once


@dataclass(frozen=True)
class Features:
    """What a network says of pictures.

    Attributes:
        values: Float64[n, d].
        logits: Float64[n, classes], None where the network knows no classes.
    """

    values: Float[Tensor, "n d"]
    logits: Float[Tensor, "n y"] | None = None

    def __len__(self) -> int:
        return len(self.values)


class _AsGiven(nn.Module):
    """For torchmetrics: features as they are. Without `num_features` it would send a picture of 299 x 299 through."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return features


@torch.no_grad()
def features_of(network: nn.Module, batches: Iterable[UInt8[Tensor, "b 3 h w"]], device: str = "cpu") -> Features:
    """Sends pictures through a network that returns features Float[b, d], or (features, logits).

    Raises:
        ValueError: no pictures; another shape than a row of numbers for each; NaN or infinite features.
    """
    values: list[Tensor] = []
    logits: list[Tensor] = []
    for pictures in batches:
        came = network(pictures.to(device))
        both = came if isinstance(came, tuple) else (came, None)
        values.append(_checked(both[0], len(pictures), network, "features"))
        if both[1] is not None:
            logits.append(_checked(both[1], len(pictures), network, "logits"))
    if not values:
        raise ValueError("there are no pictures to measure; give some")
    return Features(torch.cat(values), torch.cat(logits) if logits else None)


def _checked(came: Tensor, count: int, network: nn.Module, what: str) -> Tensor:
    name = type(network).__name__
    if not isinstance(came, Tensor) or came.dim() != 2 or len(came) != count or not came.is_floating_point():
        shown = f"shape {tuple(came.shape)}" if isinstance(came, Tensor) else f"a {type(came).__name__}"
        raise ValueError(f"--extractor {name}: its {what} of {count} pictures are {shown}; return Float[{count}, d]")
    if not torch.isfinite(came).all():
        raise ValueError(f"--extractor {name}: its {what} hold NaN or infinity; look at its weights and its input")
    return came.double().cpu()


def refuse_too_few(count: int, num_features: int, what: str, remedy: str) -> None:
    """A covariance of d features takes d + 1 pictures; of fewer FID is a number that says nothing. And the error of KID
    takes two pictures in each split."""
    if count < 2 * SPLITS:
        raise ValueError(
            f"{what}: {count:,} pictures are too few for {SPLITS} splits; {remedy} (at least {2 * SPLITS})"
        )
    if count <= num_features:
        raise ValueError(
            f"{what}: {count:,} pictures are too few for the covariance of {num_features:,} features; {remedy} "
            f"(at least {num_features + 1:,}; published are 50,000)"
        )


def frechet_distance(real: Features, drawn: Features) -> float:
    """FID. Raises ValueError for fewer pictures than features."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    num_features = real.values.shape[1]
    for which, features in (("real", real), ("drawn", drawn)):
        refuse_too_few(len(features), num_features, f"FID of {which} pictures", "take more")
    metric = FrechetInceptionDistance(_AsGiven(num_features))
    metric.update(real.values, real=True)
    metric.update(drawn.values, real=False)
    return float(metric.compute())


def kernel_distance(real: Features, drawn: Features, splits: int = SPLITS) -> tuple[float, float]:
    """(KID of all pairs, its standard error from disjoint `splits` of both sets). Where both laws are nearly the same,
    KID of more pictures is surer than its splits say: the error is then too large, by up to sqrt(splits)."""
    value = _squared_mmd(real.values, drawn.values)
    parts = zip(real.values.tensor_split(splits), drawn.values.tensor_split(splits), strict=True)
    each = torch.tensor([_squared_mmd(one, other) for one, other in parts], dtype=torch.float64)
    return value, float(each.std() / len(each) ** 0.5)


def _squared_mmd(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> float:
    """Unbiased: pairs of a picture with itself are left out."""
    n, m = len(x), len(y)
    within_x = (_kernel_sum(x, x) - _kernel_of_itself(x)) / (n * (n - 1))
    within_y = (_kernel_sum(y, y) - _kernel_of_itself(y)) / (m * (m - 1))
    return within_x + within_y - 2 * _kernel_sum(x, y) / (n * m)


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    from torchmetrics.image.kid import poly_kernel

    return sum(float(poly_kernel(part, y).sum()) for part in x.split(_TOGETHER))


def _kernel_of_itself(x: Tensor) -> float:
    return float(((x * x).sum(1) / x.shape[1] + 1).pow(3).sum())


def inception_score(drawn: Features, splits: int = SPLITS, seed: int = 0) -> tuple[float, float] | None:
    """(IS as the mean over `splits`, its standard error from them); None of a network without classes.

    The pictures are shuffled first, as published; by the seed.
    """
    if drawn.logits is None:
        return None
    from torchmetrics.image.inception import InceptionScore

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `InceptionScore` will save")  # it is in memory already
        metric = InceptionScore(_AsGiven(drawn.logits.shape[1]), splits=splits)
    metric.update(drawn.logits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation) / splits**0.5
