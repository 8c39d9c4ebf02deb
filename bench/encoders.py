"""Latency of encoders by batch and length: p50 of each, and its ratio to the first, in rounds that take turns.

``python -m greenllm.bench.encoders BASELINE OTHER... [--threads 2] [--seconds 0.25]``, exports for ONNX Runtime.
Every text has the same length and no padding; pooling is included.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from greenllm.bench.runners import Runner, loader

_SHAPES = [(1, 32), (1, 128), (32, 32), (32, 128)]  # texts, tokens in each
_ROUNDS = 7
_IDS = (1000, 20000)  # whole words in BERT's vocabulary


def main() -> None:
    """Measure and print a line for each shape and model."""
    given = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    given.add_argument("models", nargs="+")
    given.add_argument("--threads", type=int, default=2)
    given.add_argument("--seconds", type=float, default=0.25, help="of one round of one model")
    options = given.parse_args()
    runners = [loader("onnxruntime").load(path, options.threads) for path in options.models]
    for texts, tokens in _SHAPES:
        batch = np.random.default_rng(0).integers(*_IDS, (texts, tokens)).tolist()
        times = np.array([[p50(r, batch, options.seconds) for r in runners] for _ in range(_ROUNDS + 1)][1:])
        for path, mine in zip(options.models, times.T, strict=True):
            low, middle, high = np.quantile(times[:, 0] / mine, [0, 0.5, 1])
            name = Path(path).name
            print(
                f"batch {texts:2} of {tokens:3} tokens  {name:20} {np.median(mine) * 1000:8.2f} ms"
                f"  x{middle:.2f} [{low:.2f}, {high:.2f}]"
            )


def p50(runner: Runner, batch: list[list[int]], seconds: float) -> float:
    """Median seconds of a batch, over about this time."""
    clock = time.perf_counter
    found: list[float] = []
    end = clock() + seconds
    while not found or clock() < end:
        begin = clock()
        runner.encode(batch)
        found.append(clock() - begin)
    return float(np.median(found))


if __name__ == "__main__":
    main()
