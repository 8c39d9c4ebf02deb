"""Mixed precision as a knapsack: one choice for each unit, least loss within a budget, solved exactly.

The multiple-choice knapsack problem (Kellerer, Pferschy & Pisinger, 2004, chapter 11), handed to the
mixed-integer solver HiGHS through scipy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from greenllm.errors import GreenError

T = TypeVar("T")


@dataclass(frozen=True)
class Option(Generic[T]):
    """One way to store a unit: what it is, the bits it takes, the loss it causes."""

    what: T
    size: float
    loss: float


def allocate(units: list[list[Option[T]]], budget: float) -> list[Option[T]]:
    """The option of each unit such that the sum of losses is least and that of sizes within ``budget``.

    Raises:
        GreenError: even the smallest options do not fit.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    least = sum(min(o.size for o in unit) for unit in units)
    if least > budget:
        raise GreenError(f"The smallest choice takes {least / 8e6:.1f} MB; the budget is {budget / 8e6:.1f} MB.")
    flat = [o for unit in units for o in unit]
    owner = np.repeat(np.arange(len(units)), [len(unit) for unit in units])
    one_each = csr_matrix((np.ones(len(flat)), (owner, np.arange(len(flat)))))
    sizes = np.array([[o.size for o in flat]]) / budget
    loss = np.array([o.loss for o in flat])
    found = milp(
        loss / max(loss.max(), 1e-300),
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sizes, -np.inf, 1.0)],
        options={"mip_rel_gap": 1e-6},
    )
    if found.x is None:
        raise GreenError(f"No assignment was found: {found.message}.")
    return [o for o, x in zip(flat, found.x, strict=True) if x > 0.5]  # noqa: PLR2004 - of 0 and 1
