"""Shares by subgroup: of each one, of the one that fares worst, and the gap between best and worst.

The intervals of worst and gap, and of their differences from the baseline, are percentile bootstraps that draw items
anew within each group, the same ones for both models. The gap between noisy shares is too wide on average, more so
where groups are small; its difference from the baseline much less, as both are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from greenllm.bench.measurement import Measurement
from greenllm.bench.results import FEW, Paired, Score
from greenllm.bench.tasks.items import Grouped
from greenllm.bench.tasks.paired import judge

_DRAWS = 2000
_METHOD = "computed: percentile bootstrap within groups"


def by_group(
    values: Sequence[int], groups: Sequence[str], before: Score | None, name: str, *, higher: bool = True
) -> dict[str, Score]:
    """A score for each group, where there are two or more; one of fewer than :data:`FEW` items is not compared.

    Args:
        values: 1 or 0 of each item.
        groups: of each item; "" for none.
        before: the baseline's score of all items.
        name: of the score of all items, to which each group's is added: ``name: group``.
        higher: whether 1 is good.
    """
    members = _members(groups)
    found = {}
    for group, at in members.items() if len(members) > 1 else ():
        theirs = None if before is None or len(at) < FEW else [before.values[i] for i in at]
        base = before.model_copy(update={"values": theirs}) if before and theirs else None
        found[f"{name}: {group}"] = judge([values[i] for i in at], base, higher=higher)
    return found


def subgroups(values: Sequence[int], items: Sequence[Grouped], before: Score | None, name: str) -> dict[str, Score]:
    """All that is told of the subgroups of items, right or wrong: see :func:`by_group` and :func:`extremes`."""
    groups = [i.group for i in items]
    return by_group(values, groups, before, name) | extremes(values, groups, before)


def extremes(values: Sequence[int], groups: Sequence[str], before: Score | None) -> dict[str, Score]:
    """Worst group and gap of right answers over the groups of :data:`FEW` items or more; nothing for less than two."""
    members = [at for at in _members(groups).values() if len(at) >= FEW]
    if len(members) < 2:  # noqa: PLR2004 - see the docstring
        return {}
    both = np.array([values, before.values if before else values], dtype=np.float64)
    rng = np.random.default_rng(0)
    drawn = [both[:, np.asarray(at)[rng.integers(0, len(at), (_DRAWS, len(at)))]].mean(-1) for at in members]
    shares, draws = np.array([both[:, at].mean(-1) for at in members]), np.array(drawn)  # [G, 2], [G, 2, draws]
    worst, spread = (shares.min(0), draws.min(0)), (np.ptp(shares, axis=0), np.ptp(draws, axis=0))
    n = sum(map(len, members))
    return {
        "worst_group": _score(*worst, n, compared=before is not None, higher=True),
        "gap": _score(*spread, n, compared=before is not None, higher=False),
    }


def _score(value: NDArray[np.float64], draws: NDArray[np.float64], n: int, *, compared: bool, higher: bool) -> Score:
    """Of ``value`` [model, baseline] and its draws [2, draws]."""
    change = None
    if compared:
        difference = _measured(value[0] - value[1], draws[0] - draws[1], n, "points")
        change = Paired(difference=difference, better="higher" if higher else "lower")
    return Score(values=[], measured=_measured(value[0], draws[0], n, "%"), against=change)


def _measured(value: float, draws: NDArray[np.float64], n: int, unit: str) -> Measurement:
    low, high = (100 * float(x) for x in np.percentile(draws, [2.5, 97.5]))
    return Measurement(value=100 * float(value), unit=unit, n=n, ci95=(low, high), method=_METHOD)


def _members(groups: Sequence[str]) -> dict[str, list[int]]:
    """Indices of the items of each group, by name."""
    return {g: [i for i, x in enumerate(groups) if x == g] for g in sorted({*groups} - {""})}
