"""Which part of a model its seconds go to: what hears or sees, what writes. No torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENCODER, DECODER = "encoder", "decoder"
VISION, PROJECTOR, TEXT = "vision", "projector", "text"
SIGHT = f"{VISION} and {PROJECTOR}"  # where both are one graph


class Clock:
    """Seconds by part since they were last taken; of a model that is one part none are counted.

    Args:
        parts: their names.
    """

    def __init__(self, *parts: str) -> None:
        self._spent = dict.fromkeys(parts, 0.0)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """The block is this part's time. Parts do not lie inside each other: that time would count twice."""
        begin = time.perf_counter()
        yield
        self._spent[part] += time.perf_counter() - begin

    def watch(self, part: str, module: Any) -> None:
        """From now on each call of a module of torch is this part's time."""
        begun: list[float] = []

        def end(*_: object) -> None:
            self._spent[part] += time.perf_counter() - begun.pop()

        module.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter()))
        module.register_forward_hook(end)

    def take(self) -> dict[str, float]:
        """Seconds of each part, and begin anew."""
        found = self._spent
        self._spent = dict.fromkeys(found, 0.0)
        return found
