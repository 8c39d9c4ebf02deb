"""A list of words that no text may have: the user's own, or a public one such as LDNOOBW's. None comes along."""

from __future__ import annotations

from pathlib import Path

from greenllm.clean.grams import words
from greenllm.errors import GreenError


class Words:
    """Drops texts with any of them, whole words, whatever their case.

    Args:
        file: UTF-8, one word or phrase a line; lines that begin with ``#`` do not count.

    Raises:
        GreenError: the file cannot be read, or has no word.
    """

    def __init__(self, file: Path) -> None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise GreenError(f"{file}: cannot be read as a list of words: {e}.", "See --words.") from e
        self._listed = {tuple(found) for line in lines if not line.startswith("#") and (found := words(line))}
        if not self._listed:
            raise GreenError(f"{file} has no word in it.", "One word or phrase a line; see --words.")
        self._sizes = {len(each) for each in self._listed}

    def __call__(self, text: str) -> str | None:
        """See :data:`greenllm.clean.Check`."""
        found = words(text)
        runs = (tuple(found[i : i + n]) for n in self._sizes for i in range(len(found) - n + 1))
        return "with listed words" if any(run in self._listed for run in runs) else None
