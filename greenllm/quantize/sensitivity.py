"""What each linear would lose on each grid, in nats of KL divergence a token, before anything is rounded.

GPTQ spreads the error of an input over those that come later, so an error there costs not the input's
second moment but what is left of it when the later ones are known: the conditional variance, which is the
squared pivot of the Cholesky factor that GPTQ works with (arXiv:2210.17323, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from greenllm.quantize.gptq import factored
from greenllm.quantize.grid import Grid, fit
from greenllm.quantize.rtn import round_onto

_RANGES = torch.tensor([1.0, 0.85, 0.7])  # a coarse search of the scale is enough to estimate with


def conditional_variances(A: Tensor, damp: float) -> Tensor:
    """Of each input, given those that GPTQ rounds after it: float32 [K], for A = E[x x^T] [K, K]."""
    order = torch.argsort(A.diagonal(), descending=True)
    _, U = factored(A, order, damp)
    found = torch.empty(len(A))
    found[order] = U.diagonal().square().reciprocal()
    return found.where(A.diagonal() > 0, 0)


def predicted_kl(W: Tensor, variances: Tensor, g: Tensor, grid: Grid) -> float:
    """KL divergence in nats a token when W alone is rounded.

    Args:
        W: float32 [N, K].
        variances: of the inputs (see :func:`conditional_variances`), float32 [K].
        g: mean squared gradients at the outputs, float32 [N].
        grid: onto which.
    """
    scales, zeros = fit(W, grid, variances, shrink=_RANGES)
    error = round_onto(W, scales, zeros, grid).dequantize().sub_(W).square_()
    return 0.5 * float(g @ (error @ variances))
