"""Rows of a task's file: the objects of a ``.jsonl`` (or ``.json``), one a line, or the records of a ``.csv``."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from greenllm.errors import GreenError

FORM = "One JSON object a line: context, choices, label; or a .csv with these in its first line."
SUFFIXES = (".jsonl", ".json", ".csv")
_LARGEST = 256 << 20


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row lies, in words, and the row.

    Raises:
        GreenError: no such file, not UTF-8, too large, or a row that is none (its line is told).
    """
    if path.suffix not in SUFFIXES or not path.is_file():
        raise GreenError(f"{path} is no .jsonl or .csv file of a task.", FORM)
    if path.stat().st_size > _LARGEST:
        raise GreenError(f"{path} is larger than {_LARGEST >> 20} MB.", "Cut it.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _records(path, file) if path.suffix == ".csv" else _objects(path, file)
    except UnicodeDecodeError as e:
        raise GreenError(f"{path} is not UTF-8 text (byte {e.start}).") from e


def _objects(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for n, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise GreenError(f"{path}, line {n}: not JSON.", FORM) from e
            yield f"{path}, line {n}", row if isinstance(row, dict) else {}


def _records(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(lines, strict=True)
    try:
        names = reader.fieldnames or []
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise GreenError(f"{path}, line 1: two columns are called {twice[0]!r}.", "Name each but once.")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise GreenError(
                    f"{where}: it has not the {len(names)} fields that the first line names.", "Quote commas."
                )
            yield where, row
    except csv.Error as e:
        raise GreenError(f"{path}, line {reader.reader.line_num}: not CSV ({e}).", "Quote fields with commas.") from e
