"""Right answers of two models on the same items.

McNemar's test in its exact form: the items on which they differ are coin tosses if neither is better
(McNemar, 1947, Psychometrika 12; exact: Dietterich, 1998, Neural Computation 10, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

from greenllm.bench.measurement import Measurement, bootstrap
from greenllm.bench.results import Paired, Score


def judge(right: Sequence[int], before: Score | None = None, *, higher: bool = True) -> Score:
    """1 for each item that was answered right, 0 for the others, as a score beside that of the baseline.

    Args:
        right: of each item.
        before: the baseline's score of the same items.
        higher: whether 1 is good; it is not where it marks a stereotype.
    """
    change = None if before is None else against([int(v) for v in before.values], right, higher=higher)
    return Score(values=[float(r) for r in right], measured=share(right), against=change)


def compare(before: Sequence[float], after: Sequence[float], *, higher: bool = True) -> Paired:
    """What each of two models got for the same items: right and wrong by McNemar, other figures by their difference.

    Args:
        before: the baseline's, item by item.
        after: the model's.
        higher: whether more is better.
    """
    if set(before) | set(after) <= {0.0, 1.0}:
        return against([int(v) for v in before], [int(v) for v in after], higher=higher)
    change = [b - a for a, b in zip(before, after, strict=True)]
    difference = bootstrap(change, "", "computed: paired over items")
    return Paired(difference=difference, better="higher" if higher else "lower")


def share(right: Sequence[int]) -> Measurement:
    """Share of right answers in percent, with Wilson's score interval (Wilson, 1927)."""
    from scipy import stats

    n, k = len(right), sum(right)
    ci = stats.binomtest(k, n).proportion_ci(method="wilson")
    method = "computed: share of items, Wilson interval"
    return Measurement(value=100 * k / n, unit="%", n=n, ci95=(100 * ci.low, 100 * ci.high), method=method)


def against(before: Sequence[int], after: Sequence[int], *, higher: bool = True) -> Paired:
    """What became right, what became wrong, and whether that is more than chance.

    Args:
        before: 1 where the baseline was right, item by item.
        after: the same of the model.
        higher: whether 1 is good; an item is won where it became good.
    """
    from scipy import stats

    change = [b - a for a, b in zip(before, after, strict=True)]
    won, lost = (change.count(1), change.count(-1)) if higher else (change.count(-1), change.count(1))
    p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    difference = bootstrap(change, "points", "computed: paired over items").scaled(100, "points")
    return Paired(difference=difference, better="higher" if higher else "lower", won=won, lost=lost, p=p)
