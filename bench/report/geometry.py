"""Pictures as plain geometry; the template draws them as SVG, so that they follow the reader's theme."""

from __future__ import annotations

import math
from dataclasses import dataclass

from greenllm.bench.measurement import Interval, Measurement

WIDTH = 480.0
LEFT, RIGHT = 132.0, 26.0


@dataclass(frozen=True)
class Mark:
    """A point with its error bars (x0, x1, y0, y1 in picture units; equal to x or y where unknown)."""

    series: int
    x: float
    y: float
    x0: float
    x1: float
    y0: float
    y1: float
    label: str
    title: str
    anchor: str = "start"


@dataclass(frozen=True)
class Line:
    """A model's curve: points in picture units as SVG writes them."""

    series: int
    points: str
    title: str


@dataclass(frozen=True)
class Tick:
    """A line of the grid and its label."""

    at: float
    label: str
    strong: bool = False


@dataclass(frozen=True)
class Picture:
    """All that is drawn; ``kind`` chooses the template's macro."""

    kind: str
    title: str
    caption: str
    height: float
    marks: list[Mark]
    xticks: list[Tick]
    yticks: list[Tick]
    xlabel: str = ""
    ylabel: str = ""
    width: float = WIDTH
    left: float = LEFT
    right: float = RIGHT
    lines: tuple[Line, ...] = ()


class Axis:
    """A logarithmic axis from ``begin`` to ``end`` that holds all figures and their intervals."""

    def __init__(self, figures: list[Measurement], begin: float, end: float) -> None:
        ends = [v for m in figures for v in (m.value, *(m.ci95 or ())) if v > 0]
        lo, hi = math.log(min(ends)), math.log(max(ends))
        margin = max(0.12 * (hi - lo), 0.02)
        self._lo, self._hi, self._begin, self._end = lo - margin, hi + margin, begin, end

    def __call__(self, value: float) -> float:
        """Where a value lies, in picture units; what is beyond an end lies at it."""
        at = (math.log(max(value, 1e-300)) - self._lo) / (self._hi - self._lo)
        return self._begin + min(max(at, 0.0), 1.0) * (self._end - self._begin)

    def span(self, m: Measurement) -> Interval:
        """Where the ends of a figure's interval lie."""
        lo, hi = m.ci95 or (m.value, m.value)
        return self(lo), self(hi)

    def ticks(self) -> list[Tick]:
        """Three to seven round numbers."""
        lo, hi = math.exp(self._lo), math.exp(self._hi)
        decades = range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            found = [d * 10.0**p for p in decades for d in digits if lo <= d * 10.0**p <= hi]
            if len(found) >= 3:  # noqa: PLR2004 - see the docstring
                return [Tick(self(v), f"{v:g}") for v in found]
        step = 10.0 ** math.floor(math.log10((hi - lo) / 2))
        step *= max(1, round((hi - lo) / step / 4))
        found = [k * step for k in range(math.ceil(lo / step), math.floor(hi / step) + 1)]
        return [Tick(self(v), f"{v:g}" if step > 1e-3 else f"{v:.6g}") for v in found]  # noqa: PLR2004 - digits
