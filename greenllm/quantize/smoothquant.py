"""SmoothQuant: outliers of the activations are moved into the weights, so that both fit 8 bits.

Xiao et al., 2022, arXiv:2211.10438, equation 4: s = max|X|^alpha / max|W|^(1 - alpha) for each input channel.
X is divided by s and W multiplied; the division is folded into the norm or linear that wrote X. Where nothing
can take it (both X and its writer's other readers would change, as with BERT's norms), the input stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from greenllm.errors import GreenError
from greenllm.quantize.activations import Ranges
from greenllm.quantize.fold import find_folds, first_call, fold_in
from greenllm.quantize.linear import linears, weight_of

_LEAST = 1e-5  # the authors' floor of both maxima: a channel that is nearly off is not scaled to infinity


def smooth_scales(Ws: list[Tensor], largest: Tensor, alpha: float) -> Tensor:
    """Scales of the inputs that several weights share.

    Args:
        Ws: weights, float32 [N_i, K].
        largest: float32 [K], max|X| of each channel.
        alpha: how much of the difficulty goes into the weights; 0.5 shares it evenly.

    Returns:
        s, float32 [K], positive: to be multiplied into the weights' columns; 1 for a channel that is dead on
        either side.

    Raises:
        GreenError: an input or a weight is not finite.
    """
    heaviest = torch.stack([W.abs().amax(0) for W in Ws]).amax(0)
    if not (torch.isfinite(largest).all() and torch.isfinite(heaviest).all()):
        raise GreenError("The calibration inputs or the weights of a layer hold NaN or infinity.")
    s = largest.clamp_min(_LEAST) ** alpha / heaviest.clamp_min(_LEAST) ** (1 - alpha)
    return torch.where((largest > 0) & (heaviest > 0), s, 1.0)


def smooth_block(name: str, block: nn.Module, forward: Callable[[], None], alpha: float) -> dict[str, Tensor]:
    """Scale what can be scaled in a block, in place; ``forward`` runs it over the calibration inputs.

    Returns:
        The changed parameters that are no linear's weight, by their full names.

    Raises:
        GreenError: nothing in it can be scaled, or its inputs are not finite.
    """
    layers = linears(block)
    ranges = Ranges(layers)
    with ranges.watching(), first_call(block) as call:
        forward()
    folds = find_folds(block, call)
    if not folds:
        raise GreenError(
            f"{name}: no norm or linear can take SmoothQuant's scales without changing what the block computes.",
            "Quantize it with --smooth 0.",
        )
    changed: dict[str, Tensor] = {}
    for fold in folds:
        reader = fold.readers[0]
        try:
            s = smooth_scales([weight_of(layers[r]) for r in fold.readers], ranges.largest(reader), alpha)
        except GreenError as e:
            raise GreenError(f"{name}.{reader}: {e.what}", e.fix) from e
        changed |= {f"{name}.{n}": t for n, t in fold_in(block, fold, s).items()}
    return changed
