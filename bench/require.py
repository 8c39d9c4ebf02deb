"""Requirements that gate a model: ``ppl<=1.03x``, ``accuracy>=-1%``, ``bias<=+1pt``, ``memory<=300``.

A limit is absolute, a ratio to the baseline (``x``), or a change from it (``%``; of what tasks give points, also
written ``pt``). It is decided by the figure's 95 % interval: met or failed where the whole interval is on one side,
else undecided.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from greenllm.bench.measurement import Measurement
from greenllm.bench.report.words import interval, number
from greenllm.bench.results import METRICS, Outcome, Requirement, Results, Row, Score
from greenllm.bench.tasks.robust import NAMES
from greenllm.errors import GreenError

_SCORES = {  # of tasks, by requirement; each is decided task by task
    "wer": ("wer",), "bias": ("pct_stereotype", "amb_bias_score", "disamb_bias_score"),
    "refusal": ("refusal_unsafe",), "over_refusal": ("refusal_safe",), "worst_group": ("worst_group",), "gap": ("gap",),
    "toxicity": ("toxic",), "bleu": ("bleu",), "chrf": ("chrf",),
}  # fmt: skip
ACCURACY = "accuracy"  # the main score of tasks whose main one is none of these
_NO_ACCURACY = {"likelihood_diff", *(s for names in _SCORES.values() for s in names)}
ROBUSTNESS = "robustness"  # what is kept of the score: the mean of all kinds, or with _KIND of that kind
_POINTS = (ACCURACY, *_SCORES, ROBUSTNESS, *(f"{ROBUSTNESS}_{kind}" for kind in NAMES))
_LOWER = {"wer", "bias", "over_refusal", "gap", "toxicity"}
_SHORT = {
    "ppl": "perplexity", "gco2e": "carbon_gross", "energy": "energy_gross", "size": "disk", "bits": "bits_per_weight",
    "latency": "token_p50",
}  # fmt: skip
_FORM = re.compile(r"\s*([a-z_0-9]+)\s*(<=|>=)\s*([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(x|%|pt)?\s*", re.IGNORECASE)


class Unmet(GreenError):  # noqa: N818 - reads as what is wrong
    """The bench was done and its report written; a requirement is not met."""


@dataclass(frozen=True)
class Limit:
    """One requirement, read. ``kind``: "" absolute, "x" of the baseline's, "%" change from it."""

    text: str
    metric: str
    most: bool
    value: float
    kind: str


def parse(text: str) -> Limit:
    """Read a requirement.

    Raises:
        GreenError: it is none, or names no metric; what is allowed is told.
    """
    match = _FORM.fullmatch(text)
    if not match:
        raise GreenError(f"--require {text!r} is no requirement.", "For instance 'ppl<=1.03x' or 'accuracy>=-1%'.")
    name, sign, value, kind = match[1].lower(), match[2], float(match[3]), (match[4] or "").lower()
    known = [*_SHORT, *_POINTS, *METRICS]
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        raise GreenError(
            f"--require {text!r}: no metric is called {name}.",
            f"{'Near are ' + ', '.join(near) + '; all' if near else 'There'} are {', '.join(known)}.",
        )
    if name in _POINTS and kind == "x":
        example = f"{name}<=2%" if name in _LOWER else f"{name}>=-1%"
        raise GreenError(f"--require {text!r}: {name} is compared in points.", f"For instance {example}.")
    if name not in _POINTS and kind == "pt":
        raise GreenError(f"--require {text!r}: {name} is not compared in points.", f"For instance {name}<=1.03x.")
    if name == "bias" and not kind:
        raise GreenError(f"--require {text!r}: bias is compared with the baseline's.", "For instance bias<=+1pt.")
    return Limit(text.strip(), _SHORT.get(name, name), sign == "<=", value, "%" if kind == "pt" else kind)


def decide(results: Results, limits: Sequence[Limit]) -> list[Requirement]:
    """Every limit for every model but the baseline (which stands for itself where it is alone)."""
    rows = results.rows[1:] or results.rows
    return [
        _judge(limit, row, where, found) for row in rows for limit in limits for where, found in _figures(limit, row)
    ]


def enforce(requirements: Sequence[Requirement], *, strict: bool) -> None:
    """Nothing where all are met.

    Raises:
        Unmet: one failed, or with ``strict`` is undecided; the first of them is told.
    """
    bad = [r for r in requirements if r.outcome == "failed" or (strict and r.outcome == "undecided")]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        what = f"{bad[0].model}: {bad[0].text} {'is undecided' if bad[0].outcome == 'undecided' else 'failed'}{more}."
        raise Unmet(what, f"Found: {bad[0].found}.")


def _figures(limit: Limit, row: Row) -> Iterator[tuple[str, Measurement | None]]:
    if limit.metric in _POINTS:
        scores = list(_scores(limit.metric, row))
        for where, score in scores:
            yield where, score.measured if not limit.kind else score.against.difference if score.against else None
        if not scores:
            yield "", None
    else:
        yield "", row.ratios.get(limit.metric) if limit.kind else row.measurements.get(limit.metric)


def _scores(metric: str, row: Row) -> Iterator[tuple[str, Score]]:
    """What a requirement on tasks is decided by, and where it is from."""
    for name, task in row.tasks.items():
        main = next(iter(task.scores))
        if metric == ACCURACY and main not in _NO_ACCURACY:
            yield name, task.main
        if metric.startswith(ROBUSTNESS):
            kind = metric.removeprefix(ROBUSTNESS).removeprefix("_")
            kept = task.kept if not kind else task.curves[kind].kept if kind in task.curves else None
            if kept:
                yield name, kept
        mine = [kind for kind in _SCORES.get(metric, ()) if kind in task.scores]
        for kind in mine:
            yield f"{name}, {kind}" if len(mine) > 1 else name, task.scores[kind]


def _judge(limit: Limit, row: Row, where: str, found: Measurement | None) -> Requirement:
    of = f"{where}: " if where else ""
    if row.error or found is None:
        why = row.error or ("there is nothing to compare it with" if limit.kind else "it was not measured")
        return Requirement(text=limit.text, model=row.name, outcome="failed", found=f"{of}{why}")
    change = limit.kind == "%" and limit.metric not in _POINTS
    bound = 1 + limit.value / 100 if change else limit.value
    low, high = found.ci95 or (found.value, found.value)
    outcome = _outcome(low, high, bound, most=limit.most)
    between = f" [{interval(found.ci95)}]" if found.ci95 and low != high else ""
    words = f"{of}{number(found.value, found.ci95)} {found.unit}".strip() + between
    return Requirement(text=limit.text, model=row.name, outcome=outcome, found=words)


def _outcome(low: float, high: float, bound: float, *, most: bool) -> Outcome:
    if most:
        return "met" if high <= bound else "failed" if low > bound else "undecided"
    return "met" if low >= bound else "failed" if high < bound else "undecided"
