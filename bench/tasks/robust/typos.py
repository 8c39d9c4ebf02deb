"""Typing errors on a QWERTY keyboard: a letter beside the right one, one too many, one left out, two swapped.

The four edits of Belinkov & Bisk (2018, arXiv:1711.02173, section 4.2) and of TextFlint's ``Keyboard`` and ``Typos``
(Wang et al., 2021, arXiv:2103.11441). Case is kept. Of the Latin letters a to z only, which such a keyboard has.
"""

from __future__ import annotations

from random import Random

_ROWS = (("qwertyuiop", 0.0), ("asdfghjkl", 0.25), ("zxcvbnm", 0.75))  # and how far a row is shifted, in keys
_AT = {key: (x + shift, y) for y, (row, shift) in enumerate(_ROWS) for x, key in enumerate(row)}
BESIDE = {  # at most one key away, in any direction
    key: "".join(k for k, (x, y) in _AT.items() if k != key and abs(x - a) <= 1 and abs(y - b) <= 1)
    for key, (a, b) in _AT.items()
}


def places(text: str) -> list[int]:
    """Letters that are on the keyboard."""
    return [i for i, c in enumerate(text) if c.lower() in BESIDE]


def change(text: str, i: int, draw: Random) -> tuple[int, str]:
    """One typing error at a letter; the last one of a word has none to swap places with and is replaced."""
    letter, after = text[i], text[i + 1 : i + 2]
    near = draw.choice(BESIDE[letter.lower()])
    near = near.upper() if letter.isupper() else near
    edit = draw.choice(("replace", "insert", "delete", "swap"))
    if edit == "insert":
        return 1, letter + near
    if edit == "delete":
        return 1, ""
    if edit == "swap" and after.lower() in BESIDE and after != letter:
        return 2, after + letter
    return 1, near
