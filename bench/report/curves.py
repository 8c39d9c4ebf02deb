"""Curves of the report: how a figure is spread, where the table has only a middle and ends."""

from __future__ import annotations

from greenllm.bench.measurement import Measurement
from greenllm.bench.report.geometry import RIGHT, WIDTH, Axis, Line, Mark, Picture, Tick
from greenllm.bench.report.words import number
from greenllm.bench.results import Results


def latencies(results: Results) -> Picture | None:
    """How long tokens (or texts) take: of each model the share that is done within a time."""
    for kind in ("token", "text"):
        key = f"{kind}_quantiles"
        rows = [(i, r) for i, r in enumerate(results.rows) if len(r.samples.get(key, [])) == 101]  # noqa: PLR2004 - 0 to 100 %
        if rows:
            break
    else:
        return None
    left, top, bottom, height = 58.0, 20.0, 320.0, 372.0
    ends = [Measurement(value=max(v, 1e-6), unit="ms", n=1, method="") for _, r in rows for v in r.samples[key]]
    xs = Axis(ends, left, WIDTH - RIGHT)

    def y(percent: float) -> float:
        return bottom - percent / 100 * (bottom - top)

    lines: list[Line] = []
    marks: list[Mark] = []
    for i, row in rows:
        at = row.samples[key]
        words = ", ".join(f"{p} % within {number(at[p])} ms" for p in (50, 95, 99))
        lines.append(Line(i, " ".join(f"{xs(t):.1f},{y(p):.1f}" for p, t in enumerate(at)), f"{row.name}: {words}"))
        x = xs(at[50])
        crowded = any(abs(m.x - x) < 70 for m in marks)  # noqa: PLR2004 - a label's width
        label = "" if crowded else f"{number(at[50])} ms"  # the table has it all the same
        marks.append(Mark(i, x, y(50), x, x, y(50), y(50), label, f"{row.name}: {words}"))
    return Picture(
        "curve", f"Time of a {kind}",
        f"Share of {kind}s that took no longer, of all rounds together; time is logarithmic. The mark is the median. A "
        "steep line is a steady model; what leans right at the top is its tail (p95, p99).",
        height, marks, xs.ticks(), [Tick(y(p), f"{p} %") for p in (0, 25, 50, 75, 95)],
        f"ms per {kind}", f"share of {kind}s", left=left, lines=tuple(lines),
    )  # fmt: skip
