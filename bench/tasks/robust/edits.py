"""Texts with a share of their characters changed: which ones, and how they are drawn.

A draw hangs on the text alone, so that every model reads the same copies, on every machine and in every order. What a
weaker copy changes a stronger one changes too, in the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random
from typing import TypeAlias

Places: TypeAlias = Callable[[str], list[int]]  # indices of the characters that can be changed
Change: TypeAlias = Callable[[str, int, Random], tuple[int, str]]  # characters from there on, and what replaces them


def seeded(*words: str) -> Random:
    """Draws that depend on ``words`` only; any Unicode, lone surrogates too."""
    digest = hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).digest()
    return Random(digest)  # noqa: S311 - no secret


def edited(text: str, percent: float, kind: str, places: Places, change: Change) -> str:
    """``text`` with ``percent`` of the characters at ``places`` changed, one more or less by chance.

    Args:
        text: any; one without places stays as it is.
        percent: 0 (nothing) to 100 (all of them).
        kind: what it is drawn for.
        places: which characters can be changed.
        change: what becomes of one.
    """
    draw, at = seeded(kind, text), places(text)
    draw.shuffle(at)
    count = int(percent / 100 * len(at) + draw.random()) if percent > 0 else 0
    edits = sorted((i, change(text, i, draw)) for i in at[:count])
    found, done = [], 0
    for i, (length, new) in edits:
        if i >= done:  # else its neighbour took it along
            found += [text[done:i], new]
            done = i + length
    return "".join([*found, text[done:]])
