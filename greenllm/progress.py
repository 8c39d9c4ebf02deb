"""Progress as the rooms tell it; how it looks is decided at the edge (see ``cli``)."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What long work is told with. Every stage is started once and advanced to its total."""

    def stage(self, name: str, total: float) -> None:
        """A new stage begins; it is done when ``advance`` has summed up to ``total``."""

    def advance(self, amount: float = 1) -> None:
        """This much of the current stage is done."""

    def note(self, text: str) -> None:
        """A line for the reader that stays on the screen."""


class Silent:
    """Says nothing."""

    def stage(self, name: str, total: float) -> None:
        """See :class:`Progress`."""

    def advance(self, amount: float = 1) -> None:
        """See :class:`Progress`."""

    def note(self, text: str) -> None:
        """See :class:`Progress`."""


def clock(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
