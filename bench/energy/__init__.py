"""Energy: one meter a file; each is a counter of joules that only grows.

A window is the counter read before and after some work, with a reading each second in between. Its
interval covers the scatter of those readings and of the queries' times; the error of an estimate that
no instrument stands behind is not in it, and its method says "estimated".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from greenllm.artifact import Energy
from greenllm.bench.energy.grid import Grid, check_country, countries, grid
from greenllm.bench.measurement import Interval, Measurement, t_interval

__all__ = ["Grid", "Meter", "Window", "check_country", "countries", "grid", "per_query", "track", "watch"]

JOULES_PER_KWH = 3.6e6


class Meter(Protocol):
    """A counter of energy, running from when it was made until it is closed.

    Attributes:
        method: "measured:…" or "estimated:…".
        covers: which parts of the machine it counts, and what it assumes.
        shortest: seconds that a window must at least last to mean something.
    """

    method: str
    covers: str
    shortest: float

    def joules(self) -> float:
        """Energy since the meter was made."""

    def close(self) -> None:
        """Stop counting."""


@dataclass(frozen=True)
class Window:
    """Energy of some work: totals, and mean watts of each part of about a second."""

    seconds: float
    joules: float
    watts: list[float]

    @property
    def power(self) -> float:
        """Mean watts."""
        return self.joules / self.seconds

    def spread(self) -> Interval | None:
        """95 % interval of the mean power."""
        return t_interval(self.watts)


def watch(meter: Meter, done: Callable[[float], bool], clock: Callable[[], float] = time.perf_counter) -> Window:
    """Read the meter about each second until ``done(seconds to wait)``."""
    begin = last = clock()
    first = before = meter.joules()
    watts = []
    finished = False
    while not finished:
        finished = done(1.0)
        now, joules = clock(), meter.joules()
        if now - last > 0.5:  # noqa: PLR2004 - a short rest would weigh as much as a whole second
            watts.append((joules - before) / (now - last))
            last, before = now, joules
    return Window(clock() - begin, meter.joules() - first, watts)


def per_query(
    work: Window, idle: Window, seconds: list[float], others: list[float], method: str
) -> tuple[Measurement, Measurement]:
    """Joules per query, gross and net of idle power.

    Args:
        work: a window in which queries ran back to back.
        idle: a window in which nothing ran.
        seconds: how long each query of the window took.
        others: how long the same query took at other times; they tell the scatter, too.
        method: the meter's.
    """
    duration = work.seconds / len(seconds)
    slow = _scatter([*seconds, *others], len(seconds))
    noise, floor = _half(work.spread()), _half(idle.spread())

    def figure(power: float, half: float | None, note: str) -> Measurement:
        value, ci = power * duration, None
        if half is not None and slow is not None:
            reach = duration * (half**2 + (power * slow) ** 2) ** 0.5
            ci = (value - reach, value + reach)
        return Measurement(value=value, unit="J", n=len(seconds), ci95=ci, method=method, note=note)

    gross = figure(work.power, noise, "everything the meter covers, while a query ran")
    both = None if noise is None or floor is None else (noise**2 + floor**2) ** 0.5
    return gross, figure(work.power - idle.power, both, f"less {idle.power:.2f} W of the idle machine")


@dataclass(frozen=True)
class Tracked:
    """What :func:`track` counts."""

    energy: Energy


@contextmanager
def track(country: str | None = None, region: str | None = None, intensity: float | None = None) -> Iterator[Tracked]:
    """Count the energy of the block; what is yielded has it in ``energy``, which is filled in at the block's end.

    With neither a country nor an intensity (gCO2e/kWh) the energy is counted and carbon left out.

    Raises:
        GreenError: an unknown country, or no meter on this machine.
    """
    from greenllm.bench.energy.codecarbon import Codecarbon

    factor = grid(country, region, intensity) if country or intensity is not None else None
    meter = Codecarbon(every=5)
    energy = Energy(kwh=0.0, seconds=0.0, method=meter.method, country=factor.country if factor else None)
    begin = time.perf_counter()
    try:
        yield Tracked(energy)
    finally:
        energy.kwh = meter.joules() / JOULES_PER_KWH
        energy.seconds = time.perf_counter() - begin
        energy.gco2e = energy.kwh * factor.grams_per_kwh if factor else None
        meter.close()


def _half(ci: Interval | None) -> float | None:
    return None if ci is None else (ci[1] - ci[0]) / 2


def _scatter(all_seconds: list[float], n: int) -> float | None:
    """Relative half-width of the mean of ``n`` queries, the scatter known from all of them."""
    half = _half(t_interval(all_seconds))
    mean = sum(all_seconds) / len(all_seconds)
    return None if half is None else half / mean * (len(all_seconds) / n) ** 0.5
