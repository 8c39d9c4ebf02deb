"""Multiple choice from a ``.jsonl`` file, in the spellings of the public sets and with lm-eval's prompts for them.

========================================  ===================================================================
keys                                      prompt
========================================  ===================================================================
context, choices, label                   the context as it is, a space, the choice
ctx, endings, label                       HellaSwag: cleaned as lm-eval's ``hellaswag`` does
question, choices, label (or answerKey)   ARC: "Question: …" and "Answer:", as lm-eval's ``arc_easy``
question, passage, answer                 BoolQ: passage, "Question: …?" and "Answer:", as lm-eval's ``boolq``
========================================  ===================================================================

A label is a number from 0, a letter or the text of a choice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenllm.errors import GreenError

_LARGEST = 256 << 20


@dataclass(frozen=True)
class Item:
    """A context, what may follow it, and the index of what does."""

    context: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Task:
    """Items of one file, called by its folder and name; ``total`` is how many it has."""

    name: str
    items: list[Item]
    total: int

    @property
    def chance(self) -> float:
        """Share that blind guessing gets right."""
        return sum(1 / len(i.choices) for i in self.items) / len(self.items)


def read(path: Path | str, limit: int = 0) -> Task:
    """Items of a file, all or ``limit`` of them, evenly spread.

    Raises:
        GreenError: no such file, not UTF-8, empty, too large, or a row that is none (its line is told).
    """
    path = Path(path).expanduser()
    if path.suffix != ".jsonl" or not path.is_file():
        raise GreenError(f"{path} is no .jsonl file of a task.", "One JSON object a line: context, choices, label.")
    if path.stat().st_size > _LARGEST:
        raise GreenError(f"{path} is larger than {_LARGEST >> 20} MB.", "Cut it.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as e:
        raise GreenError(f"{path} is not UTF-8 text (byte {e.start}).") from e
    items = [_item(path, n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise GreenError(f"{path} has no items in it.", "One JSON object a line: context, choices, label.")
    count = min(limit or len(items), len(items))
    return Task(
        f"{path.absolute().parent.name}/{path.stem}", [items[i * len(items) // count] for i in range(count)], len(items)
    )


def _item(path: Path, n: int, line: str) -> Item:
    where = f"{path}, line {n}"
    try:
        row = json.loads(line)
    except ValueError as e:
        raise GreenError(f"{where}: not JSON.", "One JSON object a line: context, choices, label.") from e
    form = next((f for keys, f in _FORMS.items() if isinstance(row, dict) and set(keys) <= set(row)), None)
    if form is None:
        known = "; ".join(", ".join(keys) for keys in _FORMS)
        raise GreenError(f"{where}: these are no keys of a known kind of item.", f"Known are: {known}.")
    try:
        item = form(row)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise GreenError(f"{where}: {e}.", "See the keys context, choices, label.") from e
    if not item.context.strip() or not all(c.strip() for c in item.choices):
        raise GreenError(f"{where}: an empty context or choice cannot be scored.")
    return item


def _plain(row: dict[str, Any]) -> Item:
    choices = _texts(row["choices"])
    return Item(_text(row["context"]), choices, _index(row["label"], choices))


def _hellaswag(row: dict[str, Any]) -> Item:
    endings = _texts(row["endings"])
    return Item(_cleaned(_text(row["ctx"])), tuple(map(_cleaned, endings)), _index(row["label"], endings))


def _arc(row: dict[str, Any]) -> Item:
    given = row["choices"]
    hub = isinstance(given, dict)  # {"text": […], "label": ["A", …]}
    choices = _texts(given["text"] if hub else given)
    key = row.get("label", row.get("answerKey"))
    label = given["label"].index(key) if hub and "label" in given else _index(key, choices)
    return Item(f"Question: {_text(row['question'])}\nAnswer:", choices, label)


def _boolq(row: dict[str, Any]) -> Item:
    if not isinstance(row["answer"], bool):
        raise TypeError("its answer is neither true nor false")
    context = f"{_text(row['passage'])}\nQuestion: {_text(row['question'])}?\nAnswer:"
    return Item(context, ("no", "yes"), int(row["answer"]))


_FORMS: dict[tuple[str, ...], Callable[[dict[str, Any]], Item]] = {
    ("context", "choices", "label"): _plain,
    ("ctx", "endings", "label"): _hellaswag,
    ("question", "choices", "label"): _arc,
    ("question", "choices", "answerKey"): _arc,
    ("question", "passage", "answer"): _boolq,
}


def _cleaned(text: str) -> str:
    """HellaSwag's WikiHow marks away: lm-eval's ``preprocess``."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2:  # noqa: PLR2004 - one is no choice
        raise TypeError("its choices are no list of two or more")
    return tuple(map(_text, value))


def _index(label: Any, choices: tuple[str, ...]) -> int:
    if isinstance(label, str) and label in choices:
        return choices.index(label)
    if isinstance(label, str) and re.fullmatch(r"[A-Z]", label):
        label = ord(label) - ord("A")
    if isinstance(label, str) and label.isdigit():
        label = int(label)
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(choices):
        raise ValueError(f"its label {label!r} names none of its {len(choices)} choices")
    return label
