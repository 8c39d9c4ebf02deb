"""Robustness: a score against the strength of a disturbance, and what is kept; lines of the table, and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from greenllm.bench.measurement import Measurement
from greenllm.bench.report.geometry import LEFT, RIGHT, WIDTH, Line, Mark, Picture, Tick
from greenllm.bench.report.tasks import cell
from greenllm.bench.report.words import EMPTY, interval, number
from greenllm.bench.results import Curve, Results, Row, TaskResult

_MOST = 12  # curves that are drawn; the table has all
_SIDE, _TOP, _FOOT, _HEIGHT = 58.0, 20.0, 320.0, 372.0
_ROW, _GAP, _LABEL = 22.0, 14.0, 96.0
_NO_STRENGTH = "prompts"
_WORDS = {"acc": "accuracy", "exact_match": "exact match", "wer": "word error rate"}


def lines(results: Results) -> list[tuple[str, list[dict[str, Any]]]]:
    """Of each task what all kinds keep of its score; of each kind the curve, and what it keeps."""
    found = []
    for name, of in _tasks(results):
        kinds = _kinds(of)
        if len(kinds) > 1:
            found.append((f"{name}: kept, all kinds", [cell(t.kept if t else None) for t in of]))
        for kind, curve in kinds.items():
            mine = [t.curves.get(kind) if t else None for t in of]
            found.append((f"{name}, {curve.words}: kept", [cell(c.kept if c else None) for c in mine]))
            at = ", ".join(curve.labels)
            found.append((f"{name}, {curve.words}: {at}", [_points(c, graded=kind != _NO_STRENGTH) for c in mine]))
    return found


def pictures(results: Results) -> list[Picture]:
    """Of each task what is kept under each kind; and curves, as many as a page bears."""
    drawn = [_kept(results, name, of) for name, of in _tasks(results)]
    curves = [_curve(results, name, of, kind) for name, of in _tasks(results) for kind in _kinds(of)]
    return [p for p in drawn if p] + curves[:_MOST]


def _tasks(results: Results) -> Iterator[tuple[str, list[TaskResult | None]]]:
    """Tasks that were disturbed, and each model's result."""
    for name in dict.fromkeys(n for row in results.rows for n, t in row.tasks.items() if t.curves):
        yield name, [row.tasks.get(name) for row in results.rows]


def _kinds(of: list[TaskResult | None]) -> dict[str, Curve]:
    """Kinds by name, with a curve that has their words."""
    return {kind: curve for t in reversed(of) if t for kind, curve in t.curves.items()}


def _points(curve: Curve | None, *, graded: bool) -> dict[str, Any]:
    """All scores of a curve in one cell; at the end how the last differs from the baseline's."""
    if curve is None:
        return dict(EMPTY)
    last = cell(curve.scores[-1])
    told = "; ".join(
        f"{label}: {number(s.measured.value)} [{interval(s.measured.ci95)}]"
        + (f", {c['ratio']} [{c['ratio_interval']}]" if (c := cell(s))["ratio"] else "")
        for label, s in zip(curve.labels, curve.scores, strict=True)
    )
    points = last["ratio"].partition(" (")[0]  # flips and interval are in the note
    if not points or not graded:  # of wordings none is the last
        last |= {"mark": "", "word": ""}
    return last | {
        "value": " · ".join(number(s.measured.value) for s in curve.scores), "interval": "", "ratio_interval": "",
        "ratio": f"at {curve.labels[-1]}: {points}" if points and graded else "",
        "note": f"{told}; n = {curve.scores[0].measured.n}",
    }  # fmt: skip


def _kept(results: Results, name: str, of: list[TaskResult | None]) -> Picture | None:
    """A group of models for each kind, on a linear axis that has the clean score, 100 %, as its strong line."""
    kinds = _kinds(of)
    rows = [(i, row, t) for i, (row, t) in enumerate(zip(results.rows, of, strict=True)) if t]
    figures = [s.measured for *_, t in rows for s in [t.kept, *(c.kept for c in t.curves.values())] if s]
    if not figures:
        return None
    x = _Scale([100.0, *(v for m in figures for v in (m.ci95 or (m.value,)))], LEFT, WIDTH - _LABEL)
    marks, yticks, y = [], [], 34.0
    groups = {c.words: {i: t.curves[k].kept for i, _, t in rows if k in t.curves} for k, c in kinds.items()}
    if len(kinds) > 1:
        groups = {"all kinds": {i: t.kept for i, _, t in rows}} | groups
    for words, mine in groups.items():
        begin = y
        for i, row, _ in rows:
            if score := mine.get(i):
                m = score.measured
                marks.append(_mark(i, row, x, y, m, words))
                y += _ROW
        yticks.append(Tick((begin + y - _ROW) / 2, _short(words)))
        y += _GAP
    return Picture(
        "ratios", f"Kept under disturbance: {name}",
        f"Area under the curve of {_WORDS.get(_main(of), 'the score')} against strength, in percent of what it were "
        "if nothing were lost (the strong line), with 95 % intervals. Right is better.",
        y + _ROW, marks, x.ticks(strong=100), yticks,
    )  # fmt: skip


