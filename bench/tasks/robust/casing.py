"""Letters of the other case, as NL-Augmenter's ``change_char_case`` (Dhole et al., 2021, arXiv:2112.02721)."""

from __future__ import annotations

from random import Random


def places(text: str) -> list[int]:
    """Letters of any script that have another case, of one character, and come back from it."""
    return [i for i, c in enumerate(text) if len(c.swapcase()) == 1 and c.swapcase() != c == c.swapcase().swapcase()]


def change(text: str, i: int, draw: Random) -> tuple[int, str]:
    """The other case."""
    del draw
    return 1, text[i].swapcase()
