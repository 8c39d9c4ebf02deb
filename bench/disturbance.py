"""What a machine does to a round of timings besides running it: sleep, throttling by heat."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

_ASLEEP = 0.1  # seconds; the two clocks are read one after the other
_COUNTERS = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"  # Intel's and AMD's, where there are


@dataclass(frozen=True)
class State:
    """Seconds that the machine has slept since it was started, and how often heat has throttled its processor."""

    slept: float
    throttled: int


def now(root: Path = Path("/")) -> State:
    """The state of this machine; what a system does not count stays 0."""
    slept = 0.0
    if hasattr(time, "CLOCK_BOOTTIME"):  # Linux: it goes on in sleep, the monotonic clock does not
        slept = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return State(slept, sum(_number(f) for f in root.glob(_COUNTERS)))


def between(before: State, after: State) -> str:
    """What disturbed the time between, in words; "" for nothing."""
    if (slept := after.slept - before.slept) > _ASLEEP:
        return f"the machine slept {slept:.1f} s"
    return "heat throttled the processor" if after.throttled > before.throttled else ""


@dataclass
class Rounds:
    """Which rounds count: those that nothing disturbed; ``dropped`` says what disturbed the others."""

    dropped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin now."""
        self._last = now()

    def undisturbed(self) -> bool:
        """Whether nothing happened since the last call (or since this was made)."""
        before, self._last = self._last, now()
        if what := between(before, self._last):
            self.dropped.append(what)
        return not what

    @property
    def words(self) -> str:
        """What was dropped and why; "" for nothing."""
        if not self.dropped:
            return ""
        why = ", ".join(dict.fromkeys(self.dropped))
        return f"{len(self.dropped)} round{'s were' if len(self.dropped) > 1 else ' was'} dropped: {why}"


def _number(file: Path) -> int:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
