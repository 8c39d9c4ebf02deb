"""AWQ: Activation-aware Weight Quantization, the search for scales.

Lin et al., 2023, arXiv:2306.00978, section 3.2: inputs that are large on average get finer weights by scaling
them up before rounding, s = mean|x|^alpha, with alpha by search. The mean is the quadratic one here, off the
diagonal of H. As in the authors' code, alpha is also tried with the weights' magnitudes dividing, and ranges are
clipped (:func:`greenllm.quantize.grid.fit`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from greenllm.errors import GreenError
from greenllm.quantize.fold import find_folds, first_call, fold_in
from greenllm.quantize.grid import Grid
from greenllm.quantize.linear import Moments, linears, weight_of
from greenllm.quantize.rtn import round_to_nearest

_ALPHAS = torch.arange(0, 1, 0.1).tolist()
_ROWS = 64  # of the weights together, evenly spread: enough to compare scales by
_LEAST = 0.01  # of the mean: an input that was never on is not scaled to nothing


def search_scales(Ws: list[Tensor], H: Tensor, grid: Grid) -> Tensor:
    """Scales of the inputs that several weights share, for the least error of their outputs after rounding.

    Args:
        Ws: weights, float32 [N_i, K].
        H: float32 [K, K], X^T X of their inputs (any positive multiple).
        grid: what the scaled weights will be rounded to.

    Returns:
        s, float32 [K], positive: to be multiplied into the weights' columns; all ones if nothing does better.

    Raises:
        GreenError: H is not finite.
    """
    if not torch.isfinite(H).all():
        raise GreenError("The calibration inputs of a layer hold NaN or infinity; it cannot be quantized on them.")
    step = max(1, sum(len(W) for W in Ws) // _ROWS)
    W = torch.cat(Ws)[::step].contiguous()
    H = H / H.diagonal().mean().clamp_min(1e-30)
    return min(_candidates(W, H.diagonal().sqrt(), grid), key=lambda s: scaled_error(W, H, s, grid))


def scaled_error(W: Tensor, H: Tensor, s: Tensor, grid: Grid) -> float:
    """tr(D H D^T), D the error of ``W`` [N, K] when its columns are rounded to nearest scaled by ``s`` [K]."""
    D = round_to_nearest(W * s, grid, H.diagonal() / s.square()).dequantize() / s - W
    return float(((D @ H) * D).sum())


def _candidates(W: Tensor, x: Tensor, grid: Grid) -> Iterator[Tensor]:
    """Ones first (alpha 0), so that they win a tie."""
    x = _floored(x)
    grouped = W.abs().view(len(W), -1, grid.size(W.shape[1]))
    w = _floored((grouped / grouped.amax(-1, keepdim=True).clamp_min(1e-12)).flatten(1).mean(0))
    for alpha in _ALPHAS:
        for s in (x**alpha, x**alpha / w ** (1 - alpha)):
            yield s / (s.max() * s.min()).sqrt()


def _floored(x: Tensor) -> Tensor:
    return x.clamp_min(_LEAST * x.mean()).clamp_min(1e-12)


def scale_block(name: str, block: nn.Module, forward: Callable[[], None], grid: Grid) -> dict[str, Tensor]:
    """Scale what can be scaled in a block, in place; ``forward`` runs it over the calibration inputs.

    Returns:
        The changed parameters that are no linear's weight, by their full names.

    Raises:
        GreenError: nothing in it can be scaled, or its inputs are not finite.
    """
    layers = linears(block)
    moments = Moments(layers)
    with moments.watching(), first_call(block) as call:
        forward()
    folds = find_folds(block, call)
    if not folds:
        raise GreenError(
            f"{name}: no norm or linear can take AWQ's scales without changing what the block computes.",
            "Quantize it without --awq.",
        )
    changed: dict[str, Tensor] = {}
    for fold in folds:
        Ws = [weight_of(layers[r]) for r in fold.readers]
        s = search_scales(Ws, moments.of(fold.readers[0]), grid)
        changed |= {f"{name}.{n}": t for n, t in fold_in(block, fold, s).items()}
    return changed
