"""A number is never bare: value, unit, how many samples, 95 % interval, and how it was had."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

Interval = tuple[float, float]


class Measurement(BaseModel):
    """One measured (or estimated) figure.

    Attributes:
        value: the figure, in ``unit``.
        n: independent samples behind it.
        ci95: 95 % interval; equal ends for a count, None where one sample says nothing of the spread.
        method: how it was had: "measured:…", "estimated:…", "counted", "computed: …".
        note: what else the reader must know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float
    unit: str
    n: int = Field(ge=1)
    ci95: Interval | None = None
    method: str
    note: str = ""

    @property
    def estimated(self) -> bool:
        """Whether a model of the machine, not an instrument, gave it."""
        return self.method.startswith("estimated")

    def __contains__(self, value: float) -> bool:
        """Whether the interval holds ``value``; never, when there is no interval."""
        return self.ci95 is not None and self.ci95[0] <= value <= self.ci95[1]

    def scaled(self, factor: float, unit: str, method: str | None = None) -> Measurement:
        """The same figure times an exact positive ``factor``, in another unit."""
        ci = None if self.ci95 is None else (self.ci95[0] * factor, self.ci95[1] * factor)
        return self.model_copy(
            update={"value": self.value * factor, "unit": unit, "ci95": ci, "method": method or self.method}
        )


def counted(value: float, unit: str, note: str = "") -> Measurement:
    """An exact figure, such as a number of bytes: its interval has no width."""
    return Measurement(value=value, unit=unit, n=1, ci95=(value, value), method="counted", note=note)


def t_interval(samples: Sequence[float]) -> Interval | None:
    """95 % interval of the mean by Student's t; None for fewer than two samples."""
    from scipy import stats

    x = np.asarray(samples, dtype=np.float64)
    if x.size < 2:  # noqa: PLR2004 - a spread takes two
        return None
    half = float(stats.t.ppf(0.975, x.size - 1)) * float(x.std(ddof=1)) / math.sqrt(x.size)
    mean = float(x.mean())
    return mean - half, mean + half


def repeat_interval(samples: Sequence[float]) -> Interval | None:
    """95 % prediction interval: where the mean of as many samples of another run lies; None for fewer than two.

    A machine's speed is no constant that more samples come nearer to; what its user asks is what a figure would be
    if it were measured again. As wide as Student's interval of the mean times the root of two (Hahn & Meeker,
    "Statistical Intervals", 1991, section 4.7.1). Of two runs, 83 in 100 means lie in an interval of the mean.
    """
    found = t_interval(samples)
    if found is None:
        return None
    mean, half = (found[0] + found[1]) / 2, (found[1] - found[0]) / math.sqrt(2)
    return mean - half, mean + half


def sitting_means(samples: Sequence[float], sittings: Sequence[int]) -> list[float]:
    """Mean of each sitting's samples, in order of time: batch means, of which an interval is made.

    Samples close in time are alike, and know nothing of what a machine does over minutes; means of batches apart are
    nearly independent (Law & Kelton, "Simulation Modeling and Analysis", section 9.5.3).
    """
    x, where = np.asarray(samples, dtype=np.float64), np.asarray(sittings)
    return [float(x[where == s].mean()) for s in np.unique(where)]


def log_mean(samples: Sequence[float], unit: str, method: str, sittings: Sequence[int] | None = None) -> Measurement:
    """Geometric mean of positive samples; the interval is Student's t on their logarithms.

    With ``sittings``, that of each sample, it is of the means of these, and where those of another run would lie
    (:func:`repeat_interval`): ``n`` is how many there were.
    """
    logs = np.log(np.asarray(samples, dtype=np.float64)).tolist()
    means = logs if sittings is None else sitting_means(logs, sittings)
    value = math.exp(sum(means) / len(means))
    ci = t_interval(means) if sittings is None else repeat_interval(means)
    return Measurement(value=value, unit=unit, n=len(means), ci95=_exp(ci, value), method=method)


def log_ratio(
    samples: Sequence[float], reference: Sequence[float], method: str, sittings: Sequence[int] | None = None
) -> Measurement:
    """Geometric mean of ``samples[i] / reference[i]``: what both had in common (drift, text) cancels out."""
    n = min(len(samples), len(reference))
    pairs = zip(samples[:n], reference[:n], strict=True)
    return log_mean([a / b for a, b in pairs], "x", method, None if sittings is None else sittings[:n])


def bootstrap(samples: Sequence[float], unit: str, method: str, seed: int = 0) -> Measurement:
    """Mean of samples from a skewed or bounded distribution; BCa bootstrap interval (Efron 1987)."""
    from scipy import stats

    x = np.asarray(samples, dtype=np.float64)
    mean = float(x.mean())
    if x.size < 2:  # noqa: PLR2004 - a spread takes two
        ci = None
    elif np.ptp(x) == 0:
        ci = (mean, mean)
    else:
        rng = np.random.default_rng(seed)
        found = stats.bootstrap((x,), np.mean, n_resamples=2000, method="BCa", rng=rng).confidence_interval
        ci = (float(found.low), float(found.high))
    return Measurement(value=mean, unit=unit, n=x.size, ci95=ci, method=method)


def statistic(samples: Sequence[Any], function: Callable[..., Any], unit: str, method: str) -> Measurement:
    """A statistic of samples (of its first axis), e.g. a correlation; percentile bootstrap interval."""
    x = np.asarray(samples, dtype=np.float64)
    rng = np.random.default_rng(0)
    draws = [float(function(x[rng.integers(0, len(x), len(x))])) for _ in range(2000)]
    lo, hi = np.nanpercentile(draws, [2.5, 97.5])
    return Measurement(value=float(function(x)), unit=unit, n=len(x), ci95=(float(lo), float(hi)), method=method)


def quotient(a: Measurement, b: Measurement) -> Measurement | None:
    """``a / b`` of independent figures, the interval by MOVER on logarithms (Donner & Zou 2012).

    None where a value is not positive; no interval where either has none.
    """
    if a.value <= 0 or b.value <= 0:
        return None
    value = a.value / b.value
    ci = None
    if a.ci95 and b.ci95 and a.ci95[0] > 0 and b.ci95[0] > 0:
        down = math.hypot(math.log(a.value / a.ci95[0]), math.log(b.ci95[1] / b.value))
        up = math.hypot(math.log(a.ci95[1] / a.value), math.log(b.value / b.ci95[0]))
        ci = (value * math.exp(-down), value * math.exp(up))
    method = f"quotient of two figures, each {a.method}" if a.method == b.method else f"{a.method} / {b.method}"
    return Measurement(value=value, unit="x", n=min(a.n, b.n), ci95=ci, method=method)


def _exp(ci: Interval | None, value: float) -> Interval | None:
    """Back from logarithms; a spread so wide that it overflows says nothing."""
    if ci is None or ci[1] > math.log(np.finfo(np.float64).max):
        return None
    return min(math.exp(ci[0]), value), max(math.exp(ci[1]), value)
