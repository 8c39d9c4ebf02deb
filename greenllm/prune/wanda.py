"""Wanda: weights that are small for inputs that are small go; the others stay as they are.

Sun et al., 2023, arXiv:2306.11695, section 3 (equation 1): the score |W| times the norm of its input, compared
within each output.
"""

from __future__ import annotations

from torch import Tensor

from greenllm.prune.mask import Pattern, best


def wanda(W: Tensor, H: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """Where W [N, K] stays, bool [N, K]; H [K, K] is X^T X of its inputs."""
    return best(W.abs() * H.diagonal().sqrt(), sparsity, pattern)
