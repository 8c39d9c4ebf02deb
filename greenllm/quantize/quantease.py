"""QuantEase: cyclic coordinate descent on the codes of a layer.

Behdin et al., 2023, arXiv:2309.01885, section 3 (algorithm 2). A pass visits every input once and gives it
the code that is best with all others held; the layer's error in the norm of H never rises.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from greenllm.quantize.grid import expand
from greenllm.quantize.packed import Packed

_BLOCK = 64


def descend(W: Tensor, H: Tensor, packed: Packed) -> Packed:
    """One pass: improve the codes of ``packed``, its scales and zero points held.

    Args:
        W: float32 [N, K].
        H: float32 [K, K], positive on the diagonal.
        packed: a rounding of W, for instance GPTQ's.

    Returns:
        A packed weight whose (w - q) H (w - q)^T is nowhere larger.
    """
    S, Z = (t.T.contiguous() for t in expand(packed.scales, packed.zeros, packed.group))
    C = packed.codes.T.float().contiguous()  # inputs first: each is one contiguous row
    top = 2**packed.bits - 1
    R = H @ (W.T - (C - Z) * S)  # gradient of half the error
    for a in range(0, len(C), _BLOCK):
        b = min(a + _BLOCK, len(C))
        D = torch.empty(b - a, C.shape[1])
        r = R[a:b].clone()
        for j in range(a, b):
            code = (C[j] + r[j - a] / (H[j, j] * S[j])).round_().clamp_(0, top)
            D[j - a] = (code - C[j]) * S[j]
            C[j] = code
            r.addr_(H[a:b, j], D[j - a], alpha=-1)
        R.addmm_(H[:, a:b], D, alpha=-1)
    return dataclasses.replace(packed, codes=C.T.to(torch.uint8).contiguous())
