"""Numbers as people read them: no more digits than the interval carries."""

from __future__ import annotations

import math
from typing import Any

from greenllm.bench.measurement import Interval

MARKS = {"better": "▲", "worse": "▼", "same": "=", "undecided": "≈", "unknown": ""}
EMPTY: dict[str, Any] = {  # the cell of a figure that there is not
    "value": "–", "unit": "", "interval": "", "estimated": False, "ratio": "", "ratio_interval": "", "mark": "",
    "word": "", "note": "",
}  # fmt: skip


def number(value: float, ci: Interval | None = None) -> str:
    """Three digits, or down to the first digit of the interval's half-width, whichever is more."""
    if value == 0:
        return "0"
    places = 2 - math.floor(math.log10(abs(value)))
    if ci and ci[1] > ci[0]:
        places = max(places, -math.floor(math.log10((ci[1] - ci[0]) / 2)))
    places = min(max(places, 0), 6 if abs(value) >= 1e-3 else 12)  # noqa: PLR2004 - below, six places show nothing
    return f"{value:,.{places}f}"


def interval(ci: Interval | None) -> str:
    """From, to; three digits each, or as many as it takes to tell the two apart."""
    if ci is None:
        return ""
    reach = max(abs(ci[0]), abs(ci[1]))
    if reach == 0:
        return "0 – 0"
    places = 2 - math.floor(math.log10(reach))
    if ci[1] > ci[0]:
        places = max(places, 1 - math.floor(math.log10(ci[1] - ci[0])))
    places = min(max(places, 0), 9)
    return f"{ci[0]:,.{places}f} – {ci[1]:,.{places}f}"


def times(ratio: float) -> str:
    """A ratio, such as ×0.166."""
    return f"×{number(ratio)}"


def change(ratio: float) -> str:
    """A ratio in short: +43 %, 13×, ÷6.0."""
    if 0.5 < ratio < 2:  # noqa: PLR2004 - beyond a factor of two, percents mislead
        percent = (ratio - 1) * 100
        return f"{percent:+.1f} %".replace("-", "−") if abs(percent) < 10 else f"{percent:+.0f} %".replace("-", "−")  # noqa: PLR2004 - two digits either way
    return f"{_short(ratio)}×" if ratio > 1 else f"÷{_short(1 / ratio)}"


def _short(x: float) -> str:
    return f"{x:.1f}" if x < 10 else f"{x:,.0f}"  # noqa: PLR2004 - two digits either way
