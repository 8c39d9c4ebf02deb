"""The step that makes weights integers: walk the blocks, quantize their linears, pack, save."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from greenllm import __version__
from greenllm.checkpoint import Checkpoint, blocks_of, copy_side_files, write_config, write_shards
from greenllm.errors import GreenError
from greenllm.quantize.gptq import error_in, gptq
from greenllm.quantize.grid import Grid
from greenllm.quantize.linear import Moments, linears, set_weight, weight_of
from greenllm.quantize.packed import Packed, to_gptq
from greenllm.quantize.rtn import round_to_nearest
from greenllm.step import BASE_BYTES, Context, Estimate, flops_per_second
from greenllm.walk import Walk

_BATCH_TOKENS = 2048
_LOSS = ".loss"
_LOOKUP = 0.1  # weight of a tied matrix's plain error as an embedding, beside its error as a head


@dataclass(config={"extra": "forbid"})
class Quantize:
    """Make the weights of the linear layers integers, in groups that share a scale."""

    name: ClassVar[str] = "quantize"

    method: Literal["gptq", "rtn"] = Field("gptq", description="gptq (calibrated) or rtn (round to nearest, no data)")
    bits: Literal[3, 4, 8] = Field(4, description="bits of a weight in the blocks")
    group: int = Field(32, ge=-1, description="inputs that share a scale; -1 for the whole row")
    symmetric: bool = Field(True, description="no zero points: smaller, and the only kind TensorRT reads")
    act_order: bool = Field(True, description="gptq: round the inputs that matter most first")
    damp: float = Field(0.01, gt=0, le=1, description="gptq: share of the mean diagonal added to the Hessian")
    head_bits: Literal[0, 3, 4, 8] = Field(4, description="bits of embedding and head; 0 leaves them as they are")
    head_group: int = Field(32, ge=-1, description="inputs that share a scale in embedding and head")

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration samples."""
        return self.method == "gptq"

    @property
    def grid(self) -> Grid:
        """The grid of the blocks' weights."""
        return Grid(self.bits, self.group, self.symmetric)

    @property
    def head_grid(self) -> Grid:
        """The grid of embedding and head."""
        return Grid(self.head_bits, self.head_group, self.symmetric)

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse weights that are integers already and group sizes that do not divide, by layer name."""
        if checkpoint.quantized:
            raise GreenError(f"{checkpoint.path} is quantized already.", "Start from the checkpoint it was made of.")
        model = checkpoint.skeleton()
        prefix, blocks = blocks_of(model)
        for name, layer in linears(blocks).items():
            _fits(self.grid, weight_of(layer), f"{prefix}.{name}", "group")
        for name in self._outside(checkpoint):
            _fits(self.head_grid, model.get_submodule(name).weight, name, "head-group")

    def estimate(self, checkpoint: Checkpoint, tokens: int) -> Estimate:
        """Two forward passes and a Hessian a layer, at the speed a matrix product runs here now."""
        _, blocks = blocks_of(checkpoint.skeleton())
        layers = list(linears(blocks).values())
        weights = sum(weight_of(m).numel() for m in layers)
        columns = sum(weight_of(m).shape[1] for m in layers)
        d = int(getattr(checkpoint.config, "hidden_size", weight_of(layers[0]).shape[1]))
        outside = checkpoint.parameters - sum(p.numel() for p in blocks.parameters())
        block = 4 * (weights / len(blocks)) * 4
        peak = BASE_BYTES + 4 * outside + block + 8 * tokens * d + 4 * outside * (self.head_bits > 0)
        if not self.calibrated:
            return Estimate(5 + weights / 5e7, peak)
        flops = 2 * 2 * weights * tokens + sum(2 * weight_of(m).shape[1] ** 2 * tokens for m in layers) * 0.6
        return Estimate(5 + flops / flops_per_second() * 1.4 + 6e-7 * weights + 1e-4 * columns, peak)

    def run(self, checkpoint: Checkpoint, out: Path, context: Context) -> dict[str, Any]:
        """Walk, quantize, and write a checkpoint in the GPTQ tensor layout into ``out``."""
        self.check(checkpoint)
        ids = context.samples() if self.calibrated else torch.zeros(1, 8, dtype=torch.int64)
        rows = max(1, min(len(ids), _BATCH_TOKENS // ids.shape[1]))
        ids = ids[: len(ids) // rows * rows]
        walk = Walk(checkpoint, [{"input_ids": b} for b in ids.split(rows)], context.work)
        context.progress.stage(f"quantizing {len(walk.blocks)} blocks", len(walk.blocks))
        walk.run(self._block, context.progress)
        self._save(checkpoint, walk, out)
        return _summary(checkpoint, {n.removesuffix(_LOSS): float(t) for n, t in walk.tensors() if n.endswith(_LOSS)})

    def _block(self, name: str, block: nn.Module, forward: Callable[[], None]) -> dict[str, Tensor]:
        layers = linears(block)
        moments = Moments(layers)
        if self.calibrated:
            with moments.watching():
                forward()
        kept: dict[str, Tensor] = {}
        for short, layer in layers.items():
            W = weight_of(layer).contiguous()
            try:
                packed = self._quantize(W, moments.of(short) if self.calibrated else None, self.grid)
            except GreenError as e:
                raise GreenError(f"{name}.{short}: {e.what}", e.fix) from e
            kept[f"{name}.{short}{_LOSS}"] = _loss(W, packed, moments.of(short) if self.calibrated else None)
            set_weight(layer, packed.dequantize())
            kept |= {f"{name}.{short}.{part}": t for part, t in to_gptq(packed).items()}
        return kept

    def _quantize(self, W: Tensor, H: Tensor | None, grid: Grid) -> Packed:
        if H is None:
            return round_to_nearest(W, grid)
        return gptq(W, H, grid, damp=self.damp, act_order=self.act_order)

    def _head_moments(self, checkpoint: Checkpoint, walk: Walk) -> dict[str, Tensor]:
        """H of the head's inputs after the quantized blocks. An embedding alone has none: it is looked up."""
        if not (self.calibrated and self.head_bits and checkpoint.head):
            return {}
        inputs = walk.head_inputs(walk.model.get_submodule(checkpoint.head))
        H = torch.stack([x.T @ x for x in inputs]).sum(0)
        if checkpoint.tied:
            H += _LOOKUP * H.diagonal().mean() * torch.eye(len(H))
        return {checkpoint.head: H}

    def _outside(self, checkpoint: Checkpoint) -> list[str]:
        """Embedding and head, once if they are one matrix; nothing when they are left alone."""
        if not self.head_bits:
            return []
        if checkpoint.tied:
            return [checkpoint.head]
        return [m for m in (checkpoint.embedding, checkpoint.head) if m]

    def _save(self, checkpoint: Checkpoint, walk: Walk, out: Path) -> None:
        copy_side_files(checkpoint.path, out)
        write_shards(out, self._tensors(checkpoint, walk))
        write_config(out, checkpoint.config, self._quantization_config(checkpoint))

    def _tensors(self, checkpoint: Checkpoint, walk: Walk) -> Iterator[tuple[str, Tensor]]:
        done: set[str] = set()
        moments = self._head_moments(checkpoint, walk)
        for name, tensor in walk.tensors():
            if not name.endswith(_LOSS):
                done.add(name.rpartition(".")[0] + ".weight")
                yield name, tensor
        for module in self._outside(checkpoint):
            source = checkpoint.embedding if checkpoint.tied else module
            packed = self._quantize(checkpoint.tensor(f"{source}.weight"), moments.get(module), self.head_grid)
            for part, tensor in to_gptq(packed).items():
                yield f"{module}.{part}", tensor
            done.add(f"{module}.weight")
            if source == checkpoint.embedding:
                # No reader of the GPTQ layout knows a packed embedding: others get it as fp16.
                done.add(f"{source}.weight")
                yield f"{source}.weight", packed.dequantize().half()
        for name in checkpoint.names():
            if name not in done:
                yield name, checkpoint.tensor(name)

    def _quantization_config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What other readers of the layout look for, in GPTQModel's words."""
        head = {"bits": self.head_bits, "group_size": self.head_group, "sym": self.symmetric}
        return {
            "quant_method": "gptq", "checkpoint_format": "gptq", "bits": self.bits, "group_size": self.group,
            "sym": self.symmetric, "desc_act": False, "static_groups": True, "true_sequential": False,
            "damp_percent": self.damp, "lm_head": bool(self.head_bits and checkpoint.head),
            "dynamic": {f"+:^{re.escape(m)}$": head for m in self._outside(checkpoint)},
            "meta": {"quantizer": [f"greenllm:{__version__}"]},
        }  # fmt: skip


