"""Pictures of how much each model gains, and of what its quality costs."""

from __future__ import annotations

import math

from greenllm.bench.measurement import Measurement
from greenllm.bench.report.geometry import LEFT, RIGHT, WIDTH, Axis, Line, Mark, Picture, Tick
from greenllm.bench.report.words import number, times
from greenllm.bench.results import METRICS, Results

_RATIOS = ("perplexity", "bits_per_byte", "prefill", "decode", "encode", "real_time", "caption", "disk", "memory",
           "energy_gross", "energy_net")  # fmt: skip
_X = ("carbon_gross", "energy_gross", "token_p50", "text_p50", "image_p50")
_Y = ("perplexity", "spearman", "cosine")
_LABEL = 52.0  # the width of a mark's label
_NAME = 24


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
        return LEFT + (math.log2(gain) - lo) / (hi - lo) * (WIDTH - LEFT - RIGHT)

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
                        "end" if gain < 1 and x(worst) > LEFT + _LABEL else "start",
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
    xs, ys = Axis([r[xm] for _, r in rows], left, WIDTH - RIGHT), Axis([r[ym] for _, r in rows], bottom, top)
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
    front = _front([(r[xm].value, r[ym].value) for _, r in rows], up=METRICS[ym].better == "higher")
    corners = [f"{xs(a):.1f},{ys(b):.1f}" for a, b in front]
    lines = (Line(-1, " ".join(corners), "Pareto front"),) if len(front) > 1 else ()
    unit, mark = rows[0][1][xm].unit, " (estimated)" if rows[0][1][xm].estimated else ""
    ylabel = f"{METRICS[ym].label} ({METRICS[ym].better} is better)"
    return Picture(
        "trade", "Quality against cost",
        f"{METRICS[ym].label} and {METRICS[xm].label[0].lower()}{METRICS[xm].label[1:]}{mark}, with 95 % intervals "
        "where there are any; both axes logarithmic. All models are scored on the same text, so bars of quality may "
        "overlap where the paired ratio is certain. The best place is "
        f"{'bottom' if METRICS[ym].better == 'lower' else 'top'} left."
        + (" The dotted line joins those that none beats in both: the Pareto front." if lines else ""),
        height, marks, xs.ticks(), ys.ticks(), f"{METRICS[xm].label}, {unit}{mark}", ylabel, left=left, lines=lines,
    )  # fmt: skip


def _front(points: list[tuple[float, float]], *, up: bool) -> list[tuple[float, float]]:
    """Points of (cost, quality) that no other beats in both, by cost; ``up`` where more quality is better."""
    found: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda p: (p[0], -p[1] if up else p[1])):
        if not found or (quality > found[-1][1] if up else quality < found[-1][1]):
            found.append((cost, quality))
    return found


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
