"""What a bench asks of models for images and texts besides what it asks of all that see: their texts."""

from __future__ import annotations

from collections.abc import Sequence

from greenllm.bench import latency, texts
from greenllm.bench.measurement import bootstrap
from greenllm.bench.process import Failed, blame
from greenllm.bench.session import Contender, Effort, Session
from greenllm.bench.tasks import zeroshot
from greenllm.bench.tasks.items import Task
from greenllm.errors import GreenError
from greenllm.pairs import TASK, TEMPLATE

TEXT = TEMPLATE.format("cat")  # read again and again
_ROUNDS = 5
METHOD = (
    f" Texts are read one at a time ({TEXT!r}), apart from the sittings, in {_ROUNDS} rounds in which the models take "
    "turns; cutting them into tokens is not in the time. Energy is that of images alone."
)
_WORDS = 8  # of a sentence that is read where there is no task


def takes(session: Session) -> bool:
    """Whether the models (all of one task) read texts beside images."""
    return any(c.info.task == TASK for c in session.live)


def check(session: Session, tasks: Sequence[Task]) -> None:
    """Refuse what cannot be asked.

    Raises:
        GreenError: see :func:`greenllm.bench.tasks.zeroshot.texts`; or a text that is longer than a model reads.
    """
    for told in [zeroshot.texts(t) for t in tasks]:
        for who in session.live:
            try:
                who.model.call("tokens", told)
            except Failed as e:
                raise (blame(e, who.row.name) if e.users else GreenError(f"{who.row.name}: {e}")) from e


def quality(session: Session, tasks: Sequence[Task], effort: Effort) -> str:
    """Vectors of texts beside the baseline's, and how fast one text is read; returns which texts."""
    told = zeroshot.texts(tasks[0])[: effort.sentences] if tasks else _sentences(session, effort.sentences)
    source = None
    for who in list(session.live):
        with session.watching(who, "texts"):
            found = zeroshot.read(who, told)
            if who is session.baseline:
                source = found
            elif source is not None and source.shape == found.shape:
                cosines = (source * found).sum(1).astype(float).tolist()
                who.row.samples["cosine_text"] = cosines
                who.row.measurements["cosine_text"] = bootstrap(cosines, "", "computed: on the baseline's texts")
    _speed(session, effort)
    return f"{len(told)} texts of {tasks[0].name if tasks else 'the built-in text'}"


def _speed(session: Session, effort: Effort) -> None:
    """One text at a time, in rounds in which the models take turns, there and back."""
    rounds: dict[int, list[list[latency.Query]]] = {id(who): [] for who in session.live}
    session.progress.stage("reading texts", _ROUNDS)
    for turn in range(_ROUNDS):
        for who in session.live[:: -1 if turn % 2 else 1]:
            with session.watching(who, "texts"):
                rounds[id(who)].append(_turn(who, effort.turn))
        session.progress.advance()
    for who in session.live:
        found = latency.Rounds(1, rounds[id(who)], "text")
        named = {"encode": "encode_text"}
        who.row.samples |= {named.get(k, k): v for k, v in found.samples().items()}
        who.row.measurements |= {named.get(k, k): m for k, m in found.measurements().items()}


def _turn(who: Contender, seconds: float) -> list[latency.Query]:
    (ids,) = who.model.call("tokens", [TEXT])
    found: list[latency.Query] = who.model.call("queries", ids, 0, seconds)
    return found


def _sentences(session: Session, count: int) -> list[str]:
    """Beginnings of sentences of the text that comes with Python, as short as captions are and as all models read."""
    found = [" ".join(s.split()[:_WORDS]) for s in texts.sentences(texts.read(None).text, count)]
    return [text for text in dict.fromkeys(found) if all(_reads(who, text) for who in session.live)] or [TEXT]


def _reads(who: Contender, text: str) -> bool:
    try:
        who.model.call("tokens", [text])
    except Failed as e:
        if e.users:  # too long for it
            return False
        raise
    return True
