"""Models that say to which class a text belongs (BERT with a head): the names of classes, and the answer. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from greenllm.errors import GreenError
from greenllm.tokens import read_json

TASK = "text-classification"


def names_of(directory: Path) -> dict[str, int]:
    """Classes by name, as ``config.json`` has them (``id2label``)."""
    told: Any = read_json(directory / "config.json").get("id2label")
    return {str(v): int(k) for k, v in told.items() if str(k).isdigit()} if isinstance(told, dict) else {}


def index_of(label: str | int, names: Mapping[str, int], count: int, *, who: str, where: str) -> int:
    """The number of a class.

    Args:
        label: its name, in whatever case where that is enough to tell it apart, or its number.
        names: of the classes.
        count: of the classes.
        who: the model's name.
        where: whose label it is, for people.

    Raises:
        GreenError: there is none.
    """
    found = label if isinstance(label, int) else names.get(label, -1)
    if isinstance(label, str) and found < 0:
        alike = {n for name, n in names.items() if name.casefold() == label.casefold()}
        found = alike.pop() if len(alike) == 1 else -1
    if not 0 <= found < count:
        known = f"0 to {count - 1}" + (f"; {', '.join(list(names)[:10])}" if names else "")
        raise GreenError(f"{where}: {who} has no class {label!r}.", f"It has {known}.")
    return found


def several(directory: Path) -> bool:
    """Whether a text may belong to several classes at once, each of which stands for itself."""
    return read_json(directory / "config.json").get("problem_type") == "multi_label_classification"


def likely(logits: NDArray[np.float32], several: bool) -> NDArray[np.float64]:  # noqa: FBT001
    """Of each class its probability: softmax of logits [C], or the sigmoid of each; one alone is a value as it is."""
    x = logits.astype(np.float64)
    if len(x) == 1 or several:
        return x if not several else 1 / (1 + np.exp(-x))
    e = np.exp(x - x.max())
    found: NDArray[np.float64] = e / e.sum()
    return found
