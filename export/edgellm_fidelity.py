"""What Edge-LLM's quantizer did to a model: its checkpoint, read back into floats, beside the source.

The graph itself runs on the device only: its operators are plugins of TensorRT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greenllm import source
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.export.tokenizer import ENGLISH

_TOKENS = 128
_SCALES = (".weight_scale", ".pre_quant_scale", ".input_scale")


@torch.no_grad()
def fidelity(checkpoint: Checkpoint, quantized: Path) -> dict[str, Any]:
    """How far the quantized weights move the next-token distributions of English text, in float32.

    Args:
        checkpoint: the dense source.
        quantized: the directory that the quantizer wrote.

    Returns:
        Mean KL divergence in nats a token, share of positions with the same likeliest token, number of tokens.

    Raises:
        GreenError: weights that are missing, of another shape, or not finite.
    """
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)(ENGLISH * 8)["input_ids"][:_TOKENS]
    model = checkpoint.load_model()
    want = torch.log_softmax(model(torch.tensor([ids]))[0][0].double(), -1)
    left = set(checkpoint.names())
    for name, value in dequantized(quantized):
        place = model.get_parameter(name) if name in left else None
        if place is not None and place.shape == value.shape:
            place.data = value
            left.discard(name)
    got = torch.log_softmax(model(torch.tensor([ids]))[0][0].double(), -1)
    kl = float((want.exp() * (want - got)).sum(-1).mean())
    if left or not math.isfinite(kl):
        what = f"lacks {min(left)}" if left else "gives values that are not numbers"
        raise GreenError(f"What Edge-LLM's quantizer wrote {what}: nothing was kept.", "Try another --precision.")
    same = float((want.argmax(-1) == got.argmax(-1)).double().mean())
    return {"kl_divergence": max(kl, 0.0), "top1_agreement": same, "tokens": len(ids), "against": "torch fp32"}


def dequantized(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and float32 values of the weights of ModelOpt's checkpoint: int4 AWQ, int8 SmoothQuant, or dense."""
    from safetensors import safe_open

    for file in source.shard_files(directory):
        with safe_open(file, framework="pt") as f:
            keys = set(f.keys())
            for name in sorted(keys):
                if name.endswith(_SCALES):
                    continue
                value, base = f.get_tensor(name), name.removesuffix(".weight")
                if f"{base}.weight_scale" in keys:
                    value = _floats(value, f.get_tensor(f"{base}.weight_scale"))
                    if f"{base}.pre_quant_scale" in keys:  # its inputs are scaled by this
                        value = value * f.get_tensor(f"{base}.pre_quant_scale").float()
                yield name, value.float()


def _floats(value: Tensor, scale: Tensor) -> Tensor:
    """Codes times scales: two 4-bit rows in a byte with a scale for so many inputs, or int8 with one for a row.

    Args:
        value: uint8 [N/2, K], the even row in the low half, in two's complement; or int8 [N, K].
        scale: float32 [N, K/group] or [N].
    """
    if value.dtype == torch.uint8:
        codes = torch.stack([value & 15, value >> 4], 1).view(-1, value.shape[1]).to(torch.int8)
        codes = torch.where(codes > 7, codes - 16, codes)  # noqa: PLR2004 - the largest positive code
        return codes.float() * scale.float().repeat_interleave(codes.shape[1] // scale.shape[1], 1)
    return value.float() * scale.float().reshape(-1, 1)
