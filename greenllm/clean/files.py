"""Texts of files: paragraphs of a ``.txt``, strings of anything that holds test items."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from greenllm.errors import GreenError

_BREAK = re.compile(r"(\n[ \t]*\n\s*)")


def paragraphs(text: str) -> list[str]:
    """A text in parts that end with a blank line, which stays with its part: joined they are the text."""
    parts = _BREAK.split(text)
    return ["".join(parts[i : i + 2]) for i in range(0, len(parts), 2)]


def strings(file: Path) -> Iterator[str]:
    """Every string of a ``.jsonl`` row, column of a ``.csv`` or ``.tsv`` row, or paragraph of a ``.txt`` file.

    Raises:
        GreenError: another kind of file, missing, not UTF-8, or a line that is no JSON.
    """
    try:
        text = file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise GreenError(f"{file}: cannot be read: {e}.", "See --against.") from e
    if file.suffix == ".txt":
        yield from paragraphs(text)
    elif file.suffix in (".csv", ".tsv"):
        rows = csv.reader(io.StringIO(text), delimiter="\t" if file.suffix == ".tsv" else ",")
        yield from (cell for row in rows for cell in row)
    elif file.suffix == ".jsonl":
        for n, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    yield from _leaves(json.loads(line))
                except ValueError as e:
                    raise GreenError(f"{file}, line {n}: not JSON.", "See --against.") from e
    else:
        raise GreenError(f"{file}: test items are read from .jsonl, .csv, .tsv and .txt files.", "See --against.")


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
