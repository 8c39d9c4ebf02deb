"""Which meter: the best one that is here, or the one that is named."""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from typing import NamedTuple

from greenllm.bench.energy.meter import Meter
from greenllm.errors import GreenError

# Best first: what counts most of the machine by an instrument; the estimate is last. By default a GPU's counter is
# added to the processor's and never stands for it: it leaves out where most models here run.
METERS = {"ina3221": "Ina3221", "rapl": "Rapl", "nvml": "Nvml", "codecarbon": "Codecarbon"}


class Found(NamedTuple):
    """A meter: its name, whether it can be used here, what is there or why not, and what to do about that."""

    name: str
    usable: bool
    detail: str
    fix: str = ""


def meters() -> list[Found]:
    """All meters that are known, the best first; none is started."""
    found = []
    for name in METERS:
        try:
            found.append(Found(name, True, importlib.import_module(f"{__package__}.{name}").look()))
        except GreenError as e:
            found.append(Found(name, False, e.what, e.fix))
    return found


def choose(name: str | None = None) -> Meter:
    """Start a meter.

    Args:
        name: one of :data:`METERS`, or several with "+" between them, whose energies are added; None for the best
            that is here: INA3221, else RAPL (with NVML where there is a GPU), else codecarbon's estimate.

    Raises:
        GreenError: no such meter, or it cannot be used here; a named one is never replaced by another.
    """
    names = name.split("+") if name is not None else _best()
    unknown = [n for n in names if n not in METERS]
    if unknown or len(set(names)) != len(names):
        raise GreenError(f"No meter is called {name!r}.", f"There are {', '.join(METERS)}, and sums such as rapl+nvml.")
    if len(names) > 1 and "codecarbon" in names:
        raise GreenError(f"{name}: codecarbon's estimate covers what the others measure; it is not added to them.")
    parts: list[Meter] = []
    with ExitStack() as stack:  # if one cannot start, those before it are closed
        for n in names:
            part = getattr(importlib.import_module(f"{__package__}.{n}"), METERS[n])()
            stack.callback(part.close)
            parts.append(part)
        stack.pop_all()
    return parts[0] if len(parts) == 1 else Sum(parts)


def _best() -> list[str]:
    usable = [m.name for m in meters() if m.usable]
    if "ina3221" in usable:
        return ["ina3221"]
    return [n for n in ("rapl", "nvml") if n in usable] if "rapl" in usable else ["codecarbon"]


class Sum:
    """Several meters of different parts as one; see :class:`greenllm.bench.energy.Meter`."""

    def __init__(self, parts: list[Meter]) -> None:
        self._parts = parts
        self.method = "measured:" + "+".join(p.method.partition(":")[2] for p in parts)
        self.covers, self.leaves_out, self.resolution = (
            "; ".join(getattr(p, key) for p in parts) for key in ("covers", "leaves_out", "resolution")
        )
        self.leaves_out = "what none of them covers: " + self.leaves_out
        self.period, self.lag = max(p.period for p in parts), max(p.lag for p in parts)

    def joules(self) -> float:
        """See :class:`greenllm.bench.energy.Meter`."""
        return sum(p.joules() for p in self._parts)

    def close(self) -> None:
        """See :class:`greenllm.bench.energy.Meter`."""
        for part in self._parts:
            part.close()
