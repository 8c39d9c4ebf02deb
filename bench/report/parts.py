"""Lines of the report's table: what each part of a model is and takes, and its share of the whole."""

from __future__ import annotations

from typing import Any

from greenllm.bench.measurement import Measurement
from greenllm.bench.parts import REST
from greenllm.bench.report.words import EMPTY, interval, number
from greenllm.bench.results import Results

_FIGURES = {"size": "size", "time": "time of a query", "energy": "energy of a query, by its time"}


def lines(results: Results) -> list[tuple[str, list[dict[str, Any]]]]:
    """A line for each figure and part, one cell a model; the rest comes last."""
    names = sorted(dict.fromkeys(part for row in results.rows for part in row.parts), key=lambda part: part == REST)
    return [
        (f"{part[:1].upper()}{part[1:]}, {label}", [_cell(row.parts.get(part, {}), figure) for row in results.rows])
        for figure, label in _FIGURES.items()
        for part in names
        if any(figure in row.parts.get(part, {}) for row in results.rows)
    ]


def _cell(figures: dict[str, Measurement], figure: str) -> dict[str, Any]:
    m, share = figures.get(figure), figures.get(f"{figure}_share")
    if m is None or share is None:
        return dict(EMPTY)
    return EMPTY | {
        "value": number(m.value, m.ci95), "unit": m.unit, "interval": _between(m), "estimated": m.estimated,
        "ratio": f"{number(share.value, share.ci95)} % of all", "ratio_interval": _between(share),
        "note": f"{m.method}, n = {m.n}",
    }  # fmt: skip


def _between(m: Measurement) -> str:
    """Its interval; of what was counted none."""
    return "" if m.ci95 and m.ci95[0] == m.ci95[1] else interval(m.ci95)
