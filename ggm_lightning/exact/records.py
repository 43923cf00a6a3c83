"""What a proof found: one record for each equation that was looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Check:
    """One equation.

    Attributes:
        name: short, by which messages call it.
        equation: what has to hold.
        deviation: the largest one found, in the units of the equation. tolerance: what is allowed.
        where: the state, time or row at which the largest deviation is, and what stood there.
        often: what it usually is where this equation alone fails.
    """

    name: str
    equation: str
    deviation: float
    tolerance: float
    where: str = ""
    often: str = ""

    @property
    def passed(self) -> bool:
        """Whether the deviation is a number within the tolerance."""
        return self.deviation <= self.tolerance  # False of NaN

    def is_of(self, equation: str) -> bool:
        """Whether it belongs to this name of `only`: "draws" has those of every sampler, and of its infilling."""
        return equation in self.name.rpartition(": ")[2].split()

    def __str__(self) -> str:
        said = f"{self.name}: {self.equation}: off by {self.deviation:.3g}, allowed {self.tolerance:.2g}"
        place = f", at {self.where}" if self.where else ""
        return f"{said}{place}" + (f"; {self.often}" if self.often and not self.passed else "")


class Disproved(ValueError):
    """An equation does not hold; `proof` has all of them."""

    def __init__(self, proof: Proof) -> None:
        first, *rest = proof.failed
        others = f" (also fail: {', '.join(check.name for check in rest)})" if rest else ""
        super().__init__(f"{proof.subject}: {first}{others}")
        self.proof = proof


@dataclass(frozen=True)
class Proof:
    """All checks of one model, in order.

    Attributes:
        subject: the family's name and sizes. checks: in the order in which they were made.
        missing: names that were asked for, of which this family has nothing to look at.
    """

    subject: str
    checks: tuple[Check, ...]
    missing: tuple[str, ...] = ()

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    @property
    def passed(self) -> bool:
        return not self.failed

    def __getitem__(self, name: str) -> Check:
        """The check of this name; KeyError names those there are."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"{name}: no such check; there are {', '.join(check.name for check in self.checks)}")

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __str__(self) -> str:
        """A table, and below it where what fails is."""
        width = max(map(len, [check.name for check in self.checks]), default=0)
        lines = [f"{self.subject}: {len(self.checks) - len(self.failed)} of {len(self.checks)} hold"]
        for check in self.checks:
            sign = "ok    " if check.passed else "FAILS "
            numbers = f"{check.deviation:8.1e}  {check.tolerance:7.0e}"
            lines.append(f"  {sign} {check.name:<{width}}  {numbers}  {check.equation}")
        if self.missing:
            lines.append(f"  not looked at, as there is nothing of it here: {', '.join(self.missing)}")
        lines += [f"  {check.name}: {text}" for check in self.failed for text in (check.where, check.often) if text]
        return "\n".join(lines)


def no_nan(off: Tensor) -> Tensor:
    """Deviations, infinite where they are NaN: no comparison with NaN is true, and a largest one would miss it."""
    return torch.where(off.isnan(), torch.inf, off)


def row(x: Tensor) -> str:
    """(0, 2, 1), of one state."""
    return f"({', '.join(str(int(value)) for value in x.flatten())})"
