"""Full-width forms for half-width ones and back, as East Asian keyboards mix them, in texts of such scripts.

Unicode's Halfwidth and Fullwidth Forms (U+FF01 to U+FF64; UAX 11), between which NFKC makes no difference.
"""

from __future__ import annotations

import unicodedata
from random import Random

_SHIFT = 0xFEE0  # from "!" to its full-width form
_WIDE = {chr(c): chr(c + _SHIFT) for c in range(0x21, 0x7F)} | dict(zip("。「」、", "｡｢｣､", strict=True))
OTHER = _WIDE | {wide: narrow for narrow, wide in _WIDE.items()}


def places(text: str) -> list[int]:
    """Characters of which there is another width, where the text has any that is wide by nature."""
    if not any(unicodedata.east_asian_width(c) == "W" and c.isalpha() for c in text):
        return []
    return [i for i, c in enumerate(text) if c in OTHER]


def change(text: str, i: int, draw: Random) -> tuple[int, str]:
    """The other width."""
    del draw
    return 1, OTHER[text[i]]
