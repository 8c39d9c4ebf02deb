"""What a bench asks of models that answer about images besides what it asks of text generators: an image first."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from greenllm import vlm
from greenllm.bench import latency
from greenllm.bench.session import Query, Session
from greenllm.bench.tasks.items import Captioned, Looked, Picture, Task
from greenllm.bench.texts import Tokens
from greenllm.errors import GreenError
from greenllm.images import pictures

_SIDE = 256  # pixels of an image whose contents make no difference


def takes(session: Session) -> bool:
    """Whether the models (all of one task) answer about images."""
    return any(c.info.task == vlm.TASK for c in session.live)


def check(session: Session, tasks: Sequence[Task], *, batches: bool) -> None:
    """Refuse before anything is measured what these models cannot do.

    Raises:
        GreenError: questions about images for others, other tasks of images for these, or several queries at once.
    """
    if not takes(session):
        if seen := next((t.name for t in tasks if isinstance(t.items[0], Looked)), None):
            raise GreenError(f"{seen} asks about images, and none of these models sees and writes.", "Leave it out.")
        return
    if batches:
        raise GreenError("Models that answer about images are asked one query at a time here.", "Leave out --batch.")
    check_tasks(tasks)


def check_tasks(tasks: Sequence[Task]) -> None:
    """Refuse tasks of images that ask nothing.

    Raises:
        GreenError: one has labels or captions in place of questions and answers.
    """
    if other := next((t.name for t in tasks if isinstance(t.items[0], Picture | Captioned)), None):
        raise GreenError(
            f"{other}: these models answer questions; its rows have none.",
            'Give rows {"image": "path.jpg", "question": "…", "answer": "…"}.',
        )


def show(session: Session, query: Query) -> dict[str, Any]:
    """Put an image before every model's prompt; returns what the report must say of the query, nothing for others."""
    if not takes(session):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        file = _image(Path(folder) / "noise.png")
        for who in list(session.live):
            with session.watching(who, "image"):
                said = vlm.question(Tokens(who.info.directory), "", seen=True, raw=True)
                seen = who.model.call("see", str(file), said)
                who.prompt = vlm.Prompt([*seen, *who.prompt], seen.pixels)
                who.rounds = latency.Rounds(len(who.prompt))
    return {
        "query": f"an image and a prompt of {query.prompt} tokens are read and exactly {query.answer} tokens are "
        "answered, greedy; making pixels of the image is not in the time, and its tokens count as read"
    }


def _image(file: Path) -> Path:
    """Noise that falls as 1/f; what is in an image makes no difference to its time."""
    from PIL import Image

    noise = pictures(1, (3, _SIDE, _SIDE))[0].transpose(1, 2, 0)
    Image.fromarray((128 + 40 * noise).clip(0, 255).astype(np.uint8)).save(file)
    return file
