"""What a bench of models that write about images asks: images with captions, one of them again and again for speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from greenllm import captions
from greenllm.bench import latency
from greenllm.bench.session import Effort, Query, Session
from greenllm.bench.speech import written
from greenllm.bench.tasks.captions import check_here, wanted
from greenllm.bench.tasks.items import Captioned, Task
from greenllm.errors import GreenError


def takes(session: Session) -> bool:
    """Whether the models (all of one task) write what an image shows."""
    return any(c.info.task == captions.TASK for c in session.live)


def check(session: Session, tasks: Sequence[Task], *, others: bool, batches: bool = False) -> None:
    """Refuse before anything is measured what these models cannot do.

    Args:
        session: with all models loaded.
        tasks: what they are to be asked.
        others: whether something that takes text was asked for too.
        batches: whether several at once were.

    Raises:
        GreenError: text for models that write about images, or none of the images that they need.
    """
    if not takes(session):
        return
    if others or batches:
        raise GreenError(
            "These models take images alone, one at a time, and write about them.",
            "Leave out --pairs, --lm-eval, --length, --batch, --chat, --bisect.",
        )
    check_tasks(tasks)


def check_tasks(tasks: Sequence[Task]) -> None:
    """Refuse tasks that are no images with captions.

    Raises:
        GreenError: there are others, or none; or sacrebleu is not installed.
    """
    if not tasks or not all(isinstance(t.items[0], Captioned) for t in tasks):
        raise GreenError(
            "These models write what they see; there is nothing else to ask them.",
            'Give images: --task captions.jsonl, rows {"image": "photo.jpg", "captions": ["what it shows", "…"]}.',
        )
    check_here()


def cut(session: Session, tasks: Sequence[Task]) -> tuple[Query, dict[str, Any]]:
    """The first image becomes every model's prompt; as many tokens as the first model writes are its answer.

    The same work for all, as with clips. Returns the query, and the settings that its report must name.
    """
    file = next(iter(wanted(tasks[0])))
    for who in list(session.live):
        with session.watching(who, "first image"):
            who.prompt = who.model.call("prompt", str(file))
            who.weights = 0  # a token reads none of the encoder's: no bandwidth is told
            who.rounds = latency.Rounds(1, kind="image")
    most = max((captions.most_tokens(c.info.directory) for c in session.live), default=2)
    answer = written(session, most)
    words = f"one image ({file.name}), made pixels before, is seen and exactly {answer} tokens are written, greedy"
    return Query(0, answer), {"answer_tokens": answer, "query": words, "text": ", ".join(t.name for t in tasks)}


def quality(session: Session, tasks: Sequence[Task], effort: Effort) -> dict[str, str]:
    """Nothing beside the tasks, which compare what is written with what people wrote."""
    del session, tasks, effort
    return {}
