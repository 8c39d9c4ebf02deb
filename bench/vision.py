"""What a bench asks of vision encoders where it gives others text: one image again and again, and many once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from greenllm import images
from greenllm.bench import captions, fidelity, latency, reading
from greenllm.bench.session import Contender, Effort, Query, Session
from greenllm.bench.tasks import picture
from greenllm.bench.tasks.items import Captioned, Picture, Task
from greenllm.errors import GreenError

BATCH = 16


def takes(session: Session) -> bool:
    """Whether the models (all of one task) take images."""
    return any(c.info.image for c in session.live)


def check(session: Session, tasks: Sequence[Task], *, others: bool, batches: bool = False) -> None:
    """Refuse before anything is measured what these models cannot do.

    Args:
        session: with all models loaded.
        tasks: what they are to be asked.
        others: whether something that takes text was asked for too.
        batches: whether several at once were, which they can.

    Raises:
        GreenError: text for vision encoders, images for others, or a label that a model does not know.
    """
    del batches
    pictured = [isinstance(t.items[0], Picture) for t in tasks]
    captioned = [isinstance(t.items[0], Captioned) for t in tasks]
    if not takes(session):
        if any(pictured + captioned) and not captions.takes(session):
            raise GreenError("A task of images asks image classifiers; these models see nothing.")
        return
    reads = reading.takes(session)
    if any(captioned) and not reads:
        raise GreenError("A task of captions asks models for images and texts, or that write; these do neither.")
    if others or not all(p or c for p, c in zip(pictured, captioned, strict=True)):
        raise GreenError(
            "These models take images: no text, pairs, lengths, chat or bisection.",
            'Leave out those options; --task takes rows {"image": "path.jpg", "label": "name"}.',
        )
    if reads:
        reading.check(session, tasks)
    for who in session.live if not reads else ():
        for task in tasks:
            picture.labels(who, task)


def cut(session: Session, tasks: Sequence[Task]) -> tuple[Query, dict[str, Any]]:
    """Give every model an image of its own size; what is in it makes no difference to its time.

    Returns the query, and the settings that its report must name.
    """
    del tasks
    for who in session.live:
        who.prompt = images.pictures(1, who.info.image)[0]
        who.rounds = latency.Rounds(1, kind="image")
    return Query(0, 0), {
        "query": "one image goes through the model; reading it and making pixels of it are not in the time"
    }


def quality(session: Session, tasks: Sequence[Task], effort: Effort) -> dict[str, str]:
    """Answers beside the baseline's, to images of the first task or made-up ones; returns which."""
    count = effort.sentences
    files = [str(i.file) for t in tasks[:1] for i in t.items if isinstance(i, Picture | Captioned)][:count]
    session.progress.stage("quality", len(session.live))
    source = None
    for who in list(session.live):
        with session.watching(who, "quality"):
            found = _answers(who, files, count)
            if who is session.baseline:
                source = found
            elif source is not None and source.shape != found.shape:
                who.row.notes.append("its answers have another width than the baseline's: they are not compared")
            elif source is not None:
                _compare(who, source, found)
        session.progress.advance()
    made = f"{count} made-up images, noise that falls as 1/f"
    told = {"images": f"{len(files)} images of {tasks[0].name}" if files else made}
    return told | ({"texts": reading.quality(session, tasks, effort)} if reading.takes(session) else {})


def _answers(who: Contender, files: list[str], count: int) -> NDArray[np.float32]:
    if files:
        return np.concatenate([who.model.call("look", files[i : i + BATCH]) for i in range(0, len(files), BATCH)])
    made = images.pictures(count, who.info.image, seed=1)
    return np.concatenate([who.model.call("encode", made[i : i + BATCH]) for i in range(0, count, BATCH)])


def _compare(who: Contender, source: NDArray[np.float32], found: NDArray[np.float32]) -> None:
    samples = (fidelity.classified if who.info.vocabulary else fidelity.embeddings)(source, found)
    who.row.samples |= samples
    who.row.measurements |= fidelity.answer_measurements(samples, "images")