def _summary(checkpoint: Checkpoint, losses: dict[str, float]) -> dict[str, Any]:
    worst = sorted(losses.items(), key=lambda x: -x[1])[:5]
    return {
        "tied": checkpoint.tied,
        "layers": len(losses),
        "mean_relative_error": sum(losses.values()) / max(1, len(losses)),
        "worst_layers": {n: round(v, 6) for n, v in worst},
    }


def _loss(W: Tensor, packed: Packed, H: Tensor | None) -> Tensor:
    """Squared output error over squared output; of the weights where there is no H."""
    if H is None:
        return (packed.dequantize() - W).square().sum() / W.square().sum().clamp_min(1e-12)
    return error_in(H, W, packed).sum() / ((W @ H) * W).sum().clamp_min(1e-12)


def _fits(grid: Grid, weight: Tensor, name: str, option: str) -> None:
    k = weight.shape[1]
    try:
        grid.size(k)
    except GreenError as e:
        raise GreenError(f"{name}: {e.what}", e.fix.replace("--group", f"--{option}")) from e
    if k * grid.bits % 32:
        raise GreenError(
            f"{name}: {k} inputs of {grid.bits} bits do not fill whole 32-bit words of the GPTQ layout.",
            "Choose other bits, or prune to a multiple of 32.",
        )
