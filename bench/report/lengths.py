"""Figures by the prompt's length: lines of the report's table, and pictures."""

from __future__ import annotations

from typing import Any

from greenllm.bench.measurement import Measurement
from greenllm.bench.report import curves
from greenllm.bench.report.geometry import Picture
from greenllm.bench.report.words import EMPTY, interval, number
from greenllm.bench.results import METRICS, Results

_SHOWN = ("first_token", "decode", "memory")


def lines(results: Results) -> list[tuple[str, list[dict[str, Any]]]]:
    """A line for each length and figure, one cell a model."""
    every = sorted({int(n) for row in results.rows for n in row.lengths})
    return [
        (
            f"{METRICS[metric].label}, prompt of {n}",
            [_cell(row.lengths.get(str(n), {}).get(metric)) for row in results.rows],
        )
        for metric in _SHOWN
        for n in every
    ]


def pictures(results: Results) -> list[Picture]:
    """Memory and time to first token, where there are several lengths."""
    drawn = [curves.by_length(results, "memory", "Peak memory by prompt length"),
             curves.by_length(results, "first_token", "Time to first token by prompt length")]  # fmt: skip
    return [p for p in drawn if p]


def _cell(m: Measurement | None) -> dict[str, Any]:
    if m is None:
        return dict(EMPTY)
    value, note = number(m.value, m.ci95), f"{m.method}, n = {m.n}"
    return EMPTY | {"value": value, "unit": m.unit, "interval": interval(m.ci95), "note": note}
