"""Classes by name for a model that reads: a text of each label beside the image, and the nearest is the answer.

Radford et al. (2021), Learning transferable visual models from natural language supervision, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from greenllm.bench.session import Contender
from greenllm.bench.tasks.items import Captioned, Picture, Task
from greenllm.errors import GreenError
from greenllm.pairs import TEMPLATE, Vectors, said_of, unit

NOTE = f"the label whose text, {TEMPLATE.format('…')!r}, is nearest to the image"
_BATCH = 64


def texts(task: Task) -> list[str]:
    """All that is read for a task: a text of each label, or each caption once.

    Raises:
        GreenError: labels that are no names, one class alone, one pair alone, or a task of another kind.
    """
    if captions := dict.fromkeys(c for i in task.items if isinstance(i, Captioned) for c in i.captions):
        if len(captions) < 2:  # noqa: PLR2004
            raise GreenError(f"{task.name} has one caption: there is nothing to retrieve it from.", "Give more rows.")
        return list(captions)
    items = [i for i in task.items if isinstance(i, Picture)]
    if not items:
        raise GreenError(
            f"{task.name}: this model compares images with texts.",
            'Rows are {"image": "path.jpg", "label": "name"} or {"image": "path.jpg", "caption": "…"}.',
        )
    if index := next((i for i in items if not isinstance(i.label, str)), None):
        raise GreenError(f"{index.where}: the label {index.label!r} is an index.", "Names are read here: write those.")
    try:
        return said_of(items[0].among)
    except GreenError as e:
        raise GreenError(f"{task.name}: {e.what}", e.fix) from e


def classes(task: Task) -> list[int]:
    """Of each item its label's place among the names."""
    return [i.among.index(str(i.label)) for i in task.items if isinstance(i, Picture)]


def read(who: Contender, told: Sequence[str]) -> Vectors:
    """Vectors of texts, [N, K], of length 1."""
    ids = who.model.call("tokens", list(told))
    return unit(np.concatenate([who.model.call("encode", ids[i : i + _BATCH]) for i in range(0, len(ids), _BATCH)]))
