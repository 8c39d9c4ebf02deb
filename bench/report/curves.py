"""Curves of the report: how a figure is spread, where the table has only a middle and ends."""

from __future__ import annotations

from greenllm.bench.measurement import Measurement
from greenllm.bench.report.geometry import RIGHT, WIDTH, Axis, Line, Mark, Picture, Tick
from greenllm.bench.report.words import number
from greenllm.bench.results import Results


def latencies(results: Results) -> Picture | None:
    """How long tokens (or texts, or images) take: of each model the share that is done within a time."""
    for kind in ("token", "text", "image"):
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


def by_block(results: Results) -> Picture | None:
    """How far each model's hidden states are from the baseline's, after each block (``--bisect``)."""
    rows = [(i, r, {int(b): max(e, 1e-9) for b, e in r.blocks.items()}) for i, r in enumerate(results.rows)]
    rows = [row for row in rows if len(row[2]) > 1]
    if not rows:
        return None
    left, top, bottom, height = 58.0, 20.0, 320.0, 372.0
    ends = [Measurement(value=e, unit="", n=1, method="") for *_, found in rows for e in found.values()]
    ys, last = Axis(ends, bottom, top), max(b for *_, found in rows for b in found)

    def x(block: int) -> float:
        return left + block / last * (WIDTH - RIGHT - left)

    lines, marks = [], []
    for i, row, found in rows:
        worst = f"{row.name}: at the end {number(list(found.values())[-1])}"
        lines.append(Line(i, " ".join(f"{x(b):.1f},{ys(e):.1f}" for b, e in found.items()), worst))
        end = list(found)[-1]
        at, up = x(end), ys(found[end])
        marks.append(Mark(i, at, up, at, at, up, up, "", worst))
    step = max(1, -(-last // 8))
    return Picture(
        "curve", "Error by block",
        f"Relative error of the hidden states against {results.baseline}, after each block; logarithmic. Where a line "
        "jumps, something is other than in its source.",
        height, marks, [Tick(x(b), str(b)) for b in range(0, last + 1, step)], ys.ticks(), "block", "relative error",
        left=left, lines=tuple(lines),
    )  # fmt: skip


def by_length(results: Results, metric: str, title: str) -> Picture | None:
    """A figure by the prompt's length (``--length``), of each model."""
    rows = [
        (i, r, {int(n): m[metric] for n, m in r.lengths.items() if metric in m}) for i, r in enumerate(results.rows)
    ]
    rows = [row for row in rows if len(row[2]) > 1]
    if not rows:
        return None
    left, top, bottom, height = 58.0, 20.0, 320.0, 372.0
    known = [Measurement(value=n, unit="", n=1, method="") for *_, found in rows for n in found]
    xs, ys = Axis(known, left, WIDTH - RIGHT), Axis([m for *_, found in rows for m in found.values()], bottom, top)
    lines, marks = [], []
    for i, row, found in rows:
        lines.append(Line(i, " ".join(f"{xs(n):.1f},{ys(m.value):.1f}" for n, m in found.items()), row.name))
        for n, m in found.items():
            low, high = ys.span(m)
            said = f"{row.name}: {number(m.value, m.ci95)} {m.unit} for {n} tokens"
            marks.append(Mark(i, xs(n), ys(m.value), xs(n), xs(n), low, high, "", said))
    unit = next(iter(rows[0][2].values())).unit
    return Picture(
        "curve", title, f"{title}, with 95 % intervals where there are any; both axes logarithmic.",
        height, marks, [Tick(xs(n), str(n)) for n in sorted({n for *_, found in rows for n in found})], ys.ticks(),
        "tokens of the prompt", unit, left=left, lines=tuple(lines),
    )  # fmt: skip
