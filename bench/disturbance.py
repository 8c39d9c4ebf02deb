"""What a machine does to a round of timings besides running it: sleep, throttling by heat, work for others."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

_ASLEEP = 0.1  # seconds; the two clocks are read one after the other
_BUSY = 0.05  # share of the processor's time that others may have
_COUNTERS = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"  # Intel's and AMD's, where there are


@dataclass(frozen=True)
class State:
    """What was counted since the machine was started.

    Attributes:
        slept: seconds of sleep.
        throttled: how often heat has throttled the processor.
        others: seconds of its cores that were not the bench's: other processes, and other guests of a shared host.
        at: seconds on the clock.
    """

    slept: float
    throttled: int
    others: float = 0.0
    at: float = 0.0


def now(root: Path = Path("/")) -> State:
    """The state of this machine; what a system does not count stays 0."""
    slept = 0.0
    if hasattr(time, "CLOCK_BOOTTIME"):  # Linux: it goes on in sleep, the monotonic clock does not
        slept = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return State(slept, sum(_number(f) for f in root.glob(_COUNTERS)), _others(), time.monotonic())


def between(before: State, after: State) -> str:
    """What disturbed the time between, in words; "" for nothing."""
    if (slept := after.slept - before.slept) > _ASLEEP:
        return f"the machine slept {slept:.1f} s"
    if after.throttled > before.throttled:
        return "heat throttled the processor"
    there = (after.at - before.at) * (os.cpu_count() or 1)
    return "others used the processor" if after.others - before.others > _BUSY * there else ""


@dataclass
class Watch:
    """Looks at one round after another; ``seen`` says what disturbed any."""

    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin now."""
        self.begin()

    def begin(self) -> None:
        """What happened until now is of no interest."""
        self._last = now()

    def disturbed(self) -> bool:
        """Whether anything happened since the last call (or the beginning)."""
        before, self._last = self._last, now()
        if what := between(before, self._last):
            self.seen.append(what)
        return bool(what)

    def words(self, *, counted: bool = False) -> str:
        """What was disturbed and why; ``counted``: there was hardly anything else, so that it is in the figures."""
        if not self.seen:
            return ""
        why = ", ".join(dict.fromkeys(self.seen))
        what = "disturbed, and counted, as there was hardly any other" if counted else "dropped"
        return f"{len(self.seen)} round{' was' if len(self.seen) == 1 else 's were'} {what}: {why}"


def _others() -> float:
    import psutil

    t = psutil.cpu_times()
    names = ("user", "nice", "system", "irq", "softirq", "steal")  # guests are in user
    busy = sum(getattr(t, n, 0.0) for n in names)
    me = psutil.Process()
    ours = 0.0
    for process in (me, *me.children(recursive=True)):
        try:
            own = process.cpu_times()
        except psutil.Error:  # it has just ended
            continue
        ours += own.user + own.system
    return float(busy - ours)


def _number(file: Path) -> int:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
