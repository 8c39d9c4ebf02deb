"""What can be done to a text, by name."""

from __future__ import annotations

from greenllm.bench.tasks.robust import casing, homoglyphs, spaces, typos, width
from greenllm.bench.tasks.robust.edits import edited

TEXTS = {"typos": typos, "casing": casing, "spaces": spaces, "homoglyphs": homoglyphs, "width": width}


def disturbed(text: str, kind: str, percent: float) -> str:
    """``text`` with ``percent`` of the characters that ``kind`` can change changed; see :func:`edited`."""
    return edited(text, percent, kind, TEXTS[kind].places, TEXTS[kind].change)
