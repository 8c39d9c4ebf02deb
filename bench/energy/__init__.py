"""Energy: one meter a file; each is a counter of joules that only grows.

A window is the counter read before and after some work, with a reading each second in between. Its
interval covers the scatter of those readings and of the queries' times; the error of an estimate that
no instrument stands behind is not in it, and its method says "estimated".
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from greenllm.artifact import Energy, write_atomic
from greenllm.bench.energy.grid import Grid, check_country, countries, grid
from greenllm.bench.energy.meter import PERIODS, Meter, Ticker
from greenllm.bench.energy.sci import Embodied, carbon, embodied
from greenllm.bench.energy.selection import METERS, choose, meters
from greenllm.bench.measurement import Interval, Measurement, repeat_interval

__all__ = ["METERS", "Embodied", "Grid", "Idle", "Meter", "Window", "carbon", "check_country", "choose", "countries",
           "embodied", "grid", "meters", "per_query", "shortest", "track", "watch"]  # fmt: skip

JOULES_PER_KWH = 3.6e6
_LEDGER = 10.0  # seconds between two entries


@dataclass(frozen=True)
class Window:
    """Energy of some work: totals, mean watts of each part of about a second, and when its middle was."""

    seconds: float
    joules: float
    watts: list[float]
    middle: float = 0.0

    @property
    def power(self) -> float:
        """Mean watts."""
        return self.joules / self.seconds

    def spread(self) -> Interval | None:
        """95 % interval of the mean power of another such window."""
        return repeat_interval(self.watts)


@dataclass(frozen=True)
class Idle:
    """The machine at rest before all work and after it; what lay between is on the line through both."""

    before: Window
    after: Window

    @property
    def drift(self) -> float:
        """Watts that idle power rose by."""
        return self.after.power - self.before.power

    def power(self, at: float) -> float:
        """Watts at a moment between the two."""
        length = self.after.middle - self.before.middle
        share = (at - self.before.middle) / length if length > 0 else 0.5
        return self.before.power + min(max(share, 0.0), 1.0) * self.drift

    def half(self) -> float | None:
        """Half-width: the scatter of both, and half the drift, which need not have been even."""
        a, b = _half(self.before.spread()), _half(self.after.spread())
        return None if a is None or b is None else (max(a, b) ** 2 + (self.drift / 2) ** 2) ** 0.5


def shortest(meter: Meter) -> float:
    """Seconds that a window of this meter must at least last."""
    return PERIODS * meter.period


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
    end = clock()
    return Window(end - begin, meter.joules() - first, watts, (begin + end) / 2)


def per_query(
    work: Window, idle: Idle, seconds: list[float], sittings: list[float], meter: Meter
) -> tuple[Measurement, Measurement]:
    """Joules per query, gross and net of idle power: the window's watts times how long a query takes.

    Where watts are estimated, from the load alone, that is the mean over the window and the sittings. What an
    instrument counted belongs to the window's own queries; what other sittings differ by is then in the interval.

    Args:
        work: a window in which queries ran back to back.
        idle: windows in which nothing ran.
        seconds: how long each query of the window took.
        sittings: how long the same query took in each sitting, on average: what the machine does over minutes.
        meter: that counted; at both edges of the window it may have been old by its lag.
    """
    duration, slow = _duration(work.seconds / len(seconds), seconds, sittings, meter)
    noise, floor, rest = _half(work.spread()), idle.half(), idle.power(work.middle)
    if noise is not None:
        noise = (noise**2 + (work.power * meter.lag / work.seconds) ** 2) ** 0.5

    def figure(power: float, half: float | None, note: str) -> Measurement:
        value, ci = power * duration, None
        if half is not None and slow is not None:
            reach = duration * (half**2 + (power * slow) ** 2) ** 0.5
            ci = (value - reach, value + reach)
        return Measurement(value=value, unit="J", n=len(seconds), ci95=ci, method=meter.method, note=note)

    gross = figure(work.power, noise, "everything the meter covers, while a query ran")
    both = None if noise is None or floor is None else (noise**2 + floor**2) ** 0.5
    return gross, figure(work.power - rest, both, f"less {rest:.2f} W of the idle machine")


def _duration(own: float, seconds: list[float], sittings: list[float], meter: Meter) -> tuple[float, float | None]:
    """Seconds of a query, and the relative half-width of that."""
    if sittings and meter.method.startswith("estimated"):
        times = [own, *sittings]
        mean = sum(times) / len(times)
        return mean, _relative(times)
    drift = _relative(sittings)
    if drift is None:
        return own, _relative(seconds)
    return own, drift * len(sittings) ** 0.5  # of one window, which is no shorter than a sitting


@dataclass(frozen=True)
class Tracked:
    """What :func:`track` counts."""

    energy: Energy


@contextmanager
def track(
    country: str | None = None, region: str | None = None, intensity: float | None = None, ledger: Path | None = None
) -> Iterator[Tracked]:
    """Count the energy of the block; what is yielded has it in ``energy``, which is filled in at the block's end.

    With neither a country nor an intensity (gCO2e/kWh) the energy is counted and carbon left out. In the file
    ``ledger`` the count is kept while it grows: a run that was killed goes on with what it had used until then.

    Raises:
        GreenError: an unknown country, or no meter on this machine.
    """
    factor = grid(country, region, intensity) if country or intensity is not None else None
    meter = choose()
    energy = Energy(kwh=0.0, seconds=0.0, method=meter.method, country=factor.country if factor else None)
    begin = time.perf_counter()
    earlier = json.loads(ledger.read_text(encoding="utf-8")) if ledger and ledger.exists() else [0.0, 0.0]

    def so_far() -> list[float]:
        found = [earlier[0] + meter.joules() / JOULES_PER_KWH, earlier[1] + time.perf_counter() - begin]
        if ledger:
            write_atomic(ledger, json.dumps(found))
        return found

    ticker = Ticker(so_far, _LEDGER) if ledger else None
    try:
        yield Tracked(energy)
    finally:
        if ticker:
            ticker.close()
        energy.kwh, energy.seconds = so_far()
        energy.gco2e = energy.kwh * factor.grams_per_kwh if factor else None
        meter.close()


def _half(ci: Interval | None) -> float | None:
    return None if ci is None else (ci[1] - ci[0]) / 2


def _relative(seconds: list[float]) -> float | None:
    """Half-width of the interval of another such mean, over the mean; None where there is no spread to know."""
    half = _half(repeat_interval(seconds))
    return None if half is None else half / (sum(seconds) / len(seconds))
