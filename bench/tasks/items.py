"""What a task asks: an item to choose from, a question to be answered freely, an image to be classified, or a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias


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
class Picture:
    """An image file and its class, a name or an index; ``where`` is its file and line."""

    key: ClassVar[str] = "image"
    file: Path
    label: str | int
    where: str


@dataclass(frozen=True)
class Utterance:
    """An audio file, and what is said in it; ``where`` is its file and line."""

    key: ClassVar[str] = "audio"
    file: Path
    text: str
    where: str


Entry: TypeAlias = "Item | Question | Picture | Utterance"


@dataclass(frozen=True)
class Task:
    """Items of one file, all of one kind, called by its folder and name; ``total`` is how many it has."""

    name: str
    items: Sequence[Entry]
    total: int

    @property
    def chance(self) -> float | None:
        """Share that blind guessing gets right; None where that is not known here."""
        shares = [1 / len(i.choices) for i in self.items if isinstance(i, Item)]
        return sum(shares) / len(shares) if shares else None
