"""What a family wants of a network, and whether a network that comes from outside keeps to it.

A constructor asks whether the network can be called as the family calls it. Shapes and types of what it returns are
compared in every call, which costs nothing; values are looked at in a model's first call in training, in a bound and in
sampling, so that no later step waits for the device. Every mismatch is one ValueError: which network in which call,
what came, what was wanted, and what may help. The calls of all families stand in docs/library.md.
The families are those of arXiv 2406.04329, 2405.17035, 2510.18114 and 2305.11089.

What cannot be seen: sites and classes of equal number in the wrong order ([b, V, n] where n = V), a head that belongs
to other features of the same width, and logits that are legal but wrong.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ggm_lightning.core import watch
from ggm_lightning.models import declared
from ggm_lightning.models.readout import Readout
from ggm_lightning.sampling.contract import Shaped

_CUTS = 5  # of a row, at which a causal network is looked at
_CHUNK_ENTRIES = 1 << 22  # logits formed at once where they are looked at: 16 MB in float32


class Checked(Shaped, Protocol):
    """A model, as these checks see it: a Family.

    Attributes:
        network_use: training, bound or sampling: what the network is being called for; None: nobody has said.
        looked_at: (what, use) of all values that were looked at.
    """

    num_sites: int
    fast_path: str
    network_use: str | None
    looked_at: set[tuple[str, str]]

    @property
    def fuses(self) -> bool: ...


class CheckedLatent(Checked, Protocol):
    """A model whose network gives back a latent besides: a LatentFamily."""

    latent_shape: tuple[int, int]
    uses_joint_latent: bool


class CheckedCausal(Checked, Protocol):
    """A model whose network must not look ahead: an AutoregressiveModel.

    Attributes:
        calls_by_use: calls so far in which `look_ahead` could have looked, by what they were for.
    """

    calls_by_use: Counter[str]

    def evaluating(self, use: str) -> AbstractContextManager[None]: ...


@contextmanager
def used_for(model: Checked, what: str) -> Iterator[None]:
    """training, a bound or sampling: what the calls of the model's networks are for."""
    before, model.network_use = model.network_use, what
    try:
        yield
    finally:
        model.network_use = before


# ------------------------------------------------------------------ how it can be called


def check_call(
    family: str, part: str, module: nn.Module, fast: str, positional: int, keywords: tuple[str, ...]
) -> None:
    """Whether it takes that many positional arguments and these keywords, from its signature alone; that of its method
    `fast` where it has one."""
    method = fast if declared.has(module, fast) else "forward"
    try:
        signature = inspect.signature(getattr(module, method))
        takes = str(signature)
        signature.bind_partial(*[None] * positional, **dict.fromkeys(keywords))
    except TypeError:
        names = {("network", 3): "z, t, label", ("latent_network", 3): "latent, latent_time, label"}
        call = ", ".join([names.get((part, positional), "x, hidden"), *(f"{word}=..." for word in keywords)])
        raise ValueError(
            f"{family} calls {part}.{method}({call}), but that of {declared.name_of(module)} takes {takes}; let it "
            f"take these arguments{_hint(keywords)}"
        ) from None
    except ValueError:
        return  # no signature to be had


def _hint(keywords: tuple[str, ...]) -> str:
    if "visited" in keywords:
        return " (visited is Bool[b, n], the sites that were visited; a Transformer takes it with visited_bits: true)"
    if "levels" in keywords:
        return " (levels is Float[b, n], the survival of each site; a HollowTransformer takes it with levels: true)"
    if "latent" in keywords:
        return " (the noisy latent Float[b, S, d] and its time Float[b]; networks.latent.JointDenoiser does)"
    return ""


# ------------------------------------------------------------------ what it returns


class _Call:
    """One call of one network: builds the line that says what is wrong."""

    def __init__(self, model: Checked, part: str, wanted: str) -> None:
        self.model, self.part, self.wanted = model, part, wanted

    def error(self, came: str, remedy: str) -> ValueError:
        use = {None: "", "training": "in training, ", "bound": "in a bound, ", "sampling": "in sampling, "}
        module = getattr(self.model, self.part)
        return ValueError(
            f"{type(self.model).__name__}: {use[self.model.network_use]}{self.part} {declared.name_of(module)} "
            f"returned {came}; wanted: {self.wanted}; {remedy}"
        )

    def tensor(self, came: Any) -> Tensor:
        """came, if it is a tensor of floating-point numbers."""
        if not isinstance(came, Tensor):
            raise self.error(f"a {type(came).__name__}", "return the tensor itself")
        if not came.is_floating_point():
            raise self.error(_shown(came), "return floating-point numbers")
        return came

    def is_first(self, what: str) -> bool:
        """Whether `what` of this part has not been looked at in this use."""
        return self.model.network_use is not None and self._key(what) not in self.model.looked_at

    def looked(self, what: str) -> None:
        self.model.looked_at.add(self._key(what))

    def _key(self, what: str) -> tuple[str, str]:
        return f"{self.part}: {what}", str(self.model.network_use)


