"""Reptile: a start from which a few steps on any task of a family go far.

Nichol, Achiam and Schulman, 2018, arXiv:1803.02999, algorithm 2: φ ← φ + ε Σ (W_i − φ) / n, where W_i is where a few
steps on task i lead from φ. The first derivatives alone are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Values = Sequence[Tensor]


def reptile(
    start: Values, learn: Callable[[Values, int], Values], tasks: int, rounds: int, pace: float = 1.0
) -> Iterator[list[Tensor]]:
    """Move a start towards where each task leads from it.

    Args:
        start: φ, parameters of any shapes; left as they are.
        learn: parameters after a few steps on the task of this index, from the given ones, which it leaves as they are.
        tasks: how many there are.
        rounds: in each of which every task is learned once.
        pace: ε in the first round; it falls linearly, to nothing after the last (section 6.1).

    Yields:
        φ after each round.
    """
    values = [v.detach().clone() for v in start]
    for done in range(rounds):
        ends = [learn(values, task) for task in range(tasks)]
        way = [torch.stack([e - v for e in found]).mean(0) for v, *found in zip(values, *ends, strict=True)]
        values = [v + pace * (1 - done / rounds) * w for v, w in zip(values, way, strict=True)]
        yield values
