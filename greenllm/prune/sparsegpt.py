"""SparseGPT: weights go column by column, and those still to come make up for them.

Frantar & Alistarh, 2023, arXiv:2301.00774, section 3 (algorithm 1); the mask of 128 columns at a time (section 3.2),
or of each 4 for 2:4 (section 3.4), chosen by the optimal-brain-surgeon error w^2 / [H^-1]_jj of the weights as they
are by then.
"""

from __future__ import annotations

import torch
from torch import Tensor

from greenllm.errors import GreenError
from greenllm.prune.magnitude import magnitude
from greenllm.prune.mask import Pattern
from greenllm.quantize.gptq import factored

_BLOCK = 128


def sparsegpt(W: Tensor, H: Tensor, sparsity: float, pattern: Pattern, *, damp: float = 0.01) -> Tensor:
    """W with a share of zeros, the rest made to fit.

    Args:
        W: float32 [N, K].
        H: float32 [K, K], X^T X of the layer's inputs (any positive multiple).
        sparsity: share of zeros, if unstructured.
        pattern: "unstructured" or "2:4".
        damp: added to the diagonal of H, as a part of its mean; raised tenfold until H can be factored.

    Raises:
        GreenError: H is not finite, or K no multiple of 4 for "2:4".
    """
    if not torch.isfinite(H).all():
        raise GreenError("The calibration inputs of a layer hold NaN or infinity; it cannot be pruned on them.")
    _, U = factored(H, torch.arange(len(H)), damp)
    W = W.T.contiguous()  # columns are the unit of work: each is one contiguous row now
    step = 4 if pattern == "2:4" else _BLOCK
    for a in range(0, len(W), _BLOCK):
        b = min(a + _BLOCK, len(W))
        Err = torch.empty(b - a, W.shape[1])
        stay = torch.empty(b - a, W.shape[1], dtype=torch.bool)
        for j in range(a, b):
            if (j - a) % step == 0:
                c = min(j + step, b)
                stay[j - a : c - a] = magnitude((W[j:c] / U.diagonal()[j:c, None]).T.contiguous(), sparsity, pattern).T
            err = torch.where(stay[j - a], 0.0, W[j] / U[j, j])
            W[j] *= stay[j - a]
            W[j + 1 : b].addr_(U[j, j + 1 : b], err, alpha=-1)
            Err[j - a] = err
        W[b:].addmm_(U[a:b, b:].T, Err, alpha=-1)
    return W.T.contiguous()
