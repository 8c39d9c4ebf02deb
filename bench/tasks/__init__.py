"""Tasks with right answers: how often a model finds them, and what it forgot or learned against the baseline."""

from __future__ import annotations

from greenllm import captions as writing
from greenllm import classes
from greenllm.bench.session import Contender, Session
from greenllm.bench.tasks import (
    answer,
    captions,
    choice,
    labelled,
    picture,
    refusal,
    retrieval,
    speech,
    stereotypes,
    toxicity,
    unclear,
)
from greenllm.bench.tasks.flips import Said, flips
from greenllm.bench.tasks.items import (
    Captioned,
    Item,
    Looked,
    Opening,
    Pair,
    Picture,
    Prompt,
    Question,
    Task,
    Unclear,
    Utterance,
)  # fmt: skip
from greenllm.bench.tasks.read import read, read_all

__all__ = ["Task", "read", "read_all", "run"]


def _captioned(session: Session, who: Contender, task: Task, *, chat: bool) -> list[Said]:
    """Captions are written, or found among others by models that only compare."""
    ask = captions.ask if who.info.task == writing.TASK else retrieval.ask
    return ask(session, who, task, chat=chat)


def _chosen(session: Session, who: Contender, task: Task, *, chat: bool) -> list[Said]:
    """A classifier has its classes; others find a choice likely."""
    ask = labelled.ask if who.info.task == classes.TASK else choice.ask
    return ask(session, who, task, chat=chat)


_ASK = {Item: _chosen, Question: answer.ask, Looked: answer.ask, Picture: picture.ask, Utterance: speech.ask,
        Pair: stereotypes.ask, Captioned: _captioned, Unclear: unclear.ask, Prompt: refusal.ask,
        Opening: toxicity.ask}  # fmt: skip


def run(session: Session, task: Task, *, chat: bool = False) -> None:
    """Ask every living model every item; fill in ``Row.tasks``, compared with the baseline's item by item.

    With ``chat`` it is asked in its chat template.
    """
    ask = _ASK[type(task.items[0])]
    session.progress.stage(f"task {task.name}", len(task.items) * len(session.live))
    before: list[Said] | None = None
    for who in list(session.live):
        with session.watching(who, f"task {task.name}"):
            said = ask(session, who, task, chat=chat)
            if who.row is session.rows[0]:
                before = said
            elif before is not None:
                result = who.row.tasks[task.name]
                result.flipped, result.flips = flips(before, said)
