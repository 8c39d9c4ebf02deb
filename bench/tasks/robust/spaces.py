"""Spaces left out and put into words, as NL-Augmenter's ``whitespace_perturbation`` (arXiv:2112.02721).

It needs no alphabet: where a script has no spaces they are put between its characters.
"""

from __future__ import annotations

from random import Random


def places(text: str) -> list[int]:
    """Spaces inside the text, and letters and digits before another one: signs that join others stay joined."""
    return [i for i, c in enumerate(text[:-1]) if (c == " " and i > 0) or (c.isalnum() and text[i + 1].isalnum())]


def change(text: str, i: int, draw: Random) -> tuple[int, str]:
    """A space goes; after anything else one comes."""
    del draw
    return 1, "" if text[i] == " " else text[i] + " "
