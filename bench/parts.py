"""What each part of a model of several is and takes: its weights, its time of a query, and energy by that."""

from __future__ import annotations

import math
from collections.abc import Sequence

from greenllm.bench.latency import Query, Rounds
from greenllm.bench.measurement import Measurement, counted, repeat_interval
from greenllm.bench.results import Results

REST = "rest"
_METHOD = (
    "The seconds in which each part computes are counted inside every query of the speed rounds: its graph's runs, its "
    "modules' calls in torch; and their share of that query. Means over sittings, with the interval of a repeat. What "
    "is in no part, such as choosing tokens, is the rest; a part that no query needs has no time. Size: bytes of the "
    "weights in its files, and their share of all parts'. Where a decoder has cross attention, its keys and values "
    "belong, size and time, to the encoder's graph, and in torch to the decoder."
)
_BY_TIME = (
    " No meter tells parts apart: a part's energy is its share of the time of the query's gross energy, as if every "
    "part drew the same power; its interval holds both errors, not that of the assumption."
)
_TIMED = "measured:clock"
Figures = dict[str, dict[str, Measurement]]  # of each part by name: "size", "size_share", "time", …


def sizes(weights: dict[str, int]) -> Figures:
    """Megabytes of each part, and percent of all of them."""
    total = sum(weights.values())
    return {
        part: {"size": counted(n / 1e6, "MB", "its weights"), "size_share": counted(100 * n / total, "%")}
        for part, n in weights.items()
    }


def times(rounds: Rounds) -> Figures:
    """Milliseconds of a query and percent of it that each part takes, and the rest; nothing where there is one part."""
    queries = [q for each in rounds.rounds for q in each]
    names = [part for part in (queries[0].parts if queries else ()) if any(q.parts[part] for q in queries)]
    return {part: _taken(rounds, part) for part in [*names, REST]} if names else {}


def _taken(rounds: Rounds, part: str) -> dict[str, Measurement]:
    def seconds(query: Query) -> float:
        return query.seconds - sum(query.parts.values()) if part == REST else query.parts[part]

    return {
        "time": _mean(rounds.by_sitting(lambda q: 1000 * seconds(q)), "ms"),
        "time_share": _mean(rounds.by_sitting(lambda q: 100 * seconds(q) / q.seconds), "%", 100.0),
    }


def energies(parts: Figures, gross: Measurement) -> Figures:
    """Joules of a query by each part's share of its time.

    Args:
        parts: with their shares of time; those that have none get no energy.
        gross: joules of a whole query.
    """
    found: Figures = {}
    kind = "estimated" if gross.estimated else "computed"
    for part, figures in parts.items():
        if share := figures.get("time_share"):
            method = f"{kind}: by its time, of {gross.method}"
            joules = _product(gross, share.scaled(0.01, "")).model_copy(update={"method": method})
            found[part] = {"energy": joules, "energy_share": share.model_copy(update={"method": method})}
    return found


def add(to: Figures, more: Figures) -> None:
    """Each part's further figures beside those that are there."""
    for part, figures in more.items():
        to.setdefault(part, {}).update(figures)


def methods(results: Results) -> dict[str, str]:
    """How the figures of parts were had, where there are any."""
    if not any(row.parts for row in results.rows):
        return {}
    return {"Parts": _METHOD + (_BY_TIME if "meter" in results.settings else "")}


def _mean(samples: Sequence[float], unit: str, most: float = math.inf) -> Measurement:
    """The interval ends where the figure cannot lie."""
    ci = repeat_interval(samples)
    inside = None if ci is None else (max(ci[0], 0.0), min(ci[1], most))
    return Measurement(value=sum(samples) / len(samples), unit=unit, n=len(samples), ci95=inside, method=_TIMED)


def _product(a: Measurement, b: Measurement) -> Measurement:
    """Of two independent figures; the distances of their ends, each times the other figure, add up as squares."""
    value, ci = a.value * b.value, None
    if a.ci95 and b.ci95:
        low, high = (
            math.hypot(b.value * (a.value - x), a.value * (b.value - y)) for x, y in zip(a.ci95, b.ci95, strict=True)
        )
        ci = (value - low, value + high)
    return a.model_copy(update={"value": value, "ci95": ci, "n": min(a.n, b.n)})
