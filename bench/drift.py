"""How far a machine's figures move from one bench to the next, as its earlier benches show.

What holds a machine for minutes (other guests, heat, where memory lies) is the same in all sittings of a bench, so
these cannot tell of it; only other benches of the same work can. Each bench adds its figures to a file of this machine.
For each kind of figure the relative spread of repeats is pooled over all work that was repeated, and the interval of a
new figure is at least where another bench would lie by that: Student's t times the root of two times the spread (Hahn
& Meeker, "Statistical Intervals", 1991, section 4.7).

A machine that others share through a hypervisor moves more than a few repeats in one quiet hour show. There the spread
begins from what such a machine of ours was seen to do, as if that had been learned from a few repeats (scaled inverse
chi-squared prior: Gelman et al., "Bayesian Data Analysis", 3rd ed., 2013, section 2.6), and repeats correct it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from greenllm import artifact
from greenllm.bench.measurement import Interval, Measurement
from greenllm.bench.results import METRICS, Results, Row
from greenllm.progress import Progress

_OF = ("Speed", "Energy")  # groups of figures that a machine moves; quality and size stay
_LEAST = 4  # degrees of freedom, below which a spread is not yet known
_KEPT = 500  # benches
# Of a virtual machine, and how many repeats this counts for. bench/repeats.py found, on two cores of an EPYC, 8 to
# 13 % of speeds and energies, 2 to 4 % of ratios.
_VIRTUAL, _VIRTUAL_RATIO, _VIRTUAL_DF = 0.08, 0.04, 8
# settings that a figure depends on
_WORK = ("threads", "batch", "prompt_tokens", "answer_tokens", "query", "meter", "grid_g_per_kwh", "embodied_kg",
         "lifetime_years", "effort")  # fmt: skip
_RATIO, _PART = " ratio", " of a part"
_OF_PARTS = ("time", "time_share", "energy", "energy_share")

Figures = dict[str, dict[str, float]]  # value by kind of figure, and by what did what work


def widen(results: Results, file: Path, progress: Progress) -> None:
    """Widen intervals to what this machine's earlier benches show, and add these figures to them.

    Args:
        results: its figures are changed in place; the setting "earlier" says how many repeats were counted, "assumed"
            what spreads of speeds and of ratios they correct, of a virtual machine.
        file: one bench a line; lines that are damaged do not count.
        progress: told where the file cannot be written, which costs these figures nothing.
    """
    virtual = results.machine.virtual
    machine, mine = _hash(results.machine.model_dump(exclude={"load", "virtual"})), _figures(results)
    line = json.dumps({"machine": machine, "figures": mine})
    known = [*(_read(kept, machine) for kept in _kept(file, line, progress)), mine]
    spreads = {kind: _spread(f.get(kind, {}) for f in known) for kind in mine}
    used = max((df for kind, (_, df) in spreads.items() if df >= _LEAST or virtual), default=0)
    if virtual:
        spreads = {kind: _begun(kind, *found) for kind, found in spreads.items()}
    for row in results.rows:
        for figures, kind, _ in _groups(row):
            for name in figures:
                spread, df = spreads.get(name + kind, (0.0, 0))
                if df >= _LEAST and math.isfinite(spread) and _moves(name, kind):
                    figures[name] = _at_least(figures[name], spread, df)
    results.settings |= {"earlier": used} | ({"assumed": [_VIRTUAL, _VIRTUAL_RATIO]} if virtual else {})


def _kept(file: Path, mine: str, progress: Progress) -> list[str]:
    """The lines of the file, to which one is added."""
    lines = list[str]()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
            artifact.write_atomic(file, "\n".join([*lines, mine][-_KEPT:]) + "\n")
    except (OSError, NotImplementedError) as e:  # the latter: a file system without locks
        progress.note(f"{file} cannot be written ({e}): later benches will not know of this one.")
    return lines


def _read(line: str, machine: str) -> Figures:
    """The figures of a line; none if it is damaged, or another machine's that shares the file."""
    try:
        said = json.loads(line)
        found: Figures = said["figures"]
        good = said["machine"] == machine and all(math.isfinite(v) for of in found.values() for v in of.values())
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
        return {}
    return found if good else {}


def _figures(results: Results) -> Figures:
    """Every figure that has an interval and that a machine moves."""
    found: Figures = {}
    base = _work(results, results.rows[0])
    for row in results.rows:
        mine = f"{_work(results, row)} {base}"
        for figures, kind, which in _groups(row):
            for name, figure in figures.items():
                if figure.ci95 and _moves(name, kind):
                    found.setdefault(name + kind, {})[mine + which] = figure.value
    return found


def _groups(row: Row) -> Iterator[tuple[dict[str, Measurement], str, str]]:
    """Figures of a row by their names, what kind of them these are, and which."""
    yield row.measurements, "", ""
    yield row.ratios, _RATIO, ""
    for part, figures in row.parts.items():
        yield figures, _PART, f" {part}"


def _moves(name: str, kind: str) -> bool:
    return name in _OF_PARTS if kind == _PART else name in METRICS and METRICS[name].group in _OF


def _work(results: Results, row: Row) -> str:
    """What did what work."""
    disk, made = row.measurements.get("disk"), row.provenance.model_dump(mode="json")
    settings = [results.settings.get(k) for k in _WORK]
    return _hash([results.versions, row.path, row.runner, made, disk.value if disk else 0, settings])


def _hash(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _spread(benches: Iterable[dict[str, float]]) -> tuple[float, int]:
    """Relative standard deviation of repeats, pooled over what was repeated, and its degrees of freedom."""
    repeats: dict[str, list[float]] = {}
    for bench in benches:
        for of, value in bench.items():
            repeats.setdefault(of, []).append(value)
    squares, df = 0.0, 0
    for values in repeats.values():
        x = np.asarray(values)
        if len(x) > 1 and (mean := x.mean()):
            squares, df = squares + float(np.square(x / mean - 1).sum()), df + len(x) - 1
    return (math.sqrt(squares / df), df) if df else (0.0, 0)


def _begun(kind: str, spread: float, df: int) -> tuple[float, int]:
    """A spread that begins from that of virtual machines, and its degrees of freedom."""
    first = _VIRTUAL_RATIO if kind.endswith((_RATIO, f"_share{_PART}")) else _VIRTUAL
    both = df + _VIRTUAL_DF
    return math.sqrt((df * spread**2 + _VIRTUAL_DF * first**2) / both), both


def _at_least(figure: Measurement, spread: float, df: int) -> Measurement:
    """The figure with the wider of its interval and that of another bench."""
    from scipy import stats

    if figure.ci95 is None:
        return figure
    reach = float(stats.t.ppf(0.975, df)) * math.sqrt(2) * spread
    low, high = figure.ci95
    other = _around(figure.value, reach, positive=low > 0)
    return figure.model_copy(update={"ci95": (min(low, other[0]), max(high, other[1]))})


def _around(value: float, reach: float, *, positive: bool) -> Interval:
    if positive:
        return value / (1 + reach), value * (1 + reach)
    return value - abs(value) * reach, value + abs(value) * reach
