"""What a task asks: an item to choose from, or a question to be answered freely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Item:
    """A context, what may follow it, and the index of what does; ``gap`` is between them."""

    context: str
    choices: tuple[str, ...]
    label: int
    gap: str = " "


@dataclass(frozen=True)
class Labelled:
    """A text and its label, before all labels are known."""

    context: str
    label: str


@dataclass(frozen=True)
class Question:
    """A context, and the answers that are right after it."""

    context: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Utterance:
    """An audio file, and what is said in it."""

    audio: Path
    text: str


@dataclass(frozen=True)
class Task:
    """Items of one file, all of one kind, called by its folder and name; ``total`` is how many it has."""

    name: str
    items: Sequence[Item | Question | Utterance]
    total: int

    @property
    def chance(self) -> float | None:
        """Share that blind guessing gets right; None where an answer is free."""
        shares = [1 / len(i.choices) for i in self.items if isinstance(i, Item)]
        return sum(shares) / len(shares) if shares else None
