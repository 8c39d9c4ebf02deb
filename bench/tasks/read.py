"""Read the items of a task from a file; its spellings are in :mod:`greenllm.bench.tasks.forms`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from greenllm import artifact, images
from greenllm.bench.tasks import suite
from greenllm.bench.tasks.forms import FORMS
from greenllm.bench.tasks.items import (
    Captioned,
    Entry,
    Item,
    Labelled,
    Looked,
    Opening,
    Pair,
    Picture,
    Prompt,
    Question,
    Task,
    Utterance,
)  # fmt: skip
from greenllm.bench.tasks.rows import FORM, rows
from greenllm.bench.tasks.speech import check_clip
from greenllm.bench.texts import spread
from greenllm.errors import GreenError


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
    """Items of a file, all or ``limit`` of them, evenly spread over it and its groups.

    Raises:
        GreenError: see :func:`greenllm.bench.tasks.rows.rows`; or empty, or a row that is no item (its line is told).
    """
    path = Path(path).expanduser()
    found = [_item(path, where, row) for where, row in rows(path)]
    if not found:
        raise GreenError(f"{path} has no items in it.", FORM)
    items = _of_one_kind(path, found)
    chosen = items if not 0 < limit < len(items) else spread(sorted(items, key=lambda i: i.stratum), limit)
    for item in chosen:
        if isinstance(item, Looked | Picture | Captioned | Utterance):
            _look(item)
    return Task(f"{path.absolute().parent.name}/{path.stem}", chosen, len(items))


def _look(item: Looked | Picture | Captioned | Utterance) -> None:
    """Open a file, so that a damaged one is told before anything is measured."""
    try:
        if not isinstance(item, Utterance):
            images.opened(item.file)
        else:
            check_clip(item)
    except GreenError as e:
        raise GreenError(f"{item.where}: {e.what}", e.fix) from e


def _of_one_kind(path: Path, found: list[Entry | Labelled]) -> list[Entry]:
    labels = tuple(sorted({r.label for r in found if isinstance(r, Labelled)}))
    if len(labels) == 1:
        raise GreenError(f"{path}: every text has the label {labels[0]!r}.", "A classification takes two or more.")
    among = tuple(sorted({r.label for r in found if isinstance(r, Picture) and isinstance(r.label, str)}))
    named = [
        Item(r.context, labels, labels.index(r.label), r.gap, group=r.group, parts=r.parts)
        if isinstance(r, Labelled)
        else r
        for r in (replace(r, among=among) if isinstance(r, Picture) else r for r in found)
    ]
    if len({type(r) for r in named}) > 1:
        raise GreenError(
            f"{path} mixes kinds: choices, free answers, images, speech, or sets that are published.",
            "Write a file for each.",
        )
    return named


def form(row: dict[str, Any]) -> Any:
    """What makes an item of a row with these keys; None where nothing does."""
    return next((f for keys, f in FORMS.items() if set(keys) <= set(row)), None)


def _item(path: Path, where: str, row: dict[str, Any]) -> Entry | Labelled:
    make = form(row)
    if make is None:
        raise GreenError(f"{where}: these are no keys of a known kind of item.", _nearest(row))
    keys = next(", ".join(keys) for keys, f in FORMS.items() if f is make)
    try:
        item: Entry | Labelled = make(row)
    except KeyError as e:
        raise GreenError(f"{where}: it has no {e}.", f"It was read for its keys {keys}.") from e
    except (ValueError, TypeError, AttributeError) as e:
        raise GreenError(f"{where}: {e}.", f"It was read for its keys {keys}.") from e
    if not item.group and row.get("group") is not None:
        if not isinstance(row["group"], (str, int)):
            raise GreenError(f"{where}: its group {row['group']!r} is no name.", "Give a text or a number.")
        item = replace(item, group=str(row["group"]).strip())
    if isinstance(item, Looked | Picture | Captioned | Utterance):
        if isinstance(item, Captioned) and not all(item.captions):
            raise GreenError(f"{where}: its caption is empty.")
        if isinstance(item, Looked) and not all(t.strip() for t in _told(item)):
            raise GreenError(f"{where}: an empty question or answer cannot be scored.")
        return replace(item, file=artifact.placed(path.parent, row[item.key], where, item.key), where=where)
    if not all(t.strip() for t in _told(item)):
        raise GreenError(f"{where}: an empty context, choice or answer cannot be scored.")
    return item


def _nearest(row: dict[str, Any]) -> str:
    """What a row lacks to be of the kind that it is most like, and all kinds."""
    share = {keys: len(set(keys) & set(row)) / len(keys) for keys in FORMS}
    most = max(share, key=lambda keys: share[keys])
    known = f"Known are: {'; '.join(', '.join(keys) for keys in FORMS)}."
    lacks = [k for k in most if k not in row]
    return f"To be {', '.join(most)} it lacks {', '.join(lacks)}. {known}" if share[most] else known


def _told(item: Item | Pair | Prompt | Opening | Question | Labelled) -> list[str]:
    """All texts of an item."""
    if isinstance(item, Pair):
        return [item.more, item.less]
    more = item.choices if isinstance(item, Item) else item.answers if isinstance(item, Question) else (
        [item.label] if isinstance(item, Labelled) else [])  # fmt: skip
    return [item.context, *more]