def _mark(series: int, row: Row, x: _Scale, y: float, m: Measurement, words: str) -> Mark:
    low, high = m.ci95 or (m.value, m.value)
    label, title = f"{number(m.value)} %", f"{row.name}, {words}: {number(m.value, m.ci95)} % kept"
    return Mark(series, x(m.value), y, x(low), x(high), y, y, label, title)


def _curve(results: Results, name: str, of: list[TaskResult | None], kind: str) -> Picture:
    rows = [
        (i, r, t.curves[kind]) for i, (r, t) in enumerate(zip(results.rows, of, strict=True)) if t and kind in t.curves
    ]
    first, main = rows[0][2], _main(of)
    ends = [v for *_, c in rows for s in c.scores for v in (s.measured.ci95 or (s.measured.value,))]
    xs, ys = _Scale(first.strengths, _SIDE, WIDTH - RIGHT, margin=0.04), _Scale(ends, _FOOT, _TOP)
    drawn, marks = [], []
    for n, (i, row, curve) in enumerate(rows):
        aside = 6.0 * (n - (len(rows) - 1) / 2)  # bars beside each other, not upon
        at = [(xs(s) + aside, score.measured) for s, score in zip(curve.strengths, curve.scores, strict=True)]
        kept = f", {number(curve.kept.measured.value)} % kept" if curve.kept else ""
        drawn.append(Line(i, " ".join(f"{x:.1f},{ys(m.value):.1f}" for x, m in at), f"{row.name}{kept}"))
        for (x, m), label in zip(at, curve.labels, strict=True):
            low, high = m.ci95 or (m.value, m.value)
            title = f"{row.name}, {label}: {number(m.value)} {m.unit} [{interval(m.ci95)}]"
            marks.append(Mark(i, x, ys(m.value), x, x, ys(low), ys(high), "", title))
    xticks = [Tick(xs(s), _short(label)) for s, label in zip(first.strengths, first.labels, strict=True)]
    score, graded = _WORDS.get(main, main), kind != _NO_STRENGTH
    return Picture(
        "curve", f"{first.words.capitalize()}: {name}",
        f"{score.capitalize()} {'against strength' if graded else 'by the wording of the prompt, 0 its own'}, the same "
        f"{first.scores[0].measured.n} items, with 95 % intervals; models beside each other at each.",
        _HEIGHT, marks, xticks, ys.ticks(), "strength" if graded else "wording", f"{score}, %", left=_SIDE,
        lines=tuple(drawn) if graded else (),
    )  # fmt: skip


def _main(of: list[TaskResult | None]) -> str:
    return next(next(iter(t.scores)) for t in of if t)


def _short(words: str) -> str:
    """As it stands beside an axis."""
    return {"letters of the other case": "other case", "letters that look alike": "look-alikes",
            "spaces lost and added": "spaces", "full and half width": "width", "as it is": "0"}.get(
        words, words.removeprefix("wording ")
    )  # fmt: skip


class _Scale:
    """A linear axis from ``begin`` to ``end`` that holds all values."""

    def __init__(self, values: list[float], begin: float, end: float, margin: float = 0.08) -> None:
        low, high = min(values), max(values)
        room = margin * (high - low) or 1.0
        self._low, self._high, self._begin, self._end = low - room, high + room, begin, end

    def __call__(self, value: float) -> float:
        """Where a value lies, in picture units."""
        return self._begin + (value - self._low) / (self._high - self._low) * (self._end - self._begin)

    def ticks(self, strong: float | None = None) -> list[Tick]:
        """Three to seven round numbers."""
        wide = self._high - self._low
        step = next(s for s in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, wide) if wide / s <= 6)  # noqa: PLR2004
        first = -(-self._low // step) * step
        at = [first + k * step for k in range(8) if first + k * step <= self._high]
        return [Tick(self(v), f"{v:g}", v == strong) for v in at]
