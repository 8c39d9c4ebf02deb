"""Classification of texts by a model with a head for it: its answer is the class with the largest logit; no prompt.

Text generators are asked the same rows by :mod:`greenllm.bench.tasks.choice`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from greenllm.bench.results import TaskResult
from greenllm.bench.session import Contender, Session
from greenllm.bench.tasks.flips import Said
from greenllm.bench.tasks.groups import subgroups
from greenllm.bench.tasks.items import Item, Task
from greenllm.bench.tasks.paired import judge
from greenllm.bench.texts import Tokens
from greenllm.classes import TASK, index_of, likely, names_of
from greenllm.errors import GreenError

_BATCH = 16
NOTE = "the class with the largest logit; texts longer than the model reads are cut"


def check(session: Session, tasks: Sequence[Task], *, others: bool) -> None:
    """Refuse before anything is measured what encoders of texts cannot do.

    Raises:
        GreenError: they are asked to write, or see :func:`classes`.
    """
    if others:
        raise GreenError("--lm-eval and --length ask text generators; these are encoders.", "Leave them out.")
    for who in session.live:
        for task in tasks:
            classes(task, who.info.task, who.info.directory, who.info.vocabulary, who.row.name)


def classes(task: Task, does: str, directory: Path, count: int, who: str) -> list[int]:
    """The class of each choice of a task, as a model numbers them.

    Args:
        task: rows of text and label.
        does: what the model does.
        directory: where its config.json lies.
        count: of its classes.
        who: its name.

    Raises:
        GreenError: other rows, or the model has no classes, or not one of these.
    """
    first = task.items[0]
    if does != TASK or not isinstance(first, Item) or not first.parts:
        raise GreenError(
            f"{who} does {does}: it cannot be asked {task.name}.",
            "Classifiers take rows of text and label, text generators others too; leave out --task.",
        )
    if count < 2:  # noqa: PLR2004 - see the message
        raise GreenError(f"{who} has one output: a value, no classes.", "Leave out --task.")
    names = names_of(directory)
    return [index_of(c, names, count, who=who, where=task.name) for c in first.choices]


def ask(session: Session, who: Contender, task: Task, *, chat: bool) -> list[Said]:
    """Show one model all items; fill in ``Row.tasks``, compared with the baseline's item by item."""
    del chat  # checked before: nobody talks here
    items = [i for i in task.items if isinstance(i, Item)]
    tokens = Tokens(who.info.directory)
    known = classes(task, who.info.task, who.info.directory, who.info.vocabulary, who.row.name)
    texts = ["".join(i.parts[1::2]) for i in items]
    said: list[Said] = []
    for at in range(0, len(items), _BATCH):
        batch = texts[at : at + _BATCH]
        answers = who.model.call("encode", tokens.sentences(batch, tokens.context))
        for item, text, logits in zip(items[at:], batch, answers, strict=False):
            found = int(logits.argmax())
            name = item.choices[known.index(found)] if found in known else f"class {found}"
            likes = tuple(map(float, np.log(likely(logits, several=False))))
            said.append(Said(text, found, name, found == known[item.label], likes))
        session.progress.advance(len(batch))
    base = session.rows[0].tasks.get(task.name)
    before = base.scores["acc"] if base else None
    right = [int(bool(s.good)) for s in said]
    scores = {"acc": judge(right, before)} | subgroups(right, items, before, "acc")
    who.row.tasks[task.name] = TaskResult(total=task.total, chance=1 / who.info.vocabulary, scores=scores, note=NOTE)
    return said
