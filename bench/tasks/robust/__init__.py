"""Robustness: disturbed copies of a task's items at graded strength, which every model answers besides the items.

A text's own words are disturbed, not the prompt around them, and never choices, answers or labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from greenllm.bench.tasks import suite
from greenllm.bench.tasks.items import Item, Task
from greenllm.bench.tasks.robust.kinds import KINDS, NAMES, Kind
from greenllm.bench.texts import spread
from greenllm.errors import GreenError

__all__ = ["NAME", "NAMES", "Copies", "asked", "copies", "cost", "left_out", "own"]

NAME = "robustness"
_OWN, _OWN_ITEMS = ("suite/grammar", "suite/retrieval"), 40  # asked where no task is given, so many items of each
_MOST = 20  # strengths of a kind
Wanted = dict[str, tuple[float, ...]]  # strengths by kind, none for the kind's own


@dataclass(frozen=True)
class Copies:
    """A task once more for each strength of a kind, of the items that it can change; ``at`` are their indices."""

    task: Task
    kind: Kind
    at: tuple[int, ...]
    strengths: tuple[float, ...]
    tasks: tuple[Task, ...]


def asked(suites: Sequence[str]) -> tuple[Wanted, list[str]]:
    """What is wanted of ``robustness``, ``robustness:KIND`` or ``robustness:KIND=5,10``; and the other suites.

    Raises:
        GreenError: no such kind, one twice, or a strength that is none.
    """
    wanted: Wanted = {}
    for spec in suites:
        suite, colon, rest = spec.partition(":")
        kind, equals, numbers = rest.partition("=")
        if suite != NAME or not colon:
            continue
        if kind not in NAMES:
            raise GreenError(
                f"--suite {spec}: no disturbance is called {kind!r}.",
                f"There are {', '.join(NAMES)}; one a --suite {NAME}:KIND.",
            )
        if kind in wanted:
            raise GreenError(f"--suite {spec}: {kind} is given twice.", f"For instance {NAME}:{kind}=5,10,20.")
        wanted[kind] = _strengths(spec, kind, numbers) if equals else ()
    if NAME in suites:
        wanted = {kind: wanted.get(kind, ()) for kind in NAMES}
    return wanted, [s for s in suites if s.partition(":")[0] != NAME]


def _strengths(spec: str, kind: str, numbers: str) -> tuple[float, ...]:
    if not next(k for k in KINDS if k.name == kind).graded:
        raise GreenError(f"--suite {spec}: {kind} has no strength.", f"Give --suite {NAME}:{kind}.")
    try:
        found = sorted({float(n) for n in numbers.split(",")})
    except ValueError:
        found = [math.nan]
    if not all(0 < n <= 100 for n in found) or len(found) > _MOST:  # noqa: PLR2004 - percent
        raise GreenError(
            f"--suite {spec}: {numbers!r} are no strengths.",
            f"Give percents above 0 up to 100, {_MOST} at most, such as {NAME}:{kind}=5,10,20; 0 is always asked.",
        )
    return tuple(found)


def own(limit: int) -> list[Task]:
    """What is asked where no task is given: a part of greenllm's own suite."""
    found = [t for t in suite.tasks() if t.name in _OWN]
    return [replace(t, items=spread(t.items, min(limit or _OWN_ITEMS, _OWN_ITEMS))) for t in found]


def copies(tasks: Sequence[Task], wanted: Wanted) -> list[Copies]:
    """All copies of tasks that can be disturbed.

    Raises:
        GreenError: something was wanted, and there is nothing that it changes.
    """
    found = [c for t in tasks for k in KINDS if k.name in wanted if (c := _copy(t, k, wanted[k.name] or k.strengths))]
    if wanted and not found:
        kinds, names = ", ".join(wanted), ", ".join(t.name for t in tasks)
        raise GreenError(
            f"--suite {NAME}: there is nothing in {names} that {kinds} would change.",
            "Texts are disturbed where a task has choices, labels or free answers; noise is for images and clips.",
        )
    return found


def _copy(task: Task, kind: Kind, strengths: tuple[float, ...]) -> Copies | None:
    if type(task.items[0]) not in kind.takes:
        return None
    at = tuple(i for i, item in enumerate(task.items) if kind.copy(item, 0) is not None)
    made = [
        replace(task, name=f"{task.name}, {kind.words}, {kind.label(s)}", total=len(at),
                items=[c for i in at if (c := kind.copy(task.items[i], s))])
        for s in strengths
    ]  # fmt: skip
    return Copies(task, kind, at, strengths, tuple(made)) if at else None


def cost(found: Sequence[Copies]) -> str:
    """How many questions that are, before they are asked."""
    more = sum(len(t.items) for c in found for t in c.tasks)
    choices = sum(len(i.choices) for c in found for t in c.tasks for i in t.items if isinstance(i, Item))
    told = []
    for task in {c.task.name: c.task for c in found}.values():
        mine = [c for c in found if c.task is task]
        each = " + ".join(f"{c.kind.name} {len(c.tasks)}" for c in mine)
        told.append(f"{task.name}, {len(task.items)} items × ({each})")
    scored = f" ({choices:,} choices to be scored)" if choices else ""
    return f"Robustness asks each model {more:,} questions more{scored}: {'; '.join(told)}. --limit takes fewer items."


def left_out(tasks: Sequence[Task], wanted: Wanted, found: Sequence[Copies]) -> list[str]:
    """Which kinds say nothing of a task, or of a part of it, in sentences."""
    said = []
    for task in tasks:
        at = {c.kind.name: len(c.at) for c in found if c.task is task}
        mine = [k for k in KINDS if k.name in wanted and type(task.items[0]) in k.takes]
        if wanted and not mine:
            said.append(f"Robustness: {task.name} is of a kind that is not disturbed.")
        for k in mine:
            n = at.get(k.name, 0)
            if n < len(task.items):
                few = f"{len(task.items) - n} of the {len(task.items)} items of " if n else ""
                said.append(f"Robustness: {k.words} ({k.name}) can change nothing in {few}{task.name}: left out.")
    return said
