"""Image classification: a model's answer is the class with the largest logit; no prompt, no choices to read.

One that reads has a text of each label instead of classes: see :mod:`greenllm.bench.tasks.zeroshot`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from greenllm import images
from greenllm.bench.results import TaskResult
from greenllm.bench.session import Contender, Session
from greenllm.bench.tasks import zeroshot
from greenllm.bench.tasks.flips import Said
from greenllm.bench.tasks.groups import subgroups
from greenllm.bench.tasks.items import Picture, Task
from greenllm.bench.tasks.paired import judge
from greenllm.bench.tasks.robust import noise
from greenllm.classes import index_of, names_of
from greenllm.errors import GreenError
from greenllm.pairs import TASK, unit

_BATCH = 16


def labels(who: Contender, task: Task) -> list[int]:
    """The class of each item, as this model numbers them.

    Raises:
        GreenError: it gives no classes, or not this one.
    """
    if who.info.task == TASK:
        return zeroshot.classes(task)
    classes = who.info.vocabulary
    if not classes:
        raise GreenError(f"{who.row.name} does {who.info.task}: it has no classes to choose from.", "Leave out --task.")
    names = names_of(who.info.directory)
    items = [i for i in task.items if isinstance(i, Picture)]
    return [index_of(i.label, names, classes, who=who.row.name, where=i.where) for i in items]


def ask(session: Session, who: Contender, task: Task, *, chat: bool) -> list[Said]:
    """Show one model all items; fill in ``Row.tasks``, compared with the baseline's item by item."""
    del chat  # checked before: nobody talks here
    said: list[Said] = []
    want = labels(who, task)
    items = [i for i in task.items if isinstance(i, Picture)]
    named = zeroshot.read(who, zeroshot.texts(task)) if who.info.task == TASK else None
    edge = min(session.live[0].info.image[1:])  # the same images for all

    def likes(logits: Any) -> tuple[float, ...]:
        return tuple(map(float, logits)) if named is None else ()  # cosines are no logarithms

    for at in range(0, len(items), _BATCH):
        batch = items[at : at + _BATCH]
        with _files(batch, edge) as files:
            answers = who.model.call("look", files)
        if named is not None:
            answers = unit(answers) @ named.T
        for item, logits, label in zip(batch, answers, want[at:], strict=False):
            found = int(logits.argmax())
            answer = f"class {found}" if named is None else item.among[found]
            said.append(Said(str(item.file), found, answer, found == label, likes(logits)))
        session.progress.advance(len(batch))
    base = session.rows[0].tasks.get(task.name)
    before = base.scores["acc"] if base else None
    right = [int(bool(s.good)) for s in said]
    scores = {"acc": judge(right, before)} | subgroups(right, items, before, "acc")
    chance, note = 1 / (who.info.vocabulary if named is None else len(named)), "" if named is None else zeroshot.NOTE
    who.row.tasks[task.name] = TaskResult(total=task.total, chance=chance, scores=scores, note=note)
    return said


@contextmanager
def _files(items: Sequence[Picture], edge: int) -> Iterator[list[str]]:
    """The images' own files; where there is noise on them, files that are there for the moment."""
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i, item in enumerate(items):
            file = item.file
            if item.noise:
                file = Path(folder) / f"{i}.png"
                noise.on_image(images.opened(item.file), item.noise, item.file.name, edge).save(file)
            files.append(str(file))
        yield files
