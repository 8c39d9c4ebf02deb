"""RAPL through Linux powercap: the processor's own counters of its package and of its memory.

Intel SDM volume 3B, "Platform Specific Power Management Support"; AMD has the package alone. A zone's
subzones (core, uncore) are inside the package and are not added to it; "dram" is beside it; "psys" holds
the package and is left out, as is the copy of the package under intel-rapl-mmio.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from greenllm.bench.energy.meter import Ticker, Unwrapped, number
from greenllm.errors import GreenError

POWERCAP = Path("/sys/class/powercap")
_EVERY = 30.0  # seconds; 262 kJ, where the usual counter begins again, take minutes at a kilowatt


@dataclass(frozen=True)
class Zone:
    """One counter: its name, its file (µJ), and where it begins again (µJ)."""

    name: str
    file: Path
    span: int


def zones(root: Path = POWERCAP) -> list[Zone]:
    """The zones that are counted: each package, and each memory beside one.

    Raises:
        GreenError: there are none, or they cannot be read by this user.
    """
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        file = folder / "name"
        name = file.read_text(encoding="ascii", errors="replace").strip() if file.is_file() else ""
        if name.startswith("package") or name == "dram":
            found.append((name, folder))
    if not found:
        raise GreenError(
            f"RAPL: no package zone under {root}. Virtual machines rarely have one, and Arm processors never.",
            "On a PC, try: sudo modprobe intel_rapl_common intel_rapl_msr.",
        )
    for _, folder in found:
        try:
            (folder / "energy_uj").read_bytes()
        except PermissionError as e:
            raise GreenError(
                f"RAPL: {folder / 'energy_uj'} may be read by root alone.",
                f"Until the next boot: sudo chmod a+r {root}/intel-rapl:*/energy_uj",
            ) from e
        except OSError as e:
            raise GreenError(f"RAPL: {folder / 'energy_uj'} cannot be read ({e}).") from e
    return [Zone(name, folder / "energy_uj", number(folder / "max_energy_range_uj", "RAPL") + 1)
            for name, folder in found]  # fmt: skip


def look() -> str:
    """What is there, in words; see :func:`zones` for what it raises."""
    return ", ".join(z.name for z in zones()) + ", measured"


class Rapl:
    """See :class:`greenllm.bench.energy.Meter`.

    Args:
        root: the powercap folder.
        every: seconds between readings that nobody asked for, so that no counter goes round unseen.

    Raises:
        GreenError: see :func:`zones`.
    """

    method = "measured:rapl"
    resolution = "1 µJ in steps of about 15 to 61 µJ, new every 1 ms"
    period = lag = 1e-3

    def __init__(self, root: Path = POWERCAP, every: float = _EVERY) -> None:
        self._zones = zones(root)
        self._lock = threading.Lock()
        self._counters = [Unwrapped(number(z.file, "RAPL"), z.span) for z in self._zones]
        names = [z.name for z in self._zones]
        self.covers = "processor " + " + ".join(names)
        beyond = "disks, network, fans, screen, a GPU on a card, and the loss of the power supply"
        self.leaves_out = beyond if "dram" in names else f"memory (no dram zone here), {beyond}"
        self._ticker = Ticker(self.joules, every)

    def joules(self) -> float:
        """See :class:`greenllm.bench.energy.Meter`."""
        with self._lock:
            pairs = zip(self._zones, self._counters, strict=True)
            return sum(c.read(number(z.file, "RAPL")) for z, c in pairs) / 1e6

    def close(self) -> None:
        """See :class:`greenllm.bench.energy.Meter`."""
        self._ticker.close()
