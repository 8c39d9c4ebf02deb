"""What is dropped, and the filter that drops it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from greenllm.clean.duplicates import Duplicates
from greenllm.clean.language import Language
from greenllm.clean.overlap import Overlap
from greenllm.clean.personal import personal
from greenllm.clean.words import Words

T = TypeVar("T")
Check = Callable[[str], "str | None"]


@dataclass(frozen=True)
class Rules:
    """What is dropped.

    Attributes:
        duplicates: texts that were there before, exactly or nearly.
        personal: texts with patterns of personal data.
        language: ISO 639-1 code; texts in other languages. None: all stay.
        words: file of words, one a line; texts with any of them.
        against: files of test items; texts that share passages with them.
    """

    duplicates: bool = True
    personal: bool = True
    language: str | None = None
    words: Path | None = None
    against: Sequence[Path] = ()

    def checks(self) -> list[Check]:
        """The cheapest first.

        Raises:
            GreenError: an unknown language, or a file that is missing, empty or unreadable.
        """
        found: list[Check] = []
        if self.words:
            found.append(Words(self.words))
        if self.personal:
            found.append(personal)
        if self.against:
            found.append(Overlap(self.against))
        if self.language:
            found.append(Language(self.language))
        if self.duplicates:
            found.append(Duplicates())
        return found


@dataclass
class Filter:
    """Lets texts through that no rule drops, and remembers why others were.

    Attributes:
        rules: what is dropped.
        seen: texts so far.
        dropped: reasons with their counts.
        log: number of each dropped text, from 1, and its reason; never the text, which may be personal.
    """

    rules: Rules = field(default_factory=Rules)
    seen: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    log: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read what the rules name."""
        self._checks = self.rules.checks()

    def keeps(self, text: str) -> bool:
        """Whether the next text stays."""
        self.seen += 1
        reason = next(filter(None, (check(text) for check in self._checks)), None)
        if reason is None:
            return True
        self.dropped[reason.partition(" (")[0]] += 1
        self.log.append((self.seen, reason))
        return False

    def over(self, items: Iterable[T], text: Callable[[T], str]) -> Iterator[T]:
        """The items that stay."""
        return (item for item in items if self.keeps(text(item)))

    @property
    def met(self) -> dict[str, tuple[int, int]]:
        """By file of test items: those of which a passage was in a text, and all that are long enough to tell."""
        return {k: v for check in self._checks if isinstance(check, Overlap) for k, v in check.met.items()}

    @property
    def words(self) -> str:
        """What was dropped, in one line; empty when nothing was."""
        if not self.dropped:
            return ""
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.dropped.most_common())
        return f"{sum(self.dropped.values())} of {self.seen} texts dropped: {reasons}"
