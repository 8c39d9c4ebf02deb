"""Accuracy on tasks as lines of the report's table: where others have a ratio, a task has points won or lost."""

from __future__ import annotations

from typing import Any

from greenllm.bench.measurement import Measurement
from greenllm.bench.report.words import EMPTY, MARKS, interval, number
from greenllm.bench.results import Paired, Results


def lines(results: Results) -> list[tuple[str, list[dict[str, Any]]]]:
    """Two lines a task, one cell a model."""
    found = []
    for name in dict.fromkeys(t for row in results.rows for t in row.tasks):
        of = [row.tasks.get(name) for row in results.rows]
        chance = next(t.chance for t in of if t)
        label = f"{name} (chance {100 * chance:.0f} %)"
        found.append((label, [_cell(t.accuracy, t.against) if t else dict(EMPTY) for t in of]))
        cells = [_cell(t.normalized, t.against_normalized) if t else dict(EMPTY) for t in of]
        found.append((f"{name}, normalized", cells))
    return found


def _cell(measured: Measurement, paired: Paired | None) -> dict[str, Any]:
    found = EMPTY | {
        "value": number(measured.value, measured.ci95), "unit": measured.unit, "interval": interval(measured.ci95),
        "note": f"{measured.method}, n = {measured.n}",
    }  # fmt: skip
    if paired is None:
        return found
    change = f"{paired.difference.value:+.1f} points".replace("-", "−")
    return found | {
        "ratio": f"{change} (+{paired.won} −{paired.lost}, p {paired.p:.2g})", "mark": MARKS[paired.verdict],
        "word": paired.verdict, "ratio_interval": interval(paired.difference.ci95),
        "note": f"{found['note']}; {paired.won} items won, {paired.lost} lost, McNemar's exact p {paired.p:.3g}",
    }  # fmt: skip
