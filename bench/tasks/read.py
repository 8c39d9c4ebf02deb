"""Read the items of a task from a ``.jsonl`` file; its spellings are in :mod:`greenllm.bench.tasks.forms`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from greenllm import artifact, images
from greenllm.bench.tasks import suite
from greenllm.bench.tasks.forms import FORMS
from greenllm.bench.tasks.items import Entry, Item, Labelled, Picture, Question, Task, Utterance
from greenllm.bench.tasks.speech import check_clip
from greenllm.bench.texts import spread
from greenllm.errors import GreenError

_LARGEST = 256 << 20


def read_all(names: Sequence[Path | str], limit: int = 0) -> list[Task]:
    """Tasks of files, and of :mod:`greenllm.bench.tasks.suite`: all of "suite", or "suite/arithmetic" alone.

    Raises:
        GreenError: see :func:`read`; or the suite has no such task.
    """
    found: list[Task] = []
    for name in names:
        own = [t for t in suite.tasks() if str(name) in (suite.NAME, t.name)]
        if not own and str(name).startswith(f"{suite.NAME}/") and not Path(name).exists():
            known = ", ".join(t.name for t in suite.tasks())
            raise GreenError(f"The suite has no task {name}.", f"It has {known}.")
        found += [replace(t, items=spread(t.items, limit or t.total)) for t in own] or [read(name, limit)]
    return found


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
    rows = [_item(path, n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise GreenError(f"{path} has no items in it.", "One JSON object a line: context, choices, label.")
    items = _of_one_kind(path, rows)
    chosen = spread(items, limit or len(items))
    for item in chosen:
        if isinstance(item, Picture | Utterance):
            _look(item)
    return Task(f"{path.absolute().parent.name}/{path.stem}", chosen, len(items))


def _look(item: Picture | Utterance) -> None:
    """Open a file, so that a damaged one is told before anything is measured."""
    try:
        if isinstance(item, Picture):
            images.opened(item.file)
        else:
            check_clip(item)
    except GreenError as e:
        raise GreenError(f"{item.where}: {e.what}", e.fix) from e


def _of_one_kind(path: Path, rows: list[Entry | Labelled]) -> list[Entry]:
    labels = tuple(sorted({r.label for r in rows if isinstance(r, Labelled)}))
    if len(labels) == 1:
        raise GreenError(f"{path}: every text has the label {labels[0]!r}.", "A classification takes two or more.")
    named = [Item(r.context, labels, labels.index(r.label)) if isinstance(r, Labelled) else r for r in rows]
    if len({type(r) for r in named}) > 1:
        raise GreenError(
            f"{path} mixes choices and free answers, or images or speech with others.", "Write a file for each."
        )
    return named


def _item(path: Path, n: int, line: str) -> Entry | Labelled:
    where = f"{path}, line {n}"
    try:
        row = json.loads(line)
    except ValueError as e:
        raise GreenError(f"{where}: not JSON.", "One JSON object a line: context, choices, label.") from e
    form = next((f for keys, f in FORMS.items() if isinstance(row, dict) and set(keys) <= set(row)), None)
    if form is None:
        known = "; ".join(", ".join(keys) for keys in FORMS)
        raise GreenError(f"{where}: these are no keys of a known kind of item.", f"Known are: {known}.")
    try:
        item = form(row)
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise GreenError(f"{where}: {e}.", "See the keys context, choices, label.") from e
    if isinstance(item, Picture | Utterance):
        return replace(item, file=artifact.placed(path.parent, row[item.key], where, item.key), where=where)
    told = [item.context, *(item.choices if isinstance(item, Item) else
                            item.answers if isinstance(item, Question) else [item.label])]  # fmt: skip
    if not all(t.strip() for t in told):
        raise GreenError(f"{where}: an empty context, choice or answer cannot be scored.")
    return item
