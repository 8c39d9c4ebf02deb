"""Payback: after how many queries the energy of making a model is saved by it, or that it never is."""

from __future__ import annotations

import math
from typing import Literal

from greenllm.artifact import Energy
from greenllm.bench.measurement import Interval, Measurement
from greenllm.bench.results import Payback, Provenance, Results

_KWH = 3.6e6  # joules


def fill(results: Results, grams_per_kwh: float | None) -> None:
    """Give each model that knows what making it took its payback, in energy and, with a grid, in carbon."""
    base = results.rows[0]
    for row in results.rows[1:]:
        made = _since(row.provenance, base.provenance)
        if made is None or "energy_gross" not in row or "energy_gross" not in base:
            continue
        before, after = base["energy_gross"], row["energy_gross"]
        row.payback["energy"] = payback(made.kwh, "kWh", before.scaled(1 / _KWH, "kWh"), after.scaled(1 / _KWH, "kWh"),
                                        made.method)  # fmt: skip
        if grams_per_kwh is not None:
            factor = grams_per_kwh / _KWH
            grams = made.kwh * grams_per_kwh if made.gco2e is None else made.gco2e
            before, after = before.scaled(factor, "g"), after.scaled(factor, "g")
            row.payback["carbon"] = payback(grams, "gCO2e", before, after, made.method)


def payback(made: float, unit: Literal["kWh", "gCO2e"], before: Measurement, after: Measurement, how: str) -> Payback:
    """Queries until ``made`` is saved.

    Args:
        made: what making the model took, in ``unit``.
        unit: of ``made`` and of both queries.
        before: a query of the baseline.
        after: a query of the model.
        how: how making the model was metered.
    """
    value, ci = saved(before, after)
    return Payback(
        made=made, unit=unit, queries=made / value if value > 0 else None,
        ci95=None if ci is None else (_queries(made, ci[1]), _queries(made, ci[0])),
        method=f"making: {how}; queries: {after.method}",
    )  # fmt: skip


def _since(model: Provenance, baseline: Provenance) -> Energy | None:
    """Energy of the steps that made the model; of those after the baseline, where it descends from it."""
    made, earlier = model.energy, baseline.energy
    steps = len(baseline.steps)
    if made is None or earlier is None or not steps or model.steps[:steps] != baseline.steps:
        return made
    grams = None if made.gco2e is None or earlier.gco2e is None else made.gco2e - earlier.gco2e
    return made.model_copy(update={"kwh": made.kwh - earlier.kwh, "gco2e": grams})


def saved(before: Measurement, after: Measurement) -> tuple[float, Interval | None]:
    """What one query saves, with its interval: two independent figures, their half-widths in quadrature."""
    value = before.value - after.value
    if before.ci95 is None or after.ci95 is None:
        return value, None
    half = math.hypot(*((m.ci95[1] - m.ci95[0]) / 2 for m in (before, after) if m.ci95))
    return value, (value - half, value + half)


def _queries(made: float, saving: float) -> float | None:
    return made / saving if saving > 0 else None
