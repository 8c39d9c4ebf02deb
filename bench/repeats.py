"""Whether two benches of one machine agree: the same bench again and again, each figure against the run before.

``python -m greenllm.bench.repeats MODEL... --out DIR [--runs 21] [--energy]``; runs that DIR holds are not made again.
A figure agrees with the run before where either's value lies in the other's 95 % interval: see
:func:`greenllm.bench.measurement.repeat_interval`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from greenllm.bench import bench
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
    """For each model and figure: in how many successive runs it agrees, its spread, and its interval's half-width."""
    said = []
    for k, row in enumerate(runs[0].rows):
        for name, first in row.measurements.items():
            each = [r.rows[k].measurements[name] for r in runs if name in r.rows[k].measurements]
            if not first.method.startswith(("measured", "estimated")) or any(m.ci95 is None for m in each):
                continue
            agree = [b.value in a and a.value in b for a, b in itertools.pairwise(each)]
            values = np.array([m.value for m in each])
            spread = values.std(ddof=1) / values.mean()
            half = np.mean([(m.ci95[1] - m.ci95[0]) / 2 / m.value for m in each if m.ci95])
            said.append(f"{row.name:12} {name:16} {sum(agree):3} of {len(agree)}  ±{half:.1%}, runs {spread:.1%}")
    return said


if __name__ == "__main__":
    main()
