"""Multiple choice by likelihood: the model's answer is the choice that it finds likeliest after the context.

Each choice is scored whole, a space after the context, tokenized together with it and cut where the context's own
tokens end, as lm-eval does. "Normalized" is the likelihood over the choice's characters (lm-eval's ``acc_norm``).
Without a chat the texts are to be continued as they are.
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
from greenllm.template import ask as ask_chat

Request = tuple[list[int], int]  # tokens, and where those that are scored begin


def requests(item: Item, tokens: Tokens, *, chat: bool = False) -> list[Request]:
    """What is to be scored, one a choice; in a chat the context is the user's, and a choice begins the answer."""
    context, gap = item.context.rstrip(), item.gap
    encode = tokens.text
    if chat:
        context, gap, encode = ask_chat(tokens.directory, context), "", tokens.plain
    begins = encode(context)
    found = []
    for choice in item.choices:
        whole = encode(f"{context}{gap}{choice}")
        found.append((whole, min(len(begins), len(whole) - 1)))
    return found


def chosen(likelihoods: Sequence[float], choices: Sequence[str]) -> tuple[int, int]:
    """The likeliest choice, and the likeliest for its length."""
    whole = np.asarray(likelihoods, dtype=np.float64)
    return int(whole.argmax()), int((whole / [len(c) for c in choices]).argmax())


def likeliest(session: Session, who: Contender, items: Sequence[Item], *, chat: bool) -> list[Said]:
    """The choice that a model finds likeliest, of each item."""
    tokens = Tokens(who.info.directory)
    said = []
    for item in items:
        likes = tuple(total for total, _ in who.model.call("likelihoods", requests(item, tokens, chat=chat)))
        best, _ = chosen(likes, item.choices)
        said.append(Said(item.context, best, item.choices[best], best == item.label, likes))
        session.progress.advance()
    return said


def ask(session: Session, who: Contender, task: Task, *, chat: bool) -> list[Said]:
    """Ask one model all items; fill in ``Row.tasks``, compared with the baseline's item by item."""
    items = [i for i in task.items if isinstance(i, Item)]
    said = likeliest(session, who, items, chat=chat)
    plain = [int(bool(s.good)) for s in said]
    normalized = [int(chosen(s.likes, i.choices)[1] == i.label) for s, i in zip(said, items, strict=True)]
    base = session.rows[0].tasks.get(task.name)
    before = base.scores if base else {}
    who.row.tasks[task.name] = TaskResult(
        total=task.total, chance=task.chance,
        scores={"acc": judge(plain, before.get("acc")), "acc_norm": judge(normalized, before.get("acc_norm"))}
        | subgroups(plain, items, before.get("acc"), "acc"),
    )  # fmt: skip
    return said
