"""Round to nearest: every weight to its closest level, no data needed."""

from __future__ import annotations

import torch
from torch import Tensor

from greenllm.quantize.grid import Grid, as_packed, expand, fit
from greenllm.quantize.packed import Packed


def round_to_nearest(W: Tensor, grid: Grid, importance: Tensor | None = None) -> Packed:
    """Quantize ``W`` [N, K] onto its best-fitting grid (see :func:`greenllm.quantize.grid.fit`)."""
    scales, zeros = fit(W, grid, importance)
    return round_onto(W, scales, zeros, grid)


def round_onto(W: Tensor, scales: Tensor, zeros: Tensor, grid: Grid) -> Packed:
    """Round ``W`` [N, K] to the nearest levels of a given grid."""
    codes = torch.empty(W.shape, dtype=torch.uint8)
    rows = max(1, (1 << 22) // W.shape[1])
    for i in range(0, W.shape[0], rows):
        j = slice(i, i + rows)
        s, z = expand(scales[j], zeros[j], grid.size(W.shape[1]))
        codes[j] = (W[j] / s).round_().add_(z).clamp_(0, grid.top).to(torch.uint8)
    return as_packed(codes, scales, zeros, grid)
