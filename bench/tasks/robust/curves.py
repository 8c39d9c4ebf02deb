"""What is left of a task's accuracy: at each strength, and as the area under that curve.

*Kept* is the area (trapezoids) over that of the clean accuracy held throughout: 100 % where nothing was lost. Its
interval, and that of its difference from the baseline's, are percentile bootstraps over items, the same ones for both
models, after two items are added of which one keeps everything and the other nothing (of two models, the one and then
the other; as Bonett and Price do with flips): else items that never change would claim that none ever does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from greenllm.bench.measurement import Measurement, statistic
from greenllm.bench.results import Curve, Paired, Row, Score, TaskResult
from greenllm.bench.tasks import paired, speech
from greenllm.bench.tasks.items import Entry, Utterance
from greenllm.bench.tasks.robust import Copies

_METHOD = "computed: area under the curve over that of the clean score, percentile bootstrap over items"
Areas = NDArray[np.float64]  # [items, kinds, 2]: area of each item, and its clean credit


def fill(rows: Sequence[Row], found: Sequence[Copies]) -> None:
    """Take the copies' results out of the rows' tasks, and put curves into those that they are copies of."""
    for row in rows:
        answers = {t.name: row.tasks.pop(t.name) for c in found for t in c.tasks if t.name in row.tasks}
        base = rows[0].tasks if row is not rows[0] else {}
        for task in {c.task.name: c.task for c in found}.values():
            mine = [c for c in found if c.task is task and all(t.name in answers for t in c.tasks)]
            if task.name in row.tasks and mine:  # else it failed on the way
                _fill(row.tasks[task.name], mine, answers, base.get(task.name))


def _fill(result: TaskResult, mine: list[Copies], answers: dict[str, TaskResult], base: TaskResult | None) -> None:
    """The curves of one task, and what all of them keep."""
    before = base.curves if base else {}
    all_of, all_before = [], []
    for c in mine:
        values = [[result.main.values[i] for i in c.at], *(answers[t.name].main.values for t in c.tasks)]
        theirs = before.get(c.kind.name)
        own = area(c, values)
        old = area(c, [s.values for s in theirs.scores]) if theirs else None
        items = [c.task.items[i] for i in c.at]
        result.curves[c.kind.name] = Curve(
            words=c.kind.words, strengths=[0, *c.strengths], labels=["as it is", *map(c.kind.label, c.strengths)],
            scores=[judged(items, v, theirs.scores[n] if theirs else None) for n, v in enumerate(values)],
            kept=kept(own, old, len(c.at)),
        )  # fmt: skip
        all_of.append(own)
        all_before += [] if old is None else [old]
    paired_all = np.concatenate(all_before, 1) if len(all_before) == len(all_of) else None
    result.kept = kept(np.concatenate(all_of, 1), paired_all, len({i for c in mine for i in c.at}))


def judged(items: Sequence[Entry], values: Sequence[float], before: Score | None) -> Score:
    """A score as the task's own: word errors by clip, or right answers."""
    if said := _said(items):
        return speech.judge(values, said, before.values if before else None)
    return paired.judge([int(v) for v in values], before)


def area(copies: Copies, values: Sequence[Sequence[float]]) -> Areas:
    """Of all items of a task, 0 for those that the kind cannot change: [items, 1, 2].

    Args:
        copies: of a task.
        values: of each item that they have, as it is and at each strength.
    """
    credit = np.array(values, dtype=np.float64)
    if said := _said([copies.task.items[i] for i in copies.at]):  # words that were heard, of a clip none at the least
        credit = np.maximum(said - credit, 0)
    found = np.zeros((len(copies.task.items), 1, 2))
    found[list(copies.at), 0, 0] = np.array(copies.kind.weights(copies.strengths)) @ credit
    found[list(copies.at), 0, 1] = credit[0]
    return found


def kept(areas: Areas, before: Areas | None = None, items: int | None = None) -> Score | None:
    """Share of the clean score that is kept, the mean over kinds; None where a model has none to lose.

    Args:
        areas: of a model.
        before: the baseline's, of the same items and kinds.
        items: how many were asked; all by default.
    """
    if math.isnan(_share(areas)):
        return None
    items, one = items or len(areas), float(areas[:, :, 1].max())
    held, lost = (np.broadcast_to([a, one], areas.shape[1:]) for a in (one, 0))
    change = None
    if before is not None and not math.isnan(_share(before)):
        both, added = np.stack([areas, before], 1), [np.stack([lost, held]), np.stack([held, lost])]
        change = Paired(difference=_measured(both, added, _difference, "points", items))
    return Score(values=[], measured=_measured(areas, [held, lost], _share, "%", items), against=change)


def _said(items: Sequence[Entry]) -> list[int]:
    """Words of each clip; nothing of other items."""
    return [len(speech.words(i.text)) for i in items if isinstance(i, Utterance)]


def _share(areas: Areas) -> float:
    """Of [items, kinds, 2], in percent; NaN where a kind has no clean credit."""
    whole = areas[:, :, 1].sum(0)
    return float((100 * areas[:, :, 0].sum(0) / whole).mean()) if (whole > 0).all() else math.nan


def _difference(both: NDArray[np.float64]) -> float:
    return _share(both[:, 0]) - _share(both[:, 1])


def _measured(
    data: NDArray[np.float64], added: list[NDArray[np.float64]], function: Callable[..., float], unit: str, items: int
) -> Measurement:
    """The value of ``data``; the interval after ``added``, which holds the value in any case."""
    found = statistic([*data.tolist(), *(a.tolist() for a in added)], function, unit, _METHOD)
    value, (low, high) = function(data), found.ci95 or (0.0, 0.0)
    return found.model_copy(update={"value": value, "n": items, "ci95": (min(low, value), max(high, value))})