def _shown(came: Tensor) -> str:
    return f"shape {tuple(came.shape)}, {str(came.dtype).removeprefix('torch.')}"


def logits(model: Checked, came: Any, b: int, alone: bool = False) -> Tensor:
    """Float[b, n, V] from what `network` returned: [b, n, V] or [b, *shape, V]. `alone`: or [b, 1, V], the one hidden
    site."""
    n, v, shape = model.num_sites, model.num_classes, model.shape
    call = _Call(model, "network", _wanted(b, n, v, shape))
    came = call.tensor(came)
    found = tuple(came.shape)
    if found == (b, n, v) or found == (b, *shape, v):
        return came.reshape(b, n, v)
    if alone and found == (b, 1, v):
        return came
    raise call.error(_shown(came), _remedy(found, b, n, v, shape))


def _wanted(b: int, n: int, v: int, shape: tuple[int, ...]) -> str:
    other = f" or {(b, *shape, v)}" if shape != (n,) else ""
    return f"logits of shape {(b, n, v)}{other}: rows, sites, classes"


def _remedy(found: tuple[int, ...], b: int, n: int, v: int, shape: tuple[int, ...]) -> str:
    if found == (b, v, n):
        return "the classes come last: transpose(1, 2)"
    if found == (b, v, *shape):
        return "the classes come last: movedim(1, -1)"
    if found in ((n, b, v), (*shape, b, v)):
        return "the rows come first: movedim(-2, 0)"
    if found in ((b, n, v + 1), (b, *shape, v + 1)):
        return "the mask is no class: leave its logit out"
    if len(found) > 2 and found[0] == b and found[-1] == v:
        return f"the model's shape is {shape}, {n} sites: give rows of that shape, or build the model for the rows"
    return "one logit for each class at each site"


def features(model: Checked, came: Any, head: Any, b: int, m: int) -> Tensor:
    """Float[b, m, d] from what `features` or `streams` returned, to which the head is applied."""
    width, classes = declared.sizes_of(head)
    call = _Call(model, "network", f"features of shape ({b}, {m}, {width or 'd'}): rows, sites, width")
    came = call.tensor(came)
    right = came.dim() == 3 and came.shape[:2] == (b, m)
    if not right or width not in (None, came.shape[-1]):
        turned = came.dim() == 3 and (came.shape[0], came.shape[2]) == (b, m)
        raise call.error(_shown(came), "the width comes last: transpose(1, 2)" if turned else "they go into the head")
    if classes not in (None, model.num_classes):
        call.wanted = f"a head of {model.num_classes} classes"
        raise call.error(f"features whose head gives {classes}", "the mask is no class, if it is one too many")
    return came


