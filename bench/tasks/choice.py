"""Multiple choice by likelihood: the model's answer is the choice that it finds likeliest after the context.

Each choice is scored whole, one space after the context, tokenized together with it and cut where the context's own
tokens end, as lm-eval does. "Normalized" is the likelihood over the choice's characters (lm-eval's ``acc_norm``).
No chat template: the texts are to be continued.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from greenllm.bench.results import TaskResult
from greenllm.bench.session import Contender, Session
from greenllm.bench.tasks.items import Item, Task
from greenllm.bench.tasks.paired import against, share
from greenllm.bench.texts import Tokens

Request = tuple[list[int], int]  # tokens, and where those that are scored begin


def requests(item: Item, tokens: Tokens) -> list[Request]:
    """What is to be scored, one a choice."""
    context = item.context.rstrip()
    begins = tokens.text(context)
    found = []
    for choice in item.choices:
        whole = tokens.text(f"{context} {choice}")
        found.append((whole, min(len(begins), len(whole) - 1)))
    return found


def chosen(likelihoods: Sequence[float], choices: Sequence[str]) -> tuple[int, int]:
    """The likeliest choice, and the likeliest for its length."""
    whole = np.asarray(likelihoods, dtype=np.float64)
    return int(whole.argmax()), int((whole / [len(c) for c in choices]).argmax())


def run(session: Session, tasks: Sequence[Task]) -> None:
    """Ask every living model every item; fill in ``Row.tasks``, compared with the baseline's item by item."""
    for task in tasks:
        session.progress.stage(f"task {task.name}", len(task.items) * len(session.live))
        for who in list(session.live):
            with session.watching(who, f"task {task.name}"):
                _ask(session, who, task)


def _ask(session: Session, who: Contender, task: Task) -> None:
    tokens = Tokens(who.info.directory)
    plain: list[int] = []
    normalized: list[int] = []
    for item in task.items:
        found = who.model.call("likelihoods", requests(item, tokens))
        likeliest, for_length = chosen(found, item.choices)
        plain.append(int(likeliest == item.label))
        normalized.append(int(for_length == item.label))
        session.progress.advance()
    base = session.rows[0].tasks.get(task.name)
    who.row.tasks[task.name] = TaskResult(
        total=task.total, chance=task.chance, right=plain, right_normalized=normalized,
        accuracy=share(plain), normalized=share(normalized),
        against=None if base is None else against(base.right, plain),
        against_normalized=None if base is None else against(base.right_normalized, normalized),
    )  # fmt: skip
