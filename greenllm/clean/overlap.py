"""Overlap with test items: a model that saw them is not measured by them.

A text overlaps where it shares a run of 13 words with an item, as GPT-3's contamination study counts (Brown et al.,
2020, arXiv:2005.14165, appendix C). An item of 8 to 12 words must be there as a whole; shorter ones are met by chance
and do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from greenllm.clean.files import strings
from greenllm.clean.grams import grams, words

_GRAM, _LEAST = 13, 8
_MOST = 20_000_000  # characters


class Overlap:
    """Knows the runs of all items.

    Args:
        files: of test items: ``.jsonl``, ``.csv``, ``.tsv`` (every column is an item) or ``.txt`` (every paragraph).

    Attributes:
        met: items that were found in a text, by file, and how many there are.

    Raises:
        GreenError: a file that is missing, unreadable, or has no item of 8 words.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._owners: dict[str, set[tuple[str, int]]] = {}
        self._sizes: set[int] = set()
        self.items: dict[str, int] = {}
        self._met: set[tuple[str, int]] = set()
        for file in files:
            number = 0
            for text in strings(file):
                found = words(text)
                if len(found) < _LEAST:
                    continue
                number += 1
                size = min(_GRAM, len(found))
                self._sizes.add(size)
                for gram in grams(found, size):
                    self._owners.setdefault(gram, set()).add((str(file), number))
            self.items[str(file)] = number

    def __call__(self, text: str) -> str | None:
        """See :data:`greenllm.clean.Check`."""
        found = words(text)
        met: set[tuple[str, int]] = set()
        for size in self._sizes:
            if len(found) >= size:
                for gram in grams(found, size):
                    met |= self._owners.get(gram, set())
        self._met |= met
        names = sorted({Path(file).name for file, _ in met})
        return f"with passages of test items ({', '.join(names)})" if met else None

    @property
    def met(self) -> dict[str, tuple[int, int]]:
        """By file: items of which a passage was in a text, and items of 8 words and more."""
        return {file: (sum(f == file for f, _ in self._met), n) for file, n in self.items.items()}


def overlaps(source: str, tests: Overlap) -> dict[str, tuple[int, int]]:
    """:attr:`Overlap.met` of the text of a source, its first 20 MB."""
    from greenllm import calibration

    size = 0
    for text in calibration.texts(source):
        tests(text)
        size += len(text)
        if size > _MOST:
            break
    return tests.met
