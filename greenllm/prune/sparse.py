"""Zeros in the linears of the blocks, block by block: each sees inputs from the already sparse ones before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from greenllm.blocks import blocks_of
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.prune.magnitude import magnitude
from greenllm.prune.mask import Pattern
from greenllm.prune.reconstruct import error, reconstruct
from greenllm.prune.sparsegpt import sparsegpt
from greenllm.prune.wanda import wanda
from greenllm.quantize.linear import Moments, linears, set_weight, weight_of
from greenllm.quantize.run import batches
from greenllm.save import copy_side_files, write_config, write_shards
from greenllm.step import Context
from greenllm.walk import Walk

_LOSS = ".loss"


@dataclass(frozen=True)
class Sparsity:
    """How a weight becomes sparse; the fields are those of the step."""

    method: str
    share: float
    pattern: Pattern
    damp: float
    solve: int

    def __call__(self, W: Tensor, H: Tensor) -> Tensor:
        """The sparse W [N, K]; H [K, K] is X^T X of its inputs."""
        if self.method == "sparsegpt":
            Q = sparsegpt(W, H, self.share, self.pattern, damp=self.damp)
        elif self.method == "wanda":
            Q = W * wanda(W, H, self.share, self.pattern)
        else:
            Q = W * magnitude(W, self.share, self.pattern)
        return reconstruct(W, Q, H, self.solve) if self.solve else Q


def check_pattern(checkpoint: Checkpoint, sparsity: Sparsity) -> None:
    """Refuse a pattern that the linears' inputs do not divide into, by layer name."""
    _, blocks = blocks_of(checkpoint.skeleton())
    for name, layer in linears(blocks).items():
        k = weight_of(layer).shape[1]
        if sparsity.pattern == "2:4" and k % 4:
            raise GreenError(f"{name}: {k} inputs are no multiple of 4.", "Take --pattern unstructured.")


def sparsify(checkpoint: Checkpoint, sparsity: Sparsity, out: Path, context: Context) -> dict[str, Any]:
    """Write a checkpoint of the same shapes with zeros in it; returns what the manifest keeps."""

    def visit(name: str, block: nn.Module, forward: Callable[[], None]) -> dict[str, Tensor]:
        layers, kept = linears(block), {}
        moments = Moments(layers)
        with moments.watching():
            forward()
        for short, layer in layers.items():
            W, H = weight_of(layer).contiguous(), moments.of(short)
            try:
                Q = sparsity(W, H)
            except GreenError as e:
                raise GreenError(f"{name}.{short}: {e.what}", e.fix) from e
            set_weight(layer, Q)
            kept[f"{name}.{short}.weight"] = layer.get_parameter("weight").data
            kept[f"{name}.{short}{_LOSS}"] = error(W, Q, H).sum() / ((W @ H) * W).sum().clamp_min(1e-12)
        return kept

    walk = Walk(checkpoint, [{"input_ids": b} for b in batches(context.samples())], context.work)
    context.progress.stage(f"zeros into {len(walk.blocks)} blocks", len(walk.blocks))
    walk.run(visit, context.progress)

    copy_side_files(checkpoint.path, out)
    write_shards(out, walk.written(_LOSS))
    write_config(out, checkpoint.config, None)
    losses = {n.removesuffix(_LOSS): float(t) for n, t in walk.tensors() if n.endswith(_LOSS)}
    context.progress.note("Zeros do not make it smaller or faster: only TensorRT computes 2:4 faster.")
    return {"relative_error": {n: round(v, 6) for n, v in losses.items()},
            "mean_relative_error": sum(losses.values()) / max(1, len(losses))}  # fmt: skip
