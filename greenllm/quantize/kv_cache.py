"""Scales for a cache of keys and values in integers: one for each channel, the same for all tokens.

Keys have a few large channels, which lie where they lie for all tokens (KIVI, Liu et al., 2024, arXiv:2402.02750,
section 3.1): with a scale a channel they cost the others nothing. Symmetric and fixed before the model runs, as ONNX
Runtime's GroupQueryAttention reads them. Rotary embeddings turn pairs of channels by the position, so that a channel is
as large as its pair somewhere: samples are read at places all over the context, not at its beginning alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.progress import Progress

_TOKENS = 2048  # whose keys and values are kept at a time
_SHRINK = torch.linspace(1.0, 0.5, 26)
_DEAD = 1e-3  # of the layer's largest scale: what a channel has that was never seen to be anything


def channel_scales(states: Tensor, bits: int) -> Tensor:
    """The scale of each channel.

    Of 8 bits one that reaches the largest, which may be the first token's, and at that all others look. Of 4 bits the
    one with the least squared error, by search over shrunken ranges.

    Args:
        states: float32 [T, C], what a cache would hold of T tokens.
        bits: 4 or 8; codes are -2**(bits - 1) to 2**(bits - 1) - 1.

    Returns:
        float32 [C], positive.

    Raises:
        GreenError: they hold NaN or infinity, or nothing but zeros.
    """
    top = 2 ** (bits - 1) - 1
    largest = states.abs().amax(0)
    if not torch.isfinite(largest).all() or not largest.any():
        raise GreenError("its keys or values are NaN, infinite, or all zero.")
    best, scales = torch.full_like(largest, torch.inf), largest / top
    for part in _SHRINK if bits == 4 else ():  # noqa: PLR2004 - a byte has levels to spare
        tried = (largest / top * part).clamp_min(torch.finfo(torch.float32).tiny)
        error = ((states / tried).round_().clamp_(-top - 1, top).mul_(tried) - states).square_().sum(0)
        scales = torch.where(error < best, tried, scales)
        best = torch.minimum(error, best)
    return scales.clamp_min(_DEAD * float(scales.max()))


@torch.no_grad()
def measure(
    checkpoint: Checkpoint, ids: Tensor, bits: int, context: int, progress: Progress
) -> dict[str, list[list[float]]]:
    """Scales for the cache of a decoder, layer by layer: ``k_scales`` and ``v_scales``, each of [heads * width].

    Args:
        checkpoint: dense or packed; it runs in float32.
        ids: samples, int64 [count, length].
        bits: 4 or 8.
        context: tokens that the cache is to hold.
        progress: advanced by 1 in total.

    Raises:
        GreenError: its cache does not hold a key and a value a token, or they are no numbers.
    """
    ids = ids[: max(1, _TOKENS // ids.shape[1])]
    model = checkpoint.load_model()
    last = max(0, context - ids.shape[1])
    seen: list[list[Any]] = []
    for i, row in enumerate(ids):
        start = last * i // max(1, len(ids) - 1)
        positions = torch.arange(start, start + len(row))[None]
        layers = getattr(model(input_ids=row[None], position_ids=positions, use_cache=True)[1], "layers", None)
        if not layers or any(getattr(layer, "keys", None) is None for layer in layers):
            raise GreenError(f"{checkpoint.path}: its cache is not one of keys and values.", "Leave out --kv-bits.")
        seen.append([(_flat(layer.keys), _flat(layer.values)) for layer in layers])
        progress.advance(1 / len(ids))
    found: dict[str, list[list[float]]] = {"k_scales": [], "v_scales": []}
    for n, layer in enumerate(zip(*seen, strict=True)):
        for name, states in zip(found, zip(*layer, strict=True), strict=True):
            try:
                found[name].append(channel_scales(torch.cat(states), bits).tolist())
            except GreenError as e:
                raise GreenError(f"{checkpoint.path}: of layer {n} {e.what}") from e
    return found


def _flat(states: Tensor) -> Tensor:
    """[1, heads, T, width] as [T, heads * width]."""
    return states[0].transpose(0, 1).flatten(1).float()