@torch.compiler.disable
def look(model: Checked, answer: Readout) -> None:
    """The first call of its kind: whether all rows of logits are laws. They are formed a chunk at a time."""
    call = _Call(model, "network", "no NaN, no +inf, and in each row of logits one class at least above -inf")
    if not call.is_first("logits"):
        return
    with torch.no_grad():
        rows = answer.values.detach().flatten(0, 1)
        chunks = rows.split(max(1, _CHUNK_ENTRIES // model.num_classes))
        parts = [part if answer.head is None else answer.head(part) for part in chunks]
        kinds = torch.cat([watch.faults_of(part) for part in parts]) if parts else rows.new_zeros(0, dtype=torch.int64)
        counts = torch.stack([(kinds == kind).sum() for kind in (1, 2, 3)]).tolist()
    if any(counts):
        found = zip(("NaN", "+inf", "nothing but -inf"), counts, strict=True)
        said = " and ".join(f"{name} in {count}" for name, count in found if count)
        came = f"{_shown(answer.values)}, with {said} of {len(kinds)} rows"
        raise call.error(came, "look at its weights and at what it does with this input")
    call.looked("logits")


@torch.compiler.disable
def look_ahead(model: CheckedCausal, z: Tensor, values_of: Callable[[Tensor], Tensor]) -> None:
    """Whether a network that has to be causal is so. In the first call of its kind the tokens of z's first row
    (Int64[b, *shape]) from one site on are replaced by others; what is said at the sites before must not move.

    Blocks may begin as the identity (adaLN-zero): then nothing moves, whatever the network is. So the replaced tokens
    before a site are looked at, too; until they move something behind them, calls 2, 4, 8, .. are looked at as well.

    Args:
        values_of: what the network says of rows, Float[k, n, d].
    """
    call = _Call(model, "network", "a causal network, which says of a site what the tokens up to it decide")
    if not call.is_first("order"):
        return
    use = str(model.network_use)
    model.calls_by_use[use] += 1
    count = model.calls_by_use[use]
    if count & (count - 1):
        return
    looks_back = model.num_sites == 1
    with model.evaluating(use), torch.autocast(z.device.type, enabled=False):
        for cut, ahead, back in _moved_by_cuts(z[:1], model.num_classes, values_of):
            if ahead is not None:
                came = f"another answer at site {ahead} when only tokens from site {cut} on were others"
                raise call.error(came, "mask its attention; a Transformer is causal with causal: true")
            looks_back = looks_back or back
    if looks_back:
        call.looked("order")


def _moved_by_cuts(
    z: Tensor, num_classes: int, values_of: Callable[[Tensor], Tensor]
) -> Iterator[tuple[int, int | None, bool]]:
    """For some cuts: (cut, the first site before it that the tokens from the cut on move or None, whether those before
    it move anything behind)."""
    flat = z.flatten(1)
    n, other = flat.shape[1], (flat + 1) % num_classes
    site = torch.arange(n, device=z.device)
    base = values_of(z.expand(2, *z.shape[1:]))
    # so that rounding in another order, which some devices do, is no movement
    tolerance = torch.finfo(base.dtype).eps ** 0.5 * base.nan_to_num(posinf=0.0, neginf=0.0).abs().amax()
    for cut in torch.linspace(1, n - 1, min(n - 1, _CUTS)).long().tolist():
        late, early = torch.where(site < cut, flat, other), torch.where(site < cut, other, flat)
        values = values_of(torch.cat([late, early]).reshape(2, *z.shape[1:]))
        moved = torch.where(values == base, 0, (values - base).abs()).amax(-1) > tolerance
        ahead = moved[0, :cut].nonzero().flatten().tolist()
        yield cut, ahead[0] if ahead else None, bool(moved[1, cut:].any())


def numbers(model: Checked, part: str, came: Any, shapes: tuple[tuple[int, ...], ...], kind: str) -> Tensor:
    """What `part` returned, of one of these shapes. kind: finite; amounts (finite and >= 0); below +inf."""
    what = {"finite": "finite numbers", "amounts": "finite numbers >= 0", "below +inf": "numbers below +inf, no NaN"}
    call = _Call(model, part, f"{what[kind]} of shape {' or '.join(map(str, dict.fromkeys(shapes)))}")
    came = call.tensor(came)
    if tuple(came.shape) not in shapes:
        raise call.error(_shown(came), "return them in this shape")
    _look_at_numbers(call, came, kind)
    return came


@torch.compiler.disable
def _look_at_numbers(call: _Call, came: Tensor, kind: str) -> None:
    if not call.is_first("numbers"):
        return
    seen = came.detach()
    infinite = torch.isposinf(seen) if kind == "below +inf" else torch.isinf(seen)
    negative = (seen < 0) & (kind == "amounts")
    counts = torch.stack([part.sum() for part in (torch.isnan(seen), infinite, negative)]).tolist()
    if any(counts):
        found = zip(("NaN", "infinite", "negative"), counts, strict=True)
        said = ", ".join(f"{count} {name}" for name, count in found if count)
        raise call.error(f"{_shown(came)}, of them {said}", "look at its weights and at what it does with this input")
    call.looked("numbers")


def joint(
    model: CheckedLatent, zt: Tensor, t: Tensor, label: Tensor | None, inputs: dict[str, Tensor]
) -> tuple[Readout, Tensor]:
    """One call of LDDM's joint network: (what it says of the sites, z_0 Float[b, S, d])."""
    network, b = model.network, len(zt)
    fast = declared.has(network, model.fast_path)
    came = (network.streams if fast else network)(zt, t, label, **inputs)
    if not isinstance(came, tuple | list) or len(came) != 2:
        call = _Call(model, "network", "a pair: logits (or features) and z_0")
        raise call.error(_shown(came) if isinstance(came, Tensor) else f"a {type(came).__name__}", "return both parts")
    values, z0 = came
    if fast:
        answer = Readout(features(model, values, network.head, b, model.num_sites), network.head, model.fuses)
    else:
        answer = Readout(logits(model, values, b), None, False)
    look(model, answer)
    if model.uses_joint_latent:
        z0 = numbers(model, "network", z0, ((b, *model.latent_shape),), "finite")
    return answer, z0


# ------------------------------------------------------------------ what it is asked about


def check_ids(model: Checked, x: Tensor) -> None:
    """Examples of the model's shape, in the first training step with ids in 0..V-1."""
    if tuple(x.shape[1:]) != model.shape:
        raise ValueError(
            f"{type(model).__name__}: rows of shape {tuple(x.shape[1:])} came, the model was built for {model.shape}; "
            "give rows of that shape, or build the model with shape=data.shape"
        )
    _look_at_ids(model, x)


@torch.compiler.disable
def _look_at_ids(model: Checked, x: Tensor) -> None:
    key = ("x", str(model.network_use))
    if key in model.looked_at or not x.numel():
        return
    lowest, highest = torch.stack([x.min(), x.max()]).tolist()
    if lowest < 0 or highest >= model.num_classes:
        raise ValueError(
            f"{type(model).__name__}: ids in {lowest}..{highest} came, the model was built for "
            f"0..{model.num_classes - 1}; give such ids, or build the model with num_classes=data.num_classes"
        )
    model.looked_at.add(key)
