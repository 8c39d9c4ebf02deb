"""Exact and near duplicates by MinHash (Broder, 1997, "On the resemblance and containment of documents", section 2).

Near duplicates are dropped as Lee et al. (2022, arXiv:2107.06499, section 4.2) do for language models: 5-grams of
words, an (estimated) Jaccard similarity of 0.8 or more with a text that was kept.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from greenllm.clean.grams import grams, words

if TYPE_CHECKING:
    from datasketch import MinHash

_GRAM, _SIMILAR, _HASHES = 5, 0.8, 128
_SHORT = 8  # words: of a shorter text (a heading, an answer) one more says nothing about copying


class Duplicates:
    """Remembers a sketch of every text that it let through: about 1 kB each."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self._exact: set[bytes] = set()
        self._near = MinHashLSH(threshold=_SIMILAR, num_perm=_HASHES)
        self._sketches: list[MinHash] = []

    def __call__(self, text: str) -> str | None:
        """See :data:`greenllm.clean.Check`."""
        from datasketch import MinHash

        found = words(text)
        if len(found) < _SHORT:
            return None
        key = hashlib.sha256(" ".join(found).encode()).digest()
        if key in self._exact:
            return "exact duplicates"
        sketch = MinHash(num_perm=_HASHES, seed=1)
        sketch.update_batch([g.encode() for g in sorted(grams(found, _GRAM))])
        if any(sketch.jaccard(self._sketches[i]) >= _SIMILAR for i in self._near.query(sketch)):
            return "near duplicates"
        self._exact.add(key)
        self._near.insert(len(self._sketches), sketch)
        self._sketches.append(sketch)
        return None
