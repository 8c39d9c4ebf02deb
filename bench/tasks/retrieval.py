"""Retrieval: which caption is nearest to an image, and which image to a caption; how often the right one is among k.

Recall at k as for Flickr30k and COCO (Karpathy & Fei-Fei, 2015, arXiv:1412.2306): an image with several captions is
right where any of them is among the k nearest. Of equally near ones the right one comes last.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from greenllm.bench.results import Score, TaskResult
from greenllm.bench.session import Contender, Session
from greenllm.bench.tasks import zeroshot
from greenllm.bench.tasks.flips import Said
from greenllm.bench.tasks.groups import subgroups
from greenllm.bench.tasks.items import Captioned, Task
from greenllm.bench.tasks.paired import judge
from greenllm.pairs import unit

RANKS = (1, 5, 10)
_BATCH = 16


def ask(session: Session, who: Contender, task: Task, *, chat: bool) -> list[Said]:
    """Show one model all images and captions; fill in ``Row.tasks``, compared with the baseline's item by item."""
    del chat  # checked before: nobody talks here
    items = [i for i in task.items if isinstance(i, Captioned)]
    files, captions = list(dict.fromkeys(str(i.file) for i in items)), zeroshot.texts(task)
    row, column = ({name: n for n, name in enumerate(names)} for names in (files, captions))
    belongs = np.zeros((len(files), len(captions)), bool)
    for i in items:
        belongs[row[str(i.file)], [column[c] for c in i.captions]] = True
    seen = []
    for at in range(0, len(files), _BATCH):
        seen.append(who.model.call("look", files[at : at + _BATCH]))
        session.progress.advance(len(items) * len(seen[-1]) / len(files))
    near = unit(np.concatenate(seen)) @ zeroshot.read(who, captions).T
    base = session.rows[0].tasks.get(task.name)
    scores = _scores(near, belongs, base.scores if base else {})
    first = {str(i.file): i for i in reversed(items)}
    right = list(map(int, scores["caption_r1"].values))
    scores |= subgroups(right, [first[f] for f in files], base.scores["caption_r1"] if base else None, "caption_r1")
    note = f"{len(files)} images, {len(captions)} captions"
    chance = float(belongs.mean(axis=1).mean())
    who.row.tasks[task.name] = TaskResult(total=task.total, chance=chance, scores=scores, note=note)
    nearest = near.argmax(axis=1)
    return [
        Said(file, int(c), captions[c], bool(belongs[i, c]))
        for i, (file, c) in enumerate(zip(files, nearest.tolist(), strict=True))
    ]


def ranks(near: NDArray[np.float32], belongs: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of each row, how many columns that do not belong to it are as near as the nearest that does, [N]."""
    best = np.where(belongs, near, -np.inf).max(axis=1, keepdims=True)
    found: NDArray[np.int64] = ((near >= best) & ~belongs).sum(axis=1)
    return found


def _scores(near: NDArray[np.float32], belongs: NDArray[np.bool_], before: dict[str, Score]) -> dict[str, Score]:
    """Recall both ways at each of :data:`RANKS` that leaves something out."""
    found = {}
    for way, nearness, own in (("caption", near, belongs), ("image", near.T, belongs.T)):
        places = ranks(nearness, own)
        for k in RANKS:
            if k < own.shape[1]:
                name = f"{way}_r{k}"
                found[name] = judge((places < k).astype(int).tolist(), before.get(name))
    return found
