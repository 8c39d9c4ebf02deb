"""Results of several runs in one report; what may not be compared is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from greenllm.bench.results import Results, Row
from greenllm.errors import GreenError

_LARGEST = 256 << 20
_SAME = {  # what must be equal, for what
    "query": "speed and energy", "threads": "speed and energy", "text": "perplexity", "window": "perplexity",
    "windows": "perplexity", "meter": "energy", "grid_g_per_kwh": "carbon",
}  # fmt: skip


def read(path: str | Path) -> Results:
    """What a bench wrote as ``report.json``, of its directory or of the file itself.

    Raises:
        GreenError: no such file, too large, or no results.
    """
    path = Path(path).expanduser()
    path = path / "report.json" if path.is_dir() else path
    if not path.is_file() or path.stat().st_size > _LARGEST:
        raise GreenError(f"{path} is no report.json of a bench.", "greenllm bench … --report DIR writes one.")
    try:
        return Results.from_json(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, GreenError) as e:
        raise GreenError(f"{path} is no report.json of a bench: {e}") from e


def merge(runs: Sequence[Results]) -> Results:
    """All models of all runs; the first run's baseline stays the baseline.

    A ratio means something where both models took turns in one run: the rows of other runs lose theirs, and what
    differs between the runs is told.
    """
    first = runs[0]
    if len(runs) == 1:
        return first
    rows = list(first.rows)
    caveats = list(first.caveats)
    for number, run in enumerate(runs[1:], 2):
        caveats += differences(first, run, number) + [f"Run {number}: {c}" for c in run.caveats]
        rows += [_foreign(row, number) for row in run.rows]
    return first.model_copy(update={"rows": rows, "caveats": caveats, "requirements": []})


def differences(first: Results, other: Results, number: int) -> list[str]:
    """What forbids to compare a run with the first one, in words."""
    found = []
    if (a := _machine(first)) != (b := _machine(other)):
        found.append(
            f"Run {number} was made on {b}, run 1 on {a}: speed, memory, energy and carbon of different machines are "
            "not comparable; quality is."
        )
    for key, what in _SAME.items():
        mine, theirs = first.settings.get(key), other.settings.get(key)
        if mine != theirs:
            found.append(
                f"Run {number} differs from run 1 in {key} ({theirs or 'none'}, not {mine or 'none'}): {what} may not "
                "be compared."
            )
    pairs = [
        (name, first.versions.get(name), other.versions.get(name))
        for name in sorted({*first.versions, *other.versions} - {"machine", "system"})
    ]
    return found + [
        f"Run {number} has {name} {theirs or 'not at all'}, run 1 {mine or 'not at all'}."
        for name, mine, theirs in pairs
        if mine != theirs
    ]


def _machine(results: Results) -> str:
    return f"{results.machine.cpu} with {results.machine.cores} cores"


def _foreign(row: Row, number: int) -> Row:
    tasks = row.model_copy(deep=True).tasks
    for task in tasks.values():
        task.flipped, task.flips = 0, []
        kept = [task.kept, *(c.kept for c in task.curves.values())]
        for score in [*task.scores.values(), *(s for c in task.curves.values() for s in c.scores), *kept]:
            if score:
                score.against = None
    notes = [*row.notes, f"of run {number}: its ratios are in that run's own report"]
    return row.model_copy(
        update={"name": f"{row.name} (run {number})", "ratios": {}, "payback": {}, "tasks": tasks, "notes": notes}
    )
