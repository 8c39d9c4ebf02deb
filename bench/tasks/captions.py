"""What a model writes about images beside what people wrote: BLEU and chrF (sacrebleu).

BLEU (Papineni et al., 2002) is of all captions together, from the sums of their n-grams; chrF (Popović, 2015) is the
mean over images. Both are lower-cased, and several captions of an image are all references. Intervals, of differences
from the baseline too, are from images drawn anew, the same ones for both models.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from greenllm import captions
from greenllm.bench.measurement import Measurement, statistic
from greenllm.bench.results import Paired, Score, TaskResult
from greenllm.bench.session import Contender, Session
from greenllm.bench.tasks.flips import Said
from greenllm.bench.tasks.items import Captioned, Task
from greenllm.errors import GreenError

_ORDER = 4  # words of the longest n-gram
_METHOD = "computed: sacrebleu, percentile bootstrap over images"


def wanted(task: Task) -> dict[Path, list[str]]:
    """Images, each with all that its rows say of it."""
    found: dict[Path, list[str]] = {}
    for item in task.items:
        if isinstance(item, Captioned):
            found.setdefault(item.file, []).extend(item.captions)
    return found


def ask(session: Session, who: Contender, task: Task, *, chat: bool) -> list[Said]:
    """Have one model write about all images; fill in ``Row.tasks``."""
    del chat  # checked before: nobody talks here
    images, most = wanted(task), captions.most_tokens(who.info.directory)
    written = []
    for file in images:
        written.append(str(who.model.call("describe", str(file), most)).strip())
        session.progress.advance(len(task.items) / len(images))
    base = session.rows[0].tasks.get(task.name)
    scores = judge(written, list(images.values()), base.written if base else None)
    note = f"{len(images)} images, {len(task.items)} captions of them"
    who.row.tasks[task.name] = TaskResult(total=task.total, chance=None, scores=scores, note=note, written=written)
    return [
        Said(str(file), zlib.crc32(text.lower().encode()), text, text.lower() in {t.lower() for t in told})
        for (file, told), text in zip(images.items(), written, strict=True)
    ]


def judge(
    written: Sequence[str], told: Sequence[Sequence[str]], before: Sequence[str] | None = None
) -> dict[str, Score]:
    """BLEU and chrF of what was written, 0 to 100, beside the baseline's of the same images.

    Args:
        written: by image.
        told: captions by people, one or more of each.
        before: what the baseline wrote.
    """
    counts, near = counted(written, told), likeness(written, told)
    change: dict[str, Measurement | None] = dict.fromkeys(("bleu", "chrf"))
    if before is not None:
        both = np.stack([counts, counted(before, told)], 1)
        change["bleu"] = _measured(both, lambda x: bleu(x[:, 0]) - bleu(x[:, 1]), "points")
        change["chrf"] = _measured(near - likeness(before, told), np.mean, "points")
    each = {"bleu": [bleu(c[None]) for c in counts], "chrf": near.tolist()}
    found = {"bleu": _measured(counts, bleu, ""), "chrf": _measured(near, np.mean, "")}
    return {
        name: Score(values=each[name], measured=m, against=Paired(difference=d) if (d := change[name]) else None)
        for name, m in found.items()
    }


def counted(written: Sequence[str], told: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Of each image matching n-grams and all, of 1 to 4 words, then words written and words told: [images, 10]."""
    metric = _sacrebleu().BLEU(lowercase=True, effective_order=True)
    found = [metric.sentence_score(text, list(of)) for text, of in zip(written, told, strict=True)]
    return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in found], np.float64)


def bleu(counts: NDArray[np.float64]) -> float:
    """Of images together, 0 to 100, from :func:`counted`.

    Where no caption has four words, shorter n-grams alone count (sacrebleu's effective order).
    """
    n = [int(c) for c in counts.sum(0)]
    found = _sacrebleu().BLEU.compute_bleu(n[:_ORDER], n[_ORDER:-2], n[-2], n[-1], effective_order=True)
    return float(found.score)


def likeness(written: Sequence[str], told: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """ChrF of each image, 0 to 100."""
    metric = _sacrebleu().CHRF(lowercase=True)
    return np.array([metric.sentence_score(text, list(of)).score for text, of in zip(written, told, strict=True)])


def check_here() -> None:
    """Nothing, where sacrebleu is installed.

    Raises:
        GreenError: it is not.
    """
    _sacrebleu()


def _measured(data: NDArray[np.float64], function: Any, unit: str) -> Measurement:
    """One image says nothing of the spread."""
    found = statistic(list(data), function, unit, _METHOD)
    return found if len(data) > 1 else found.model_copy(update={"ci95": None})


def _sacrebleu() -> ModuleType:
    try:
        import sacrebleu
    except ImportError as e:
        raise GreenError(
            f"Captions are compared by sacrebleu ({e}).", 'Install it: pip install "greenllm[images]".'
        ) from e
    return sacrebleu
