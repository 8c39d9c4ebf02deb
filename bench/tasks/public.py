"""Suites of public sets by name: which kinds of rows each takes, and lm-eval's tasks for where no files are given.

Files are found by the columns of their first row, not by their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from greenllm.bench.tasks import clue, published, robust
from greenllm.bench.tasks.items import Task
from greenllm.bench.tasks.read import form, read
from greenllm.bench.tasks.rows import SUFFIXES, rows
from greenllm.errors import GreenError

CLUE = "clue"


class Suite(NamedTuple):
    """Sets by name, each with what makes items of its rows; and the same sets in lm-eval."""

    sets: dict[str, object]
    lm_eval: tuple[str, ...]
    more: tuple[object, ...] = ()  # what makes items of sets that are taken where they are
    called: str = ""  # what the paths of these hold, where columns alone do not tell which set it is


SUITES = {
    "fairness": Suite(
        {"CrowS-Pairs (.csv)": published.pair, "BBQ (.jsonl)": published.unclear}, ("crows_pairs_english", "bbq")
    ),
    "safety": Suite({"XSTest (.csv)": published.prompt}, (), (published.opening,)),
    CLUE: Suite({}, (), tuple({make for _, make in clue.SETS.values()})),
}


def files(names: Sequence[str], data: Path | str | None, limit: int) -> list[Task]:
    """Tasks of the files of a directory and of those in it; none without a directory.

    Raises:
        GreenError: no such suite or directory, a set that is not in it, or see :func:`greenllm.bench.tasks.read.read`.
    """
    wanted = [_suite(name) for name in names]
    if data is None:
        return []
    if not names:
        raise GreenError("--data is where a suite's sets are.", f"Give --suite {' or '.join(SUITES)}.")
    data = Path(data).expanduser()
    if not data.is_dir():
        raise GreenError(f"{data} is no directory.", "Give --data the directory of a suite's sets.")
    there = [(path, _kind(path)) for path in sorted([*data.glob("*"), *data.glob("*/*")])]
    found = []
    for suite, asked in zip(names, wanted, strict=True):
        for name, make in asked.sets.items():
            mine = [path for path, kind in there if kind is make]
            if not mine:
                raise GreenError(
                    f"{data} has no {name} in it, which is of the suite {suite}.",
                    "Put it there as it is published; or give what there is with --task FILE.",
                )
            found += [read(path, limit) for path in mine]
        more = [p for p, kind in there if kind in asked.more and asked.called in str(p.relative_to(data)).lower()]
        if not asked.sets and not more:
            raise GreenError(
                f"{data} has no set of the suite {suite} in it.", f"Put there one or more: {', '.join(clue.SETS)}."
            )
        found += [read(path, limit) for path in (more if asked.sets else _to_ask(more))]
    return found


def _to_ask(files: Sequence[Path]) -> list[Path]:
    """Of each folder's parts of a set those to be asked: the public test, else what is for development, else all."""
    found = []
    for folder in dict.fromkeys(f.parent for f in files):
        here = [f for f in files if f.parent == folder]
        found += next(
            (some for part in ("test_public", "dev", "") if (some := [f for f in here if part in f.name])), []
        )
    return found


def harness(names: Sequence[str], data: Path | str | None) -> list[str]:
    """lm-eval's tasks of suites whose files are not given.

    Raises:
        GreenError: lm-eval has none for one of them.
    """
    if data is not None:
        return []
    if alone := next((n for n in names if not _suite(n).lm_eval), None):
        sets = " and ".join(_suite(alone).sets) or "sets of CLUE"
        raise GreenError(
            f"The suite {alone} needs its data; lm-eval does not have it.", f"Give --data DIR with {sets} in it."
        )
    return [task for n in names for task in _suite(n).lm_eval]


def _suite(name: str) -> Suite:
    """One of :data:`SUITES`, or a set of CLUE alone: ``clue:tnews``."""
    if name in SUITES:
        return SUITES[name]
    suite, _, one = name.partition(":")
    if suite == CLUE and one in clue.SETS:
        alone = sum(made is clue.SETS[one] for made in clue.SETS.values()) == 1
        return Suite({}, (), (clue.SETS[one][1],), "" if alone else one)
    known = ", ".join([*SUITES, robust.NAME])
    raise GreenError(
        f"No suite is called {name!r}.", f"There are {known}; of {CLUE} {CLUE}:{f', {CLUE}:'.join(clue.SETS)}."
    )


def _kind(path: Path) -> object:
    """What would make items of a file's rows; None where nothing would."""
    if path.suffix not in SUFFIXES or not path.is_file():
        return None
    try:
        _, first = next(rows(path), ("", {}))
    except GreenError:
        return None  # not one of ours: nobody named it
    return form(first)
