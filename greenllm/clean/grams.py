"""Words of a text, to compare texts by: no case, no punctuation; a Chinese, Japanese or Korean character is a word."""

from __future__ import annotations

import re
import unicodedata

_CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")


def words(text: str) -> list[str]:
    """All of them, in order."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def grams(found: list[str], size: int) -> set[str]:
    """Every run of ``size`` words; of a shorter text the one that it is."""
    return {" ".join(found[i : i + size]) for i in range(max(1, len(found) - size + 1))}
