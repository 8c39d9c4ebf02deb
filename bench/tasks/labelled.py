"""Classification of texts by a model with a head for it: its answer is the class with the largest logit; no prompt.

Text generators are asked the same rows by :mod:`greenllm.bench.tasks.choice`.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        GreenError: they are asked to write, or a label that a model does not know.
    """
    if others:
        raise GreenError("--lm-eval and --length ask text generators; these are encoders.", "Leave them out.")
    for who in session.live:
        for task in tasks:
            if who.info.task != TASK or not isinstance(task.items[0], Item) or not task.items[0].parts:
                raise GreenError(
                    f"{who.row.name} does {who.info.task}: it cannot be asked {task.name}.",
                    "Classifiers take rows of text and label, text generators all the others; leave out --task.",
                )
            classes(who, task)


def classes(who: Contender, task: Task) -> list[int]:
    """The class of each choice of a task, as this model numbers them.

    Raises:
        GreenError: it has only one output, or not this class.
    """
    if who.info.vocabulary < 2:  # noqa: PLR2004 - see the message
        raise GreenError(f"{who.row.name} has one output: a value, no classes.", "Leave out --task.")
    names, choices = names_of(who.info.directory), task.items[0].choices if isinstance(task.items[0], Item) else ()
    return [index_of(c, names, who.info.vocabulary, who=who.row.name, where=task.name) for c in choices]


def ask(session: Session, who: Contender, task: Task, *, chat: bool) -> list[Said]:
    """Show one model all items; fill in ``Row.tasks``, compared with the baseline's item by item."""
    del chat  # checked before: nobody talks here
    items = [i for i in task.items if isinstance(i, Item)]
    known, tokens = classes(who, task), Tokens(who.info.directory)
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
