"""Pictures as plain geometry; the template draws them as SVG, so that they follow the reader's theme."""

from __future__ import annotations

import math
from dataclasses import dataclass

from greenllm.bench.measurement import Interval, Measurement
from greenllm.bench.report.words import number, times
from greenllm.bench.results import METRICS, Results

WIDTH = 480.0
_LEFT, _RIGHT = 132.0, 26.0
_RATIOS = ("perplexity", "bits_per_byte", "prefill", "decode", "encode", "disk", "memory", "energy_gross", "energy_net")
_X = ("carbon_gross", "energy_gross", "token_p50", "text_p50")
_Y = ("perplexity", "spearman", "cosine")
_NAME = 24


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
    left: float = _LEFT
    right: float = _RIGHT


def ratios(results: Results) -> Picture | None:
    """Every model's gain over the baseline, by metric, on one logarithmic axis; right is better."""
    others = [(i, r) for i, r in enumerate(results.rows) if r.name != results.baseline and r.ratios]
    names = [m for m in _RATIOS if any(m in r.ratios for _, r in others)]
    if "perplexity" in names and "bits_per_byte" in names:
        names.remove("bits_per_byte")  # the same information twice
    if not names:
        return None
    spans = [_gain(r.ratios[m], m) for _, r in others for m in names if m in r.ratios]
    lo = min(-0.5, *(math.log2(s[1]) for s in spans)) - 0.9
    hi = max(0.5, *(math.log2(s[2]) for s in spans)) + 0.9

    def x(gain: float) -> float:
        return _LEFT + (math.log2(gain) - lo) / (hi - lo) * (WIDTH - _LEFT - _RIGHT)

    marks, yticks, y = [], [], 34.0
    for m in names:
        begin = y
        for i, row in others:
            if m in row.ratios:
                gain, worst, best = _gain(row.ratios[m], m)
                title = f"{row.name}: {METRICS[m].label} {times(row.ratios[m].value)}"
                marks.append(
                    Mark(
                        i,
                        x(gain),
                        y,
                        x(worst),
                        x(best),
                        y,
                        y,
                        f"{number(gain)}×",
                        title,
                        "end" if gain < 1 else "start",
                    )
                )
                y += 22
        yticks.append(Tick((begin + y - 22) / 2, _short_label(m)))
        y += 14
    powers = range(math.ceil(lo), math.floor(hi) + 1)
    step = max(1, math.ceil(len(powers) / 6))
    xticks = [Tick(x(2.0**p), _power(p), p == 0) for p in powers if p % step == 0]
    return Picture(
        "ratios", "Gain over the baseline",
        f"How many times better than {results.baseline} (×1, the strong line), with 95 % intervals; "
        "logarithmic. Right of the line is better, left is worse. A point without a bar was measured once.",
        y + 22, marks, xticks, yticks,
    )  # fmt: skip


def trade(results: Results) -> Picture | None:
    """Quality against cost: who gives the most for the least."""
    xm = next((m for m in _X if sum(m in r for r in results.rows) > 1), None)
    shared = all("perplexity" in r.ratios for r in results.rows[1:] if "perplexity" in r)
    candidates = _Y if shared else ("bits_per_byte", *_Y[1:])
    ym = next((m for m in candidates if sum(m in r for r in results.rows) > 1), None)
    if xm is None or ym is None:
        return None
    rows = [(i, r) for i, r in enumerate(results.rows) if xm in r and ym in r]
    left, top, bottom, height = 58.0, 20.0, 320.0, 372.0
    xs, ys = _Axis([r[xm] for _, r in rows], left, WIDTH - _RIGHT), _Axis([r[ym] for _, r in rows], bottom, top)
    marks: list[Mark] = []
    for i, row in rows:
        a, b = row[xm], row[ym]
        (x0, x1), (y0, y1) = xs.span(a), ys.span(b)
        title = f"{row.name}: {METRICS[xm].label} {number(a.value)} {a.unit}, {METRICS[ym].label} {number(b.value)}"
        near = xs(a.value) > WIDTH * 0.6
        anchor = "end" if near else "start"
        crowded = any(abs(m.x - xs(a.value)) < 170 and abs(m.y - ys(b.value)) < 16 for m in marks)  # noqa: PLR2004 - a label's size
        label = "" if crowded else _cut(row.name)  # the legend names it all the same
        marks.append(Mark(i, xs(a.value), ys(b.value), x0, x1, y0, y1, label, title, anchor))
    unit, mark = rows[0][1][xm].unit, " (estimated)" if rows[0][1][xm].estimated else ""
    ylabel = f"{METRICS[ym].label} ({METRICS[ym].better} is better)"
    return Picture(
        "trade", "Quality against cost",
        f"{METRICS[ym].label} and {METRICS[xm].label[0].lower()}{METRICS[xm].label[1:]}{mark}, with 95 % intervals "
        "where there are any; both axes logarithmic. All models are scored on the same text, so bars of quality may "
        "overlap where the paired ratio is certain. The best place is "
        f"{'bottom' if METRICS[ym].better == 'lower' else 'top'} left.",
        height, marks, xs.ticks(), ys.ticks(), f"{METRICS[xm].label}, {unit}{mark}", ylabel, left=left,
    )  # fmt: skip


class _Axis:
    """A logarithmic axis from ``begin`` to ``end`` that holds all figures and their intervals."""

    def __init__(self, figures: list[Measurement], begin: float, end: float) -> None:
        ends = [v for m in figures for v in (m.value, *(m.ci95 or ())) if v > 0]
        lo, hi = math.log(min(ends)), math.log(max(ends))
        margin = max(0.12 * (hi - lo), 0.02)
        self._lo, self._hi, self._begin, self._end = lo - margin, hi + margin, begin, end

    def __call__(self, value: float) -> float:
        at = (math.log(max(value, 1e-300)) - self._lo) / (self._hi - self._lo)
        return self._begin + min(max(at, 0.0), 1.0) * (self._end - self._begin)

    def span(self, m: Measurement) -> Interval:
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


def _gain(ratio: Measurement, metric: str) -> tuple[float, float, float]:
    """Value, worst and best end as "times better"."""
    lo, hi = ratio.ci95 or (ratio.value, ratio.value)
    if METRICS[metric].better == "lower":
        return 1 / ratio.value, 1 / hi, 1 / lo
    return ratio.value, lo, hi


def _power(p: int) -> str:
    return f"{2**p}×" if p >= 0 else f"1/{2**-p}"


def _short_label(metric: str) -> str:
    names = {"energy_gross": "Energy, gross", "energy_net": "Energy, net", "bits_per_byte": "Bits per byte"}
    return names.get(metric, METRICS[metric].label)


def _cut(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"
