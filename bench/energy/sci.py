"""gCO2e of a query in the form of the Software Carbon Intensity, (E x I + M) / R.

Green Software Foundation, SCI 1.0; ISO/IEC 21031:2024.

E is the energy of the whole machine while a query runs, I the grid's factor, R one query. M is the machine's
embodied carbon times the share of its life that a query takes (TE x TS x RS with a resource share of 1: nothing
else is metered apart, so that the whole machine is counted).
"""

from __future__ import annotations

from dataclasses import dataclass

from greenllm.bench.energy.grid import Grid
from greenllm.bench.measurement import Measurement
from greenllm.errors import GreenError

JOULES_PER_KWH = 3.6e6
_SECONDS_PER_YEAR = 365.25 * 86400


@dataclass(frozen=True)
class Embodied:
    """What making the machine emitted, and the years it serves."""

    kilograms: float
    years: float

    @property
    def milligrams_per_second(self) -> float:
        """Share of a second of its life."""
        return self.kilograms * 1e6 / (self.years * _SECONDS_PER_YEAR)


def embodied(kilograms: float | None, years: float | None) -> Embodied | None:
    """What was given, or None where nothing was.

    Args:
        kilograms: kgCO2e of making the machine.
        years: that it serves.

    Raises:
        GreenError: one without the other, or a number that cannot be.
    """
    if kilograms is None and years is None:
        return None
    if kilograms is None or years is None:
        missing = "lifetime (years)" if years is None else "embodied (kgCO2e)"
        raise GreenError(f"The embodied share of a query takes both its numbers; {missing} is missing.", "Give both.")
    if not 0 <= kilograms < 1e6 or not 0 < years <= 100:  # noqa: PLR2004 - beyond are typing errors
        raise GreenError(f"{kilograms:g} kgCO2e over {years:g} years is no machine's.")
    return Embodied(kilograms, years)


def carbon(
    gross: Measurement, net: Measurement, seconds: Measurement, grid: Grid, share: Embodied | None, tokens: int
) -> dict[str, Measurement]:
    """gCO2e of a query, by name of metric.

    Args:
        gross: joules of a query.
        net: the same less idle power.
        seconds: that it takes.
        grid: the factor.
        share: of the machine's making; without it M is not known, and there is no SCI.
        tokens: of a query, for the figure per 1000 of them; 0 for one that has none.
    """
    grams = grid.grams_per_kwh / JOULES_PER_KWH
    found = {
        "carbon_gross": gross.scaled(grams * 1000, "mgCO2e"),
        "carbon_net": net.scaled(grams * 1000, "mgCO2e"),
    }
    if tokens:
        found["carbon_1000"] = gross.scaled(grams * 1000 / tokens, "gCO2e")
    if share is not None:
        part = seconds.scaled(share.milligrams_per_second, "mgCO2e", "computed: embodied carbon, by time")
        found |= {"embodied": part, "sci": _sum(found["carbon_gross"], part)}
    return found


def _sum(operation: Measurement, part: Measurement) -> Measurement:
    """Both rest on the time of the same queries, so their half-widths add."""
    value, ci = operation.value + part.value, None
    if operation.ci95 and part.ci95:
        ci = (operation.ci95[0] + part.ci95[0], operation.ci95[1] + part.ci95[1])
    return operation.model_copy(update={"value": value, "ci95": ci, "note": "operation, gross, and embodied share"})
