"""From token states to a sentence embedding, as the model's ``1_Pooling/config.json`` says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from greenllm.errors import GreenError

_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}


def mode(directory: Path) -> str:
    """One of "mean", "cls" and "max"; mean where the model says nothing.

    Raises:
        GreenError: the model wants a pooling that is not here.
    """
    file = directory / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    config = json.loads(file.read_text(encoding="utf-8"))
    wanted = [k for k, v in config.items() if k.startswith("pooling_mode_") and v is True]
    if len(wanted) != 1 or wanted[0] not in _MODES:
        raise GreenError(f"{file} asks for {wanted}; mean, cls and max pooling are supported, one at a time.")
    return _MODES[wanted[0]]


def pad(batch: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and mask, int64 [B, T], padded on the right."""
    length = max(map(len, batch))
    ids, mask = np.zeros((2, len(batch), length), dtype=np.int64)
    for i, tokens in enumerate(batch):
        ids[i, : len(tokens)] = tokens
        mask[i, : len(tokens)] = 1
    return ids, mask


def pool(states: NDArray[np.float32], mask: NDArray[np.int64], how: str) -> NDArray[np.float32]:
    """[B, T, H] and [B, T] to [B, H]."""
    if how == "cls":
        return states[:, 0]
    weights = mask[:, :, None].astype(np.float32)
    if how == "max":
        return np.where(weights > 0, states, -np.inf).max(axis=1).astype(np.float32)
    pooled: NDArray[np.float32] = (states * weights).sum(axis=1) / weights.sum(axis=1)
    return pooled
