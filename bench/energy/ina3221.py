"""INA3221: the power monitor on Jetson modules, read through hwmon by the labels of its rails.

A rail's power is its bus voltage (mV) times its current (mA); energy is their integral over time by the
trapezoid rule, from samples taken here. Where there is VDD_IN, it holds the others and is taken alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from greenllm.bench.energy.meter import Ticker, number
from greenllm.errors import GreenError

DRIVER = Path("/sys/bus/i2c/drivers/ina3221")
_WHOLE = "VDD_IN"
_INSIDE = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0", "VDD2_1V8AO": "VIN_SYS_5V0"}  # rail: the one that feeds it
_EVERY = 0.1  # seconds


@dataclass(frozen=True)
class Rail:
    """One channel: its label and its files (mV, mA)."""

    label: str
    millivolts: Path
    milliamperes: Path

    def watts(self) -> float:
        """Power now."""
        return number(self.millivolts, "INA3221") * number(self.milliamperes, "INA3221") / 1e6


def rails(root: Path = DRIVER) -> list[Rail]:
    """All rails that have a label.

    Raises:
        GreenError: there are none, or they cannot be read.
    """
    found = []
    for file in sorted(root.glob("*/hwmon/hwmon*/in*_label")):
        channel = file.name.removeprefix("in").removesuffix("_label")
        label = file.read_text(encoding="ascii", errors="replace").strip()
        rail = Rail(label, file.with_name(f"in{channel}_input"), file.with_name(f"curr{channel}_input"))
        if label not in ("", "NC") and rail.milliamperes.is_file() and rail.millivolts.is_file():
            found.append(rail)
    if not found:
        raise GreenError(f"INA3221: no labelled rail under {root}; this is no Jetson, or its driver is not loaded.")
    for rail in found:
        rail.watts()
    return found


def counted(found: list[Rail]) -> list[Rail]:
    """The rails whose sum counts nothing twice."""
    whole = [r for r in found if r.label == _WHOLE]
    labels = {r.label for r in found}
    return whole or [r for r in found if _INSIDE.get(r.label) not in labels]


def look() -> str:
    """What is there, in words; see :func:`rails` for what it raises."""
    return f"{', '.join(r.label for r in rails())}, measured"


class Ina3221:
    """See :class:`greenllm.bench.energy.Meter`.

    Args:
        root: the driver's folder.
        every: seconds between samples, more where the chip itself is slower.
        clock: seconds.

    Raises:
        GreenError: see :func:`rails`.
    """

    method = "measured:ina3221"

    def __init__(
        self, root: Path = DRIVER, every: float = _EVERY, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        found = rails(root)
        self._rails, self._clock, self._lock = counted(found), clock, threading.Lock()
        self.period = self.lag = max(every, *(_interval(r) for r in self._rails))
        self.resolution = (
            f"steps of 8 mV and 8 mA at a shunt of 5 mΩ (40 mW at 5 V), sampled every {self.period:g} s: what is "
            "shorter than that is seen by chance"
        )
        self.covers = "rails " + " + ".join(r.label for r in self._rails)
        whole = self._rails[0].label == _WHOLE
        inside = ", ".join(r.label for r in found if r not in self._rails)
        self.leaves_out = "the carrier board and the power supply" if whole else (
            "what hangs on no rail of the module, the carrier board, the power supply"
        )  # fmt: skip
        self.leaves_out += f" ({inside}: inside what is counted)" if inside else ""
        self._total, self._at, self._watts = 0.0, clock(), self._power()
        self._ticker = Ticker(self.joules, self.period)

    def _power(self) -> float:
        return sum(r.watts() for r in self._rails)

    def joules(self) -> float:
        """See :class:`greenllm.bench.energy.Meter`."""
        with self._lock:
            watts, now = self._power(), self._clock()
            self._total += (watts + self._watts) / 2 * (now - self._at)
            self._at, self._watts = now, watts
            return self._total

    def close(self) -> None:
        """See :class:`greenllm.bench.energy.Meter`."""
        self._ticker.close()


def _interval(rail: Rail) -> float:
    """Seconds in which the chip goes over its channels, where it says so."""
    file = rail.millivolts.with_name("update_interval")
    return number(file, "INA3221") / 1000 if file.is_file() else 0.0
