"""Magnitude pruning: the smallest weights go.

Han et al., 2015, arXiv:1506.02626, section 3; the largest of the whole matrix stay, as in SparseGPT's and Wanda's
baselines.
"""

from __future__ import annotations

from torch import Tensor

from greenllm.prune.mask import Pattern, best


def magnitude(W: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """Where W [N, K] stays, bool [N, K]; see :func:`greenllm.prune.mask.best`."""
    if pattern == "2:4":
        return best(W.abs(), sparsity, pattern)
    return best(W.abs().view(1, -1), sparsity, pattern).view_as(W)
