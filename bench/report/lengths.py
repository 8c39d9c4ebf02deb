"""Figures by the prompt's length, and by the number of queries at once: lines of the report's table, and pictures."""

from __future__ import annotations

from typing import Any

from greenllm.bench.measurement import Measurement
from greenllm.bench.report import curves
from greenllm.bench.report.geometry import Picture
from greenllm.bench.report.words import EMPTY, interval, number
from greenllm.bench.results import METRICS, Results

Line = tuple[str, list[dict[str, Any]]]
_BY_LENGTH = {name: METRICS[name].label for name in ("first_token", "decode", "memory")}
_BY_BATCH = {"prefill": "Prefill", "decode": "Decode", "encode": "Encode", "batch_p50": "Whole batch, p50"}


def lines(results: Results) -> list[Line]:
    """A line for each length and figure, one cell a model."""
    return _lines([row.lengths for row in results.rows], _BY_LENGTH, "prompt")


def by_batch(results: Results) -> list[Line]:
    """A line for each size of a batch and figure, one cell a model."""
    return _lines([row.batches for row in results.rows], _BY_BATCH, "batch")


def _lines(rows: list[dict[str, dict[str, Measurement]]], labels: dict[str, str], what: str) -> list[Line]:
    every = sorted({int(n) for row in rows for n in row})
    there = {name for row in rows for figures in row.values() for name in figures}
    shown = {name: label for name, label in labels.items() if name in there}
    if every and not shown:
        return [(f"{what} of {n}".capitalize(), [_cell(row.get(str(n)), "") for row in rows]) for n in every]
    return [
        (f"{label}, {what} of {n}", [_cell(row.get(str(n)), name) for row in rows])
        for name, label in shown.items()
        for n in every
    ]


def pictures(results: Results) -> list[Picture]:
    """Memory and time to first token, where there are several lengths."""
    drawn = [curves.by_length(results, "memory", "Peak memory by prompt length"),
             curves.by_length(results, "first_token", "Time to first token by prompt length")]  # fmt: skip
    return [p for p in drawn if p]


def _cell(figures: dict[str, Measurement] | None, name: str) -> dict[str, Any]:
    if figures is not None and not figures:
        return EMPTY | {"value": "cannot", "note": "see how the models were made, below"}
    m = figures.get(name) if figures else None
    if m is None:
        return dict(EMPTY)
    value, note = number(m.value, m.ci95), f"{m.method}, n = {m.n}"
    return EMPTY | {"value": value, "unit": m.unit, "interval": interval(m.ci95), "note": note}
