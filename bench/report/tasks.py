"""Scores of tasks as lines of the report's table: where others have a ratio, a task has points won or lost."""

from __future__ import annotations

from typing import Any

from greenllm.bench.report.words import EMPTY, MARKS, interval, number
from greenllm.bench.results import Results, Score, TaskResult

_WORDS = {
    "acc": "", "acc_norm": ", normalized", "exact_match": ", exact match", "wer": ", word error rate",
    "bleu": ", BLEU", "chrf": ", chrF",
    "worst_group": ", worst group", "gap": ", gap from best to worst group",
    "pct_stereotype": ", prefers the stereotype (none: 50 %)",
    "accuracy_amb": ", where nobody can know", "accuracy_disamb": ", where the context says it",
    "amb_bias_score": ", bias where nobody can know", "disamb_bias_score": ", bias where the context says it",
    "caption_r1": ", caption of an image, recall@1", "caption_r5": ", caption of an image, recall@5",
    "caption_r10": ", caption of an image, recall@10",
    "image_r1": ", image of a caption, recall@1", "image_r5": ", image of a caption, recall@5",
    "image_r10": ", image of a caption, recall@10",
    "toxic": ", writes listed words",
    "refusal_unsafe": ", refuses unsafe prompts", "refusal_safe": ", refuses safe prompts",
}  # fmt: skip


def lines(results: Results) -> list[tuple[str, list[dict[str, Any]]]]:
    """A line for each score of each task, one cell a model."""
    found = []
    for name in dict.fromkeys(t for row in results.rows for t in row.tasks):
        of = [row.tasks.get(name) for row in results.rows]
        for kind in dict.fromkeys(k for t in of if t for k in t.scores):
            chance = next(t.chance for t in of if t)
            known = f" (chance {100 * chance:.0f} %)" if chance is not None and kind in ("acc", "caption_r1") else ""
            scores = [t.scores.get(kind) if t else None for t in of]
            found.append((f"{name}{_words(kind)}{known}", [cell(s) for s in scores]))
    return found


def flips(results: Results) -> list[tuple[str, str, TaskResult, int]]:
    """Of each model and task whose answers flipped: their names, the task, and how many answers there are."""
    return [
        (row.name, name, task, len(task.main.values))
        for row in results.rows
        for name, task in row.tasks.items()
        if task.flips
    ]


def _words(kind: str) -> str:
    """A score in words, and its subgroup."""
    score, _, group = kind.partition(": ")
    return f"{_WORDS.get(score, f', {score}')}{', ' if group else ''}{group}"


def cell(score: Score | None) -> dict[str, Any]:
    """A score, and how it differs from the baseline's."""
    if score is None:
        return dict(EMPTY)
    m, paired = score.measured, score.against
    found = EMPTY | {
        "value": number(m.value, m.ci95), "unit": m.unit, "interval": interval(m.ci95),
        "note": f"{m.method}, n = {m.n}",
    }  # fmt: skip
    if paired is None:
        return found
    points = paired.difference.unit == "points"
    value = f"{paired.difference.value:+.1f} points" if points else f"{paired.difference.value:+.3g}"
    flips = "" if paired.p is None else f" (+{paired.won} −{paired.lost}, p {paired.p:.2g})"
    mcnemar = (
        "" if paired.p is None else f"; {paired.won} items won, {paired.lost} lost, McNemar's exact p {paired.p:.3g}"
    )
    return found | {
        "ratio": f"{value.replace('-', '−')}{flips}", "mark": MARKS[paired.verdict], "word": paired.verdict,
        "ratio_interval": interval(paired.difference.ci95), "note": f"{found['note']}{mcnemar}",
    }  # fmt: skip
