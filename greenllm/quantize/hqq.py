"""HQQ: Half-Quadratic Quantization, no data.

Badri and Shaji, 2023, "Half-Quadratic Quantization of Large Machine Learning Models", Mobius Labs: the grid of
each group is chosen for a small l_p norm of the error, p < 1, which a few large weights do not govern. An
auxiliary error E splits the problem (half-quadratic solver): E by generalized soft-thresholding, then the grid by
least squares on W - E. The paper solves for real zero points; ours are integers (the GPTQ layout, MatMulNBits),
so they are snapped, and the scales are solved for in the same way; on a symmetric grid scales alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from greenllm.quantize.grid import Grid, fit
from greenllm.quantize.packed import Packed
from greenllm.quantize.rtn import round_onto

_CHUNK = 1 << 17  # weights at a time: they stay in the cache over the iterations
_COLLAPSE = 0.1  # a scale that falls faster than this in one step has lost its way
_TINY, _HUGE = 2.0**-24, 65504.0  # fp16


def hqq(W: Tensor, grid: Grid, *, p: float = 0.7, beta: float = 10.0, kappa: float = 1.01, steps: int = 20) -> Packed:
    """Quantize a weight onto the grid with a small l_p error.

    Args:
        W: float32 [N, K].
        grid: bits, group, symmetry.
        p: the norm; 2 is least squares.
        beta: how firmly E follows the error, with errors counted in steps of the grid.
        kappa: beta's growth in every step.
        steps: iterations for the zero point, and again for the scale.

    Returns:
        The packed weight; no group has a larger l_p error than by rounding to nearest (:mod:`.rtn`).
    """
    scales, zeros = fit(W, grid)
    n, k = W.shape
    w = W.view(n, -1, grid.size(k))
    betas = [beta * kappa**i for i in range(steps)]
    rows = max(1, _CHUNK // k)
    for i in range(0, n, rows):
        part = slice(i, i + rows)
        best = _Best(w[part], grid.top, p, scales[part], zeros[part])
        start = best.scales.float(), best.zeros.float()
        if not grid.symmetric:
            low, high = w[part].amin(-1).clamp_max(0), w[part].amax(-1).clamp_min(0)
            s = ((high - low) / grid.top).clamp_min(_TINY)
            _solve_scale(best, s, _solve_zero(best, s, -low / s, betas), betas)
        _solve_scale(best, *start, betas)
    return round_onto(W, scales, zeros, grid)


class _Best:
    """The best grid so far of each group [n, G] of weights [n, G, g]; kept in the tensors given."""

    def __init__(self, w: Tensor, top: int, p: float, scales: Tensor, zeros: Tensor) -> None:
        self.w, self.top, self.p, self.scales, self.zeros = w, top, p, scales, zeros
        self.error = self._error(scales, zeros)

    def offer(self, scales: Tensor, zeros: Tensor) -> None:
        """Take this grid wherever its l_p error is smaller."""
        s16 = scales.clamp(-_HUGE, _HUGE).half()
        error = self._error(s16, zeros)
        better = (error < self.error) & (s16.abs() >= _TINY)
        self.error = torch.where(better, error, self.error)
        self.scales.copy_(torch.where(better, s16, self.scales))
        self.zeros.copy_(torch.where(better, zeros.to(torch.uint8), self.zeros))

    def _error(self, scales: Tensor, zeros: Tensor) -> Tensor:
        s = scales.float()[..., None]
        code = signed_codes(self.w / s, zeros.float(), self.top)
        return (code * s - self.w).abs().pow(self.p).sum(-1)


def _solve_zero(best: _Best, s: Tensor, z: Tensor, betas: list[float]) -> Tensor:
    """The paper's iteration: z is the mean of codes - (W - E) / s; snapped at the end, [n, G]."""
    x = best.w / s[..., None]
    for beta in betas:
        code = signed_codes(x, z, best.top)
        E = shrink(x - code, beta, best.p)
        z = z + (code - (x - E)).mean(-1)
    return z.round().clamp(0, best.top)


def _solve_scale(best: _Best, s: Tensor, z: Tensor, betas: list[float]) -> None:
    """The same for the scale: with codes C, s is the least-squares solution of s C = W - E."""
    for beta in betas:
        x = best.w / s[..., None]
        C = signed_codes(x, z, best.top)
        E = shrink(x - C, beta, best.p)
        factor = (C * (x - E)).sum(-1) / C.square().sum(-1)
        s = torch.where(factor > _COLLAPSE, s * factor, s)  # nor NaN, when all codes are zero
        best.offer(s, z)


def signed_codes(x: Tensor, z: Tensor, top: int) -> Tensor:
    """Nearest codes minus their zero point, for weights in steps of the scale [n, G, g]; z may be fractional."""
    z = z[..., None]
    return (x + z).round_().clamp_(0, top).sub_(z)


def shrink(x: Tensor, beta: float, p: float) -> Tensor:
    """The paper's generalized soft-thresholding: nearly the minimum over e of |e|^p / p + beta / 2 (e - x)^2."""
    return x.sign() * (x.abs() - x.abs().clamp_min(1e-8).pow(p - 1) / beta).clamp_min(0)
