"""What makes an encoder fast in ONNX Runtime: its own attention operator, and norms that are not fused.

Torch exports attention as some thirty operators a block, among them masks of T x T for each head and guards
against NaN, which no fusion of ONNX Runtime recognizes; com.microsoft MultiHeadAttention is one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "greenllm_onnxruntime"


def fuse_attention(model: PreTrainedModel) -> bool:
    """Let attention export as MultiHeadAttention; False where the model's own cannot be exchanged."""
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

    inner = [m for m in model.children() if isinstance(m, PreTrainedModel)]
    parts = [model] if getattr(model, "_supports_attention_backend", False) else inner  # made of two that do
    if not parts or not all(getattr(p, "_supports_attention_backend", False) for p in parts):
        return False
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _mask)
    for part in parts:
        part.set_attn_implementation(_NAME)
    return True


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Query [B, H, T, D], keys and values of as many heads or fewer, to [B, T, H, D].

    The mask says which keys there are, [B, T], or is added to the scores, [B, 1, T, T].
    """
    del module
    batch, heads, length, width = query.shape
    if key.shape[1] != heads:
        key, value = (t.repeat_interleave(heads // t.shape[1], 1) for t in (key, value))
    flat = [t.transpose(1, 2).reshape(batch, -1, heads * width) for t in (query, key, value)]
    added = attention_mask is not None and attention_mask.dim() == 4  # noqa: PLR2004
    masks = [None, None, attention_mask] if added else [None, attention_mask]  # bias, keys, scores
    out = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention", [*flat, *masks],
        attrs={"num_heads": heads, "scale": float(scaling or width**-0.5)},
        dtype=query.dtype, shape=flat[0].shape, version=1,
    )  # fmt: skip
    return out.reshape(batch, length, heads, width), None


def _mask(*args: Any, mask_function: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Padding alone is told as it came; causal and sliding windows are added to the scores."""
    from transformers import masking_utils

    if mask_function is masking_utils.bidirectional_mask_function:
        return None if attention_mask is None else attention_mask.to(torch.int32)
    found: Tensor | None = masking_utils.eager_mask(
        *args, mask_function=mask_function, attention_mask=attention_mask, **kwargs
    )
    return found


def keep_norms(path: Path) -> None:
    """Write the sum before each LayerNormalization as Sum, which ONNX Runtime does not fuse as it does Add.

    Its SkipLayerNormalization takes four times as long on the CPU as Sum and LayerNormalization do
    (42 ms against 10 for the norms of MiniLM over 4096 tokens; ONNX Runtime 1.32, two AVX512 cores).
    """
    model = onnx.load(str(path), load_external_data=False)
    inputs = {n.input[0] for n in model.graph.node if n.op_type == "LayerNormalization"}
    for node in model.graph.node:
        if node.op_type == "Add" and node.output[0] in inputs:
            node.op_type = "Sum"
    onnx.save(model, str(path))
