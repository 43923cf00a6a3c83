"""What callers give to a model, checked before anything is computed: one line that says what came and what was wanted,
where torch would speak of dimensions, scalar types and device-side asserts.

Whole numbers may be Python's or NumPy's; labels and rows may be tensors, NumPy arrays or lists. Examples and states are
tensors on the model's device. Shapes, types and devices are known without asking the device; to look at values is to
wait for it: that happens before sampling, and for losses and bounds on a CPU, but never within a training step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ggm_lightning.core.arguments import seed_number, shown, whole_number
from ggm_lightning.core.categorical import Sharpening
from ggm_lightning.sampling.contract import Shaped


def choice(names: Iterable[str]) -> str:
    """How a message offers these names."""
    names = tuple(names)
    return f"choose {' or '.join(names)}" if len(names) > 1 else f"it has only {names[0]}"


def whole_numbers(name: str, values: Any, device: torch.device, wanted: str) -> Tensor:
    """Int64 on the device, from a tensor, a NumPy array or a list of whole numbers."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} is {shown(values)}; give {wanted}") from None
    if not _is_whole(tensor) and tensor.numel():
        came = shown(values if isinstance(values, np.ndarray) else tensor)
        raise ValueError(f"{name} is {came}; give {wanted}, in whole numbers")
    return tensor.to(device, torch.int64)


def labels(model: Shaped, label: Any, count: int, look: bool) -> Tensor | None:
    """Int64[count], the class of each row, or None.

    Args:
        model: whose network says how many classes it knows (`num_labels`), where it says so.
        label: what was given.
        count: rows.
        look: whether values may be looked at.
    """
    if label is None:
        return None
    wanted = f"a class for each of the {count} rows"
    given = whole_numbers("label", label, model.device, wanted)
    if given.shape != (count,):
        raise ValueError(f"label has shape {tuple(given.shape)}; give {wanted}, shape ({count},)")
    known = getattr(model.network, "num_labels", None)  # a network of the user's need not say
    if known == 0:
        raise ValueError(f"label is {shown(label)}, but the network takes no labels; leave it out")
    if known and look:
        _check_range("label", given, known + 1, f"the network's classes are 0..{known - 1} ({known} stands for none)")
    return given


def rows(row: Any, count: int, device: torch.device) -> Tensor:
    """Int64[count], the rows' numbers, which choose their noise; 0..count-1 where none are given."""
    if row is None:
        return torch.arange(count, device=device)
    given = whole_numbers("row", row, device, f"a number for each of the {count} rows")
    if given.shape != (count,):
        raise ValueError(f"row has shape {tuple(given.shape)}; one number per sample is needed, [{count}]")
    return given


def examples(model: Shaped, x: Any, look: bool) -> Tensor:
    """x as Int64[b, *shape]; `look`: whether its values may be looked at."""
    _check_sites(model, "x", x)
    if look:
        _check_range("x", x, model.num_classes, f"the model's classes are 0..{model.num_classes - 1}")
    return x.long()


def of_bound(
    model: Shaped, x: Any, label: Any, row: Any, num_samples: Any, seed: Any
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(x Int64[b, *shape], label Int64[b] or None, row Int64[b]): the arguments of `nelbo`."""
    look = model.device.type == "cpu"  # elsewhere a network's embedding finds out
    x = examples(model, x, look)
    whole_number("num_samples", num_samples, 1)
    seed_number(seed)
    return x, labels(model, label, len(x), look), rows(row, len(x), x.device)


def check_estimator(model: Any, estimator: str) -> None:
    """estimator is one of the family's `estimators`."""
    if estimator not in model.estimators:
        raise ValueError(
            f"estimator is {shown(estimator)}, {type(model).__name__}: {choice(model.estimators)}; counts needs "
            "masks of one schedule, in continuous time (num_timesteps: null)"
        )


def check_terms(model: Shaped, x: Any, zt: Any, t: Any, label: Any) -> None:
    """The arguments of `terms`: shapes and types alone, as it is called within training steps, too."""
    _check_sites(model, "x", x)
    _check_state(model, zt, label, t=t)
    if len(x) != len(zt):
        raise ValueError(f"x has {len(x)} rows and zt {len(zt)}; give a state for each example")


def check_law(model: Shaped, zt: Any, t: Any, s: Any, label: Any, sharpening: Any) -> None:
    """The arguments of `reverse_law`: shapes and types alone."""
    _check_state(model, zt, label, t=t, s=s)
    if not isinstance(sharpening, Sharpening):
        raise ValueError(f"sharpening is {shown(sharpening)}; give a core.categorical.Sharpening, or leave it out")


def _check_state(model: Shaped, zt: Any, label: Any, **when: Any) -> None:
    _check_sites(model, "zt", zt)
    for name, time in when.items():
        if not isinstance(time, Tensor) or time.shape != (len(zt),):
            raise ValueError(f"{name} is {shown(time)}; give a time for each row, a tensor of shape ({len(zt)},)")
    labels(model, label, len(zt), look=False)


def _check_sites(model: Shaped, name: str, values: Any) -> None:
    wanted = f"a tensor of whole numbers, shape (b, {', '.join(map(str, model.shape))})"
    if not isinstance(values, Tensor) or not _is_whole(values) or tuple(values.shape[1:]) != model.shape:
        raise ValueError(f"{name} is {shown(values)}; give {wanted}")
    if values.device.type != model.device.type:
        raise ValueError(f"{name} is on {values.device}, the model on {model.device}; give {name}.to(model.device)")


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _check_range(name: str, values: Tensor, count: int, legal: str) -> None:
    if not values.numel():
        return
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest >= count:
        raise ValueError(f"{name} holds {lowest if lowest < 0 else highest}; {legal}")
