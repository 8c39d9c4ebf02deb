"""The text that is scored, and how a tokenizer cuts it.

The built-in text is the help of the Python language (``pydoc_data.topics``): it is on any machine that
runs Python, 0.4 MB of English and code. Figures on it compare models with each other, not with papers.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from greenllm.errors import GreenError
from greenllm.tokens import Tokenizer

T = TypeVar("T")

_LARGEST = 64 << 20
_SENTENCE = re.compile(r"[A-Z][^.!?\n]*(?:\n[^.!?\n]+)*[.!?](?=\s)")


@dataclass(frozen=True)
class Text:
    """A text and what to call it in a report."""

    name: str
    text: str


def read(path: Path | str | None) -> Text:
    """The built-in text, a ``.txt`` file, or the ``text`` of each line of a ``.jsonl`` file.

    Raises:
        GreenError: no such file, not UTF-8, a line that is no JSON object with "text", too large, or empty.
    """
    if path is None:
        from pydoc_data import topics

        joined = "\n\n".join(topics.topics[k] for k in sorted(topics.topics))
        return Text(f"pydoc_data.topics of Python {sys.version_info.major}.{sys.version_info.minor}", joined)
    path = Path(path).expanduser()
    if not path.is_file():
        raise GreenError(f"{path}: no such text file.", "Give a .txt or .jsonl file, or none for the built-in text.")
    if path.stat().st_size > _LARGEST:
        raise GreenError(f"{path} is larger than {_LARGEST >> 20} MB; a bench reads a small part of that.", "Cut it.")
    try:
        raw = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise GreenError(f"{path} is not UTF-8 text (byte {e.start}).") from e
    text = "\n\n".join(_lines(path, raw)) if path.suffix == ".jsonl" else raw
    if not text.strip():
        raise GreenError(f"{path} holds no text.")
    return Text(path.name, text)


def _lines(path: Path, raw: str) -> list[str]:
    found = []
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(str(json.loads(line)["text"]))
        except (ValueError, KeyError, TypeError) as e:
            raise GreenError(f'{path}, line {number}: not a JSON object with a "text".') from e
    return found


@dataclass(frozen=True)
class Windows:
    """Equally long windows of tokens, evenly spread over a text.

    Attributes:
        tokens: what is fed, each ``[*prefix, *window]``.
        start: index of the first token that is scored.
        text_bytes: UTF-8 bytes of the scored tokens, by window.
        total: tokens of the whole text.
    """

    tokens: list[list[int]]
    start: int
    text_bytes: list[int]
    total: int


class Tokens(Tokenizer):
    """A tokenizer that cuts texts for a bench."""

    @property
    def first(self) -> int:
        """What comes before a text that has no context: the token that begins texts, or else that ends them."""
        begins, ends = self.special("bos"), self.special("eos")
        return next((t for t in (begins, ends) if t is not None), min(self.ends, default=0))

    def windows(self, text: str, length: int, count: int) -> Windows:
        """``count`` windows of ``length`` tokens, or as many as the text holds.

        Raises:
            GreenError: the text is shorter than one window.
        """
        encoding = self.inner.encode(text, add_special_tokens=False)
        ids, offsets = encoding.ids, encoding.offsets
        there = len(ids) // length
        if there == 0:
            raise GreenError(f"The text has {len(ids)} tokens, a window {length}.", "Give a longer text.")
        begins = [i * length for i in spread(range(there), count)]
        prefix = self.prefix()
        first = 0 if prefix else 1  # with nothing before it, a window's first token cannot be predicted
        return Windows(
            [[*prefix, *ids[b : b + length]] for b in begins],
            max(len(prefix), 1),
            [len(text[offsets[b + first][0] : offsets[b + length - 1][1]].encode()) for b in begins],
            len(ids),
        )

    def prompt(self, text: str, length: int) -> list[int]:
        """The first ``length`` tokens of a text, after the tokenizer's own.

        Raises:
            GreenError: the text is shorter.
        """
        ids = self.inner.encode(text[: 50 * length], add_special_tokens=False).ids
        if len(ids) < length:
            raise GreenError(f"The text has {len(ids)} tokens, the prompt {length}.", "Give a longer text.")
        return [*self.prefix(), *ids[:length]]


def spread(items: Sequence[T], count: int) -> list[T]:
    """``count`` of the items (all, where there are fewer), evenly spread."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def sentences(text: str, count: int) -> list[str]:
    """``count`` different sentences of 30 to 300 characters, evenly spread over a text.

    Raises:
        GreenError: fewer than ten can be found.
    """
    flat = (" ".join(m.group().split()) for m in _SENTENCE.finditer(text))
    found = list(dict.fromkeys(s for s in flat if 30 <= len(s) <= 300))  # noqa: PLR2004 - see the docstring
    if len(found) < 10:  # noqa: PLR2004 - a nearest neighbour among fewer is luck
        raise GreenError(f"The text has {len(found)} sentences of ordinary length; 10 are the least.", "Give another.")
    return spread(found, count)
