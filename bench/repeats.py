"""Whether two benches of one machine agree: the same bench again and again, each figure against the run before.

``python -m greenllm.bench.repeats MODEL... --out DIR [--runs 21] [--energy]``; runs that DIR holds are not made again.
Of two runs after each other, the later value should lie in the earlier 95 % interval, and the earlier value in the
later one, 95 times in 100 each: see :func:`greenllm.bench.measurement.repeat_interval`. Ratios to the first model too.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from greenllm.bench import bench
from greenllm.bench.measurement import Measurement
from greenllm.bench.results import Results
from greenllm.bench.session import Effort

_SHORT = Effort(windows=2, sentences=8)  # what is said of the text is the same each time


def main() -> None:
    """Run what is missing, and print a line for each figure that is measured with an interval."""
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    given.add_argument("models", nargs="+")
    given.add_argument("--out", type=Path, required=True)
    given.add_argument("--runs", type=int, default=21)
    given.add_argument("--energy", action="store_true", help="too: takes about as long again")
    options = given.parse_args()
    found = []
    for i in range(options.runs):
        file = options.out / f"{i:02}" / "report.json"
        if not file.is_file():
            bench(options.models, effort=_SHORT, energy=options.energy, report=file.parent)
        found.append(Results.model_validate_json(file.read_text(encoding="utf-8")))
        print(f"{i + 1} of {options.runs}", flush=True)
    for line in lines(found):
        print(line)


def lines(runs: Sequence[Results]) -> list[str]:
    """A line for each model and figure.

    In how many successive runs the later value lies in the earlier interval, and the earlier value in the later one;
    the intervals' mean half-width, and the spread of the runs.
    """
    said = []
    for k, row in enumerate(runs[0].rows):
        for name in row.measurements:
            figures = [r.rows[k].measurements.get(name) for r in runs]
            said += _line(f"{row.name:12} {name:16}", figures, ("measured", "estimated"))
        for name in row.ratios:
            figures = [r.rows[k].ratios.get(name) for r in runs]
            if row.measurements[name].method.startswith(("measured", "estimated")):
                said += _line(f"{row.name:12} {name + ' ratio':16}", figures, ("",))
    return said


def _line(name: str, figures: Sequence[Measurement | None], methods: tuple[str, ...]) -> list[str]:
    """Nothing where a run has no such figure, or no interval of it, or it is of other methods."""
    each = [m for m in figures if m is not None and m.ci95 and m.method.startswith(methods)]
    if len(each) < len(figures):
        return []
    pairs = list(itertools.pairwise(each))
    later, earlier = sum(b.value in a for a, b in pairs), sum(a.value in b for a, b in pairs)
    values = np.array([m.value for m in each])
    half = np.mean([(m.ci95[1] - m.ci95[0]) / 2 / m.value for m in each if m.ci95])
    spread = values.std(ddof=1) / values.mean()
    return [f"{name} {later:3} and {earlier:3} of {len(pairs)}  ±{half:.1%}, runs {spread:.1%}"]


if __name__ == "__main__":
    main()
