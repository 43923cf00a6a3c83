"""The Inception network behind FID (arXiv 1706.08500): that of TensorFlow's archive of 2015-12-05, under the names of
the weights that torch-fidelity and pytorch-fid released.

It is Inception v3 (arXiv 1512.00567) with 1,008 classes; its average pools count no padding and its last block takes
maxima. Features are the 2,048 numbers before the last layer.

How pictures get to 299 x 299 decides the figures, so it is named: `tf` as TensorFlow 1 did, without smoothing and with
pixels shifted (all older tables), `clean` smoothed and bicubic (arXiv 2104.11222).
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

FILE = "weights-inception-2015-12-05-6726825d.pth"
WHERE = (
    f"{FILE} is among the releases of torch-fidelity (pytorch-fid's pt_inception-2015-12-05-6726825d.pth is the same): "
    "give its path as --inception, or a network of your own as --extractor"
)
RESIZES = ("clean", "tf")
SIDE, NUM_FEATURES, NUM_LOGITS = 299, 2048, 1008


class Convolution(nn.Module):
    """relu(BN(conv(x))), the convolution without a bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, padding: Any = 0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        return F.relu(self.bn(self.conv(x)))


def _wide(inputs: int, outputs: int, side: int) -> Convolution:
    """A kernel of 1 x side."""
    return Convolution(inputs, outputs, (1, side), padding=(0, side // 2))


def _tall(inputs: int, outputs: int, side: int) -> Convolution:
    return Convolution(inputs, outputs, (side, 1), padding=(side // 2, 0))


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    def __init__(self, inputs: int, pooled: int):
        super().__init__()
        self.branch1x1 = Convolution(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Convolution(inputs, 48, 1), Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Convolution(inputs, 64, 1), Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, padding=1)
        self.branch_pool = Convolution(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat(
            [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_mean(x))], 1
        )


class BlockB(nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3 = Convolution(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Convolution(inputs, 64, 1), Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.branch1x1 = Convolution(inputs, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Convolution(inputs, width, 1), _wide(width, width, 7)
        self.branch7x7_3 = _tall(width, 192, 7)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Convolution(inputs, width, 1), _tall(width, width, 7)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = _wide(width, width, 7), _tall(width, width, 7)
        self.branch7x7dbl_5 = _wide(width, 192, 7)
        self.branch_pool = Convolution(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_mean(x))], 1)


class BlockD(nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Convolution(inputs, 192, 1), Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Convolution(inputs, 192, 1), _wide(192, 192, 7)
        self.branch7x7x3_3, self.branch7x7x3_4 = _tall(192, 192, 7), Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_2(self.branch3x3_1(x))
        double = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([single, double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """`pool_maxima`: the pool of the last block, a slip of the archive's that all figures share."""

    def __init__(self, inputs: int, pool_maxima: bool):
        super().__init__()
        self.pool_maxima = pool_maxima
        self.branch1x1 = Convolution(inputs, 320, 1)
        self.branch3x3_1, self.branch3x3_2a = Convolution(inputs, 384, 1), _wide(384, 384, 3)
        self.branch3x3_2b = _tall(384, 384, 3)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Convolution(inputs, 448, 1), Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _wide(384, 384, 3), _tall(384, 384, 3)
        self.branch_pool = Convolution(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        singles = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        doubles = [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.pool_maxima else _mean(x)
        return torch.cat([self.branch1x1(x), *singles, *doubles, self.branch_pool(pooled)], 1)


class FIDInception(nn.Module):
    """Pictures UInt8[b, 3, h, w] -> (features Float[b, 2048], logits Float[b, 1008]).

    Args:
        resize: clean or tf, see the module's text.
    """

    num_features = NUM_FEATURES

    def __init__(self, resize: str = "clean"):
        super().__init__()
        if resize not in RESIZES:
            raise ValueError(f"resize is {resize!r}; choose {' or '.join(RESIZES)}")
        self.resize = resize
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a, self.Mixed_6b, self.Mixed_6c = BlockB(288), BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = BlockD(768), BlockE(1280, False), BlockE(2048, True)
        self.fc = nn.Linear(NUM_FEATURES, NUM_LOGITS)

    def forward(self, pictures: UInt8[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 2048"], Float[Tensor, "b 1008"]]:
        x = (resized(pictures, self.resize) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        features = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
        # the Inception Score is taken without the bias, as in the first code of it
        return features, F.linear(features, self.fc.weight)


def resized(pictures: UInt8[Tensor, "b c h w"], how: str) -> Float[Tensor, "b c 299 299"]:
    """At 299 x 299, float32 in 0..255, not rounded. Bicubic overshoots at edges: clean-fid cuts that off, and so it is
    here."""
    x = pictures.float()
    if how == "clean":
        bicubic = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
        return bicubic.clamp(0, 255)
    return _between(_between(x, 2), 3)


def _between(x: Tensor, axis: int) -> Tensor:
    """Linear between neighbours along one axis, at the places i * size / 299 of TensorFlow 1."""
    size = x.shape[axis]
    place = torch.arange(SIDE, device=x.device, dtype=torch.float32) * (size / SIDE)
    low = place.floor().long()
    high = (low + 1).clamp(max=size - 1)
    share = (place - low).reshape([-1 if i == axis else 1 for i in range(x.dim())])
    return torch.lerp(x.index_select(axis, low), x.index_select(axis, high), share)


def load(path: str | Path, resize: str = "clean") -> FIDInception:
    """The network with the released weights, in eval mode.

    Raises:
        FileNotFoundError: there is no such file; says where it comes from. ValueError: a file of something else, in one
            line; nothing of it is executed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--inception {path}: there is no such file; {WHERE}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"--inception {path}: not the released weights ({reason}); {WHERE}") from None
    with torch.device("meta"):
        network = FIDInception(resize)
    wanted = {name: value.shape for name, value in network.state_dict().items() if not name.endswith("_tracked")}
    found = (
        {name: value for name, value in state.items() if not name.endswith("_tracked")}
        if isinstance(state, dict)
        else {}
    )
    for name in [*wanted, *found]:
        if name not in found or name not in wanted or getattr(found[name], "shape", None) != wanted[name]:
            raise ValueError(
                f"--inception {path}: not the released weights ({name} is missing, misshapen or unknown); {WHERE}"
            )
    network = FIDInception(resize)
    network.load_state_dict({name: value.float() for name, value in found.items()}, strict=False)
    return network.eval().requires_grad_(False)


def identity(network: nn.Module, shape: tuple[int, int, int]) -> str:
    """16 digits of a network on the CPU: of its class, of the file of a class that is not this package's, of its
    weights, and of what it answers to two pictures. The answer tells, too, whether code or attributes that the class
    uses have changed.

    Args:
        shape: (3, h, w) of the pictures that it will get.
    """
    digest = hashlib.sha256(f"{type(network).__module__}.{type(network).__qualname__}".encode())
    if not type(network).__module__.startswith("ggm_lightning."):
        with contextlib.suppress(TypeError, OSError):  # a class without a file
            digest.update(Path(inspect.getfile(type(network))).read_bytes())
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    digest.update(_answer(network, shape).encode())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _answer(network: nn.Module, shape: tuple[int, int, int]) -> str:
    """To a picture of noise and to one that goes from black to white: weighted sums of what it says, to 4 digits. Other
    hardware rounds each of thousands of numbers anew, but changes sums of them too little to be seen."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    ramp = torch.linspace(0, 255, shape[-1]).to(torch.uint8).expand(shape)
    came = network(torch.stack([noise, ramp]))
    told = []
    for values in came if isinstance(came, tuple) else (came,):
        weights = torch.rand(values.shape[1], 8, dtype=torch.float64, generator=generator)
        told += (values.double() @ weights).flatten().tolist()
    return " ".join(f"{value:.3e}" for value in told)
