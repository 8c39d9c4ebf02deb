"""Which weights of a matrix stay: the best by a score, anywhere or two of every four neighbours."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from greenllm.errors import GreenError

Pattern = Literal["unstructured", "2:4"]
_OF, _STAY = 4, 2  # the pattern that sparse tensor cores multiply


def best(scores: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """Where the highest scores are, bool.

    Args:
        scores: [N, K]; compared within a row.
        sparsity: share that goes, if unstructured; rounded to whole weights.
        pattern: "2:4" compares four neighbours each.

    Raises:
        GreenError: K is no multiple of 4 for "2:4".
    """
    n, k = scores.shape
    if pattern == "2:4":
        if k % _OF:
            raise GreenError(f"2:4 takes groups of {_OF} inputs, and there are {k}.", "Take --pattern unstructured.")
        return best(scores.reshape(-1, _OF), 1 - _STAY / _OF, "unstructured").view(n, k)
    mask = torch.zeros(n, k, dtype=torch.bool)
    return mask.scatter_(1, scores.topk(k - round(sparsity * k), dim=1).indices, value=True)
