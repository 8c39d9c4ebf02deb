"""Energy by phase: what a start, a prompt's token and an answer's token take, each model's beside the others'."""

from __future__ import annotations

from greenllm.bench.report.geometry import LEFT, WIDTH, Axis, Mark, Picture, Tick
from greenllm.bench.report.words import number
from greenllm.bench.results import METRICS, Results

_PHASES = {"energy_load": "Start", "energy_gross": "Query", "energy_prefill": "Prompt token",
           "energy_decode": "Answer token"}  # fmt: skip
_TAKEN = {"J/clip": "Clip", "J/image": "Image"}  # of a prefill, where it is no prompt's
_ROW, _GAP, _TOP, _LABEL = 22.0, 14.0, 34.0, 108.0


def by_phase(results: Results) -> Picture | None:
    """Joules on a logarithmic axis, in groups by phase; None where no phase was measured apart."""
    there = {name for name in _PHASES for row in results.rows if name in row and row[name].value > 0}
    if there <= {"energy_gross"}:
        return None
    names = [name for name in _PHASES if name in there]
    rows = [(i, row) for i, row in enumerate(results.rows)]
    figures = [row[n] for _, row in rows for n in names if n in row and row[n].value > 0]
    x = Axis(figures, LEFT, WIDTH - _LABEL)
    marks, yticks, y = [], [], _TOP
    for name in names:
        begin = y
        for i, row in rows:
            if name in row and (m := row[name]).value > 0:
                at, (x0, x1) = x(m.value), x.span(m)
                label = f"{number(m.value)} J" + (" est." if m.estimated else "")
                title = f"{row.name}: {METRICS[name].label} {number(m.value, m.ci95)} {m.unit}, {m.method}"
                marks.append(Mark(i, at, y, x0, x1, y, y, label, title))
                y += _ROW
        units = {row[name].unit for _, row in rows if name in row} if name == "energy_prefill" else set()
        label = next((of for unit, of in _TAKEN.items() if unit in units), _PHASES[name])
        yticks.append(Tick((begin + y - _ROW) / 2, label))
        y += _GAP
    caption = (
        "Joules, logarithmic; left is better. Everything the meter covers, idle power included, with 95 % intervals. "
        "An answer's token: a query less its prompt, over the tokens after the first."
        + (" est.: estimated, no instrument was read." if any(m.estimated for m in figures) else "")
    )
    return Picture("phases", "Energy by phase", caption, y + _ROW, marks, x.ticks(), yticks)
