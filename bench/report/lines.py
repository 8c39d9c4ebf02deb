"""Results as CSV: a line for each figure of each model, with all that a figure needs to mean something."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from greenllm.bench.measurement import Measurement
from greenllm.bench.results import Results, Row, Score, TaskResult

HEADER = ["model", "runner", "metric", "value", "unit", "ci95_low", "ci95_high", "n", "method", "ratio", "ratio_low",
          "ratio_high", "verdict", "baseline", "batch", "threads", "cpu", "created", "versions"]  # fmt: skip


def to_csv(results: Results) -> str:
    """RFC 4180 with a header; no interval, ratio or verdict is an empty cell."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(HEADER)
    versions = " ".join(f"{k}={v}" for k, v in results.versions.items())
    s, here = results.settings, results.machine
    rest = [results.baseline, s.get("batch", 1), s["threads"], here.cpu, results.created, versions]
    for row in results.rows:
        for name, m in row.measurements.items():
            verdict = row.verdict(name) if name in row.ratios else ""
            writer.writerow([*_figure(row, name, m), *_ratio(row.ratios.get(name)), verdict, *rest])
        for what, sweep in (("prompt", row.lengths), ("batch", row.batches)):
            for size, figures in sweep.items():
                mine = [results.baseline, size if what == "batch" else rest[1], *rest[2:]]
                for name, m in figures.items():
                    writer.writerow([*_figure(row, f"{name}, {what} of {size}", m), *_ratio(None), "", *mine])
        for part, figures in row.parts.items():
            for name, m in figures.items():
                writer.writerow([*_figure(row, f"{name}, part {part}", m), *_ratio(None), "", *rest])
        for name, t in row.tasks.items():
            for kind, score in [*t.scores.items(), *_disturbed(t)]:
                change = _ratio(score.against.difference if score.against else None)
                verdict = score.against.verdict if score.against else ""
                writer.writerow([*_figure(row, f"{kind} of {name}", score.measured), *change, verdict, *rest])
    return out.getvalue()


def _disturbed(task: TaskResult) -> Iterator[tuple[str, Score]]:
    """What is kept, and the score at each strength."""
    if task.kept:
        yield "kept, all kinds", task.kept
    for kind, curve in task.curves.items():
        if curve.kept:
            yield f"kept, {kind}", curve.kept
        for label, score in zip(curve.labels, curve.scores, strict=True):
            yield f"{next(iter(task.scores))}, {kind} {label}", score


def _figure(row: Row, name: str, m: Measurement) -> list[str | float | int]:
    low, high = m.ci95 or ("", "")
    return [_safe(row.name), row.runner, _safe(name), m.value, m.unit, low, high, m.n, m.method]


def _ratio(m: Measurement | None) -> list[str | float]:
    return ["", "", ""] if m is None else [m.value, *(m.ci95 or ("", ""))]


def _safe(text: str) -> str:
    """A name that a spreadsheet takes for no formula (OWASP, CSV injection)."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text
