"""Letters that look the same and are others: Latin by Cyrillic or Greek ones.

The idea is VIPER's (Eger et al., 2019, arXiv:1903.11508) and of "Bad Characters" (Boucher et al., 2022,
arXiv:2106.09898); which letters are confusable is in Unicode's UTS 39. The table is our own, of what fonts draw alike.
"""

from __future__ import annotations

from random import Random

_CYRILLIC = dict(zip("aceijopsxyABCEHIJKMOPSTX", "асеіјорѕхуАВСЕНІЈКМОРЅТХ", strict=True))
_GREEK = dict(zip("ouvABEHIKMNOPTXYZ", "ουνΑΒΕΗΙΚΜΝΟΡΤΧΥΖ", strict=True))
ALIKE = {c: _CYRILLIC.get(c, "") + _GREEK.get(c, "") for c in sorted({*_CYRILLIC, *_GREEK})}


def places(text: str) -> list[int]:
    """Letters that have a double."""
    return [i for i, c in enumerate(text) if c in ALIKE]


def change(text: str, i: int, draw: Random) -> tuple[int, str]:
    """One of its doubles."""
    return 1, draw.choice(ALIKE[text[i]])
