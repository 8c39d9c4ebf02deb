"""What a meter is, and what several of them need."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from greenllm.errors import GreenError

PERIODS = 10  # of a meter, that a window must at least hold


class Meter(Protocol):
    """A counter of energy, running from when it was made until it is closed.

    Attributes:
        method: "measured:…" or "estimated:…".
        covers: which parts of the machine it counts, and what it assumes.
        leaves_out: which parts it does not.
        resolution: its least step and how often it changes, in words.
        period: seconds between two of its readings; a window holds :data:`PERIODS` of them.
        lag: seconds by which what it says may be old.
    """

    method: str
    covers: str
    leaves_out: str
    resolution: str
    period: float
    lag: float

    def joules(self) -> float:
        """Energy since the meter was made."""

    def close(self) -> None:
        """Stop counting."""


class Unwrapped:
    """A counter that begins again at ``span``, as one that only grows. It is read before it has gone round twice."""

    def __init__(self, first: int, span: int) -> None:
        self._last, self._span = first, span
        self.total = 0

    def read(self, raw: int) -> int:
        """Growth since the first reading, ``raw`` being the newest."""
        self.total += (raw - self._last) % self._span
        self._last = raw
        return self.total


class Ticker:
    """Calls something every ``period`` seconds from a thread of its own; an error ends it, and the reader meets it."""

    def __init__(self, call: Callable[[], object], period: float) -> None:
        self._call, self._period, self._end = call, period, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="greenllm-meter")
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(self._period):
            try:
                self._call()
            except (GreenError, OSError):
                return

    def close(self) -> None:
        """No further call."""
        self._end.set()
        self._thread.join()


def number(file: Path, what: str) -> int:
    """The whole number in a file of sysfs.

    Args:
        file: where it is.
        what: the meter, for the message.

    Raises:
        GreenError: it cannot be read, or holds something else.
    """
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError) as e:
        raise GreenError(f"{what}: {file} cannot be read ({e}).") from e
