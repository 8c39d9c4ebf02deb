"""Optimization profiles: the shapes that a TensorRT engine must take, and those it is tuned for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from greenllm.errors import GreenError

Dims = list[int]
Inputs = Mapping[str, Sequence[int | None]]  # shapes by name, None for a dimension that changes
BLOCK = 512  # tokens of a prompt at a time
_BATCH = 32  # texts of an encoder at once
_TOKENS = ("input_ids", "position_ids", "token_type_ids")


@dataclass(frozen=True)
class Profile:
    """Smallest, usual and largest shape of each input."""

    name: str
    shapes: dict[str, tuple[Dims, Dims, Dims]]


@dataclass(frozen=True)
class _Range:
    """Smallest, usual and largest batch, new tokens, and tokens in the cache."""

    batch: tuple[int, int, int]
    new: tuple[int, int, int]
    past: tuple[int, int, int]


def profiles(inputs: Inputs, context: int, *, apart: bool) -> list[Profile]:
    """For a decoder with a cache prefill and decode, batch 1; for an encoder one over batch and length.

    Args:
        inputs: of the graph.
        context: tokens to hold, prompt and answer.
        apart: one for prefill and one for decode, else one over both, tuned for decode. ``tensorrt_rtx`` stores the
            weights once for each profile (SmolLM2-135M in fp16: 552 MB with two, 305 with one) and chooses kernels by
            shape when it runs.

    Raises:
        GreenError: an input of which nobody knows what it is.
    """
    if not any(name.startswith("past_key_values") for name in inputs):
        usual = min(context, 128)
        return [_profile("encode", inputs, _Range((1, 8, _BATCH), (1, usual, context), (0, 0, 0)))]
    block = min(BLOCK, context)
    if not apart:
        both = _Range((1, 1, 1), (1, 1, block), (0, context // 2, context - 1))
        return [_profile("generate", inputs, both)]
    prefill = _Range((1, 1, 1), (1, min(128, block), block), (0, 0, context - 1))
    decode = _Range((1, 1, 1), (1, 1, 1), (0, context // 2, context - 1))
    return [_profile("prefill", inputs, prefill), _profile("decode", inputs, decode)]


def _profile(name: str, inputs: Inputs, sizes: _Range) -> Profile:
    return Profile(name, {n: _shapes(n, dims, sizes) for n, dims in inputs.items()})


def _shapes(name: str, dims: Sequence[int | None], sizes: _Range) -> tuple[Dims, Dims, Dims]:
    def at(i: int) -> Dims:
        changing = {0: sizes.batch[i]}
        if name.startswith("past_key_values"):
            changing[2] = sizes.past[i]
        elif name == "attention_mask":
            changing[1] = sizes.new[i] + sizes.past[i]
        else:
            changing[1] = sizes.new[i]
        return [changing[k] if d is None else d for k, d in enumerate(dims)]

    known = name in _TOKENS or name == "attention_mask" or name.startswith("past_key_values")
    changes = {k for k, d in enumerate(dims) if d is None}
    if not known or not changes <= ({0, 2} if name.startswith("past_key_values") else {0, 1}):
        raise GreenError(f"The graph's input {name} {list(dims)} is none that greenllm knows the sizes of.")
    return at(0), at(1), at(2)
