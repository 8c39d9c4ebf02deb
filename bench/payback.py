"""Payback: after how many queries the energy of making a model is saved by it, or that it never is."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict

from greenllm.bench.measurement import Interval, Measurement
from greenllm.bench.results import Results, Row

_KWH = 3.6e6  # joules


class Payback(BaseModel):
    """Queries until making the model is paid back.

    Attributes:
        made: what making it took, in ``unit``.
        queries: None: never, as measured.
        ci95: 95 %, from the saving's interval; an end that is None: never.
        method: how both sides were had.
        note: what making leaves out, or where its figure is from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    made: float
    unit: Literal["kWh", "gCO2e"]
    queries: float | None
    ci95: tuple[float | None, float | None] | None
    method: str
    note: str = ""

    @property
    def words(self) -> str:
        """For people: a number of queries, "never", or that it is not decided."""
        if self.queries is None and (self.ci95 is None or self.ci95[0] is None):
            return "never"
        if self.queries is None or (self.ci95 is not None and self.ci95[1] is None):
            least = self.ci95[0] if self.ci95 else None
            return "undecided" if least is None else f"undecided: {least:,.0f} queries at the least, or never"
        return f"after {self.queries:,.0f} queries"


def fill(results: Results, grams_per_kwh: float | None) -> None:
    """Give each model that knows what making it took its payback, in energy and, with a grid, in carbon."""
    base = results.rows[0]
    for row in results.rows[1:]:
        made = row.provenance.energy_kwh
        if made is None or "energy_gross" not in row or "energy_gross" not in base:
            continue
        kwh = (base["energy_gross"], row["energy_gross"])
        row.payback["energy"] = _payback(made, "kWh", [m.scaled(1 / _KWH, "kWh") for m in kwh], row)
        if grams_per_kwh is not None:
            grams = [m.scaled(grams_per_kwh / _KWH, "gCO2e") for m in kwh]
            own = row.provenance.energy_g
            row.payback["carbon"] = _payback(made * grams_per_kwh if own is None else own, "gCO2e", grams, row)


def _payback(made: float, unit: Literal["kWh", "gCO2e"], queries: list[Measurement], row: Row) -> Payback:
    before, after = queries
    value, ci = saved(before, after)
    count = made / value if value > 0 else None
    ends = None
    if ci is not None:
        ends = tuple(made / s if s > 0 else None for s in (ci[1], ci[0]))
    making = row.provenance.energy_method or "unknown"
    method = f"{making} over {after.method}"
    return Payback(made=made, unit=unit, queries=count, ci95=ends, method=method, note=row.provenance.energy_note)


def saved(before: Measurement, after: Measurement) -> tuple[float, Interval | None]:
    """What one query saves, with its interval: two independent figures, their half-widths in quadrature."""
    value = before.value - after.value
    if before.ci95 is None or after.ci95 is None:
        return value, None
    half = math.hypot(*((m.ci95[1] - m.ci95[0]) / 2 for m in (before, after) if m.ci95))
    return value, (value - half, value + half)
