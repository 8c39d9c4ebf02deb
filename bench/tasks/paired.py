"""Right answers of two models on the same items.

McNemar's test in its exact form: the items on which they differ are coin tosses if neither is better
(McNemar, 1947, Psychometrika 12; exact: Dietterich, 1998, Neural Computation 10, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

from greenllm.bench.measurement import Measurement, bootstrap
from greenllm.bench.results import Paired


def share(right: Sequence[int]) -> Measurement:
    """Share of right answers in percent, with Wilson's score interval (Wilson, 1927)."""
    from scipy import stats

    n, k = len(right), sum(right)
    ci = stats.binomtest(k, n).proportion_ci(method="wilson")
    method = "computed: share of items, Wilson interval"
    return Measurement(value=100 * k / n, unit="%", n=n, ci95=(100 * ci.low, 100 * ci.high), method=method)


def against(before: Sequence[int], after: Sequence[int]) -> Paired:
    """What became right, what became wrong, and whether that is more than chance.

    Args:
        before: 1 where the baseline was right, item by item.
        after: the same of the model.
    """
    from scipy import stats

    change = [b - a for a, b in zip(before, after, strict=True)]
    won, lost = change.count(1), change.count(-1)
    p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    difference = bootstrap(change, "points", "computed: paired over items").scaled(100, "points")
    return Paired(difference=difference, won=won, lost=lost, p=p)
