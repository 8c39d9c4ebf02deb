"""Versions, compared: what a runtime of Python 3.10 cannot do is told, not tried."""

from __future__ import annotations


def older(installed: str, *than: int) -> bool:
    """Whether a version such as "1.23.2" comes before ``than``, such as 1, 27."""
    return tuple(int(x) for x in installed.split(".")[: len(than)]) < than
