"""Where the bytes of each model are: one bar a model, one piece a kind of tensor."""

from __future__ import annotations

from greenllm.bench.report.geometry import WIDTH, Mark, Picture
from greenllm.bench.report.words import number
from greenllm.bench.results import Results
from greenllm.bench.tensors import KINDS

_TOP, _ROW, _BAR, _SIDE, _LEAST = 26.0, 52.0, 20.0, 12.0, 0.01


def by_kind(results: Results) -> Picture | None:
    """One bar a model, all of one length; None where no model's file could be looked into."""
    rows = [row for row in results.rows if sum(row.sizes.values()) > 0]
    if not rows:
        return None
    marks = []
    for n, row in enumerate(rows):
        total, x = sum(row.sizes.values()), _SIDE
        top = _TOP + n * _ROW
        for series, kind in enumerate(KINDS, 1):
            size = row.sizes.get(kind, 0.0)
            width = size / total * (WIDTH - 2 * _SIDE)
            if size > _LEAST * total:
                title = f"{row.name}: {kind} {number(size)} MB, {size / total:.0%}"
                marks.append(
                    Mark(series, x + width / 2, top, x, x + width, top, top + _BAR, f"{kind} {size / total:.0%}", title)
                )
            x += width
        told = ", ".join(f"{k} {v / total:.0%}" for k, v in row.sizes.items() if v > _LEAST * total)
        marks.append(Mark(0, _SIDE, top - 7, _SIDE, _SIDE, top, top, f"{row.name}: {number(total)} MB", told))
    there = ", ".join(k for k in KINDS if any(row.sizes.get(k) for row in rows))
    caption = f"Share of the weights' bytes by kind of tensor; from left to right {there}."
    return Picture("sizes", "Where the bytes are", caption, _TOP + len(rows) * _ROW, marks, [], [])
