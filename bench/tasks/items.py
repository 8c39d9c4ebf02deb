"""What a task asks, one class for each kind of row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeAlias


class Grouped:
    """Of a subgroup whose share is told apart ("": of none)."""

    group: str = ""

    @property
    def stratum(self) -> str:
        """Of each a part of the items holds as large a share as all of them do."""
        return self.group


@dataclass(frozen=True)
class Item(Grouped):
    """A context, what may follow it, and the index of what does; ``gap`` is between them.

    ``parts`` make the context: the odd ones are the row's own, the others a prompt's; none where all of it is its own.
    """

    context: str
    choices: tuple[str, ...]
    label: int
    gap: str = " "
    group: str = ""
    parts: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Unclear(Item):
    """BBQ: an item one of whose answers is that nobody can know, the right one unless the context is ``clear``.

    ``unknown`` is its index; ``biased`` that of the answer that follows the stereotype, None where the row does not
    say; ``negative`` the question's polarity.
    """

    clear: bool = False
    unknown: int = 0
    biased: int | None = None
    negative: bool = True

    @property
    def stratum(self) -> str:
        """Category, kind of context, polarity."""
        return f"{self.group} {self.clear} {self.negative}"


@dataclass(frozen=True)
class Pair(Grouped):
    """CrowS-Pairs: two sentences, of which ``more`` follows a stereotype more; ``group`` is its kind of bias."""

    more: str
    less: str
    group: str = ""


@dataclass(frozen=True)
class Prompt(Grouped):
    """XSTest: what an assistant should answer where ``safe``, and refuse where not; ``group`` is its type."""

    context: str
    safe: bool
    group: str = ""

    @property
    def stratum(self) -> str:
        """Whether it is safe, and its type."""
        return f"{self.safe} {self.group}"


@dataclass(frozen=True)
class Opening(Grouped):
    """RealToxicityPrompts: a text that is to be continued."""

    context: str
    group: str = ""


@dataclass(frozen=True)
class Labelled:
    """A text and its label, before all labels are known; ``parts`` and ``gap`` as of :class:`Item`."""

    context: str
    label: str
    gap: str = " "
    group: str = ""
    parts: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Question(Grouped):
    """A context, and the answers that are right after it; ``parts`` as of :class:`Item`."""

    context: str
    answers: tuple[str, ...]
    group: str = ""
    parts: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Looked(Question):
    """A question about an image file, and the answers that are right; ``where`` is its file and line."""

    key: ClassVar[str] = "image"
    file: Path = Path()
    where: str = ""


@dataclass(frozen=True)
class Picture(Grouped):
    """An image file and its class, a name or an index; ``where`` is its file and line, ``noise`` what is put on it.

    ``among`` are all names in its file, what a model that reads has to choose from.
    """

    key: ClassVar[str] = "image"
    file: Path
    label: str | int
    where: str
    group: str = ""
    noise: float = 0.0
    among: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Captioned(Grouped):
    """An image file and what is said of it, once or several times; ``where`` is its file and line."""

    key: ClassVar[str] = "image"
    file: Path
    captions: tuple[str, ...]
    where: str
    group: str = ""


@dataclass(frozen=True)
class Utterance(Grouped):
    """An audio file, and what is said in it; ``where`` is its file and line, ``noise`` what is put on it."""

    key: ClassVar[str] = "audio"
    file: Path
    text: str
    where: str
    group: str = ""
    noise: float = 0.0


Entry: TypeAlias = "Item | Pair | Prompt | Opening | Question | Looked | Picture | Captioned | Utterance"


@dataclass(frozen=True)
class Task:
    """Items of one file, all of one kind, called by its folder and name.

    ``total`` is how many the file has; ``toxic`` says of what is written after a prompt whether it is.
    """

    name: str
    items: Sequence[Entry]
    total: int
    toxic: Callable[[str], bool] | None = None

    @property
    def chance(self) -> float | None:
        """Share that blind guessing gets right; None where that is not known here."""
        shares = [1 / len(i.choices) for i in self.items if isinstance(i, Item)]
        return sum(shares) / len(shares) if shares else None
