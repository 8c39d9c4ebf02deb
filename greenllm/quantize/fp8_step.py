"""The step that makes weights and inputs of the blocks' linears 8-bit floats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.quantize import fp8
from greenllm.quantize.activations import Ranges
from greenllm.quantize.linear import linears, set_weight, weight_of
from greenllm.quantize.run import batches, quantizable
from greenllm.quantize.step import estimate
from greenllm.save import copy_side_files, write_config, write_shards
from greenllm.step import Context, Estimate
from greenllm.walk import Walk

_LOSS = ".loss"


@dataclass(config={"extra": "forbid"})
class Fp8:
    """Make weights and inputs of the linear layers 8-bit floats (E4M3), for TensorRT on GPUs that have them."""

    name: ClassVar[str] = "fp8"
    calibrated: ClassVar[bool] = True

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse what is quantized already, what reads no text, and layers that the format has no place for."""
        if checkpoint.quantized:
            raise GreenError(f"{checkpoint.path} is quantized already.", "Start from the checkpoint it was made of.")
        if checkpoint.input != "input_ids":
            raise GreenError(
                f"TensorRT engines are made of models of text; this one does {checkpoint.task}.", "Use quantize."
            )
        sideways = [n for n, m in quantizable(checkpoint)[0].items() if type(m).__name__ == "Conv1D"]
        if sideways:
            raise GreenError(f"{sideways[0]} is a Conv1D, which compressed-tensors does not store.", "Use quantize.")

    def estimate(self, checkpoint: Checkpoint, tokens: int) -> Estimate:
        """That of quantization to nearest, with two forward passes."""
        found = estimate(checkpoint, tokens, head=False)
        return Estimate(found.seconds / 2, found.peak_bytes)

    def run(self, checkpoint: Checkpoint, out: Path, context: Context) -> dict[str, Any]:
        """Walk, see what the inputs are, round; embedding, head and the rest stay as they are.

        Raises:
            GreenError: see :meth:`check`; or inputs that are NaN or infinite.
        """
        self.check(checkpoint)
        walk = Walk(checkpoint, [{checkpoint.input: b} for b in batches(context.samples())], context.work)
        context.progress.stage(f"rounding {len(walk.blocks)} blocks", len(walk.blocks))
        walk.run(_round, context.progress)
        walk.forget()
        copy_side_files(checkpoint.path, out)
        write_shards(out, walk.written(_LOSS))
        inside = quantizable(checkpoint)[0]
        write_config(out, checkpoint.config, fp8.words([n for n in linears(walk.model) if n not in inside]))
        losses = [float(t) for n, t in walk.tensors() if n.endswith(_LOSS)]
        return {"tied": checkpoint.tied, "layers": len(losses), "mean_relative_error": sum(losses) / len(losses)}


def _round(name: str, block: nn.Module, forward: Callable[[], None]) -> dict[str, Tensor]:
    """Round the linears of one block; what follows sees their rounded weights."""
    layers, kept = linears(block), dict[str, Tensor]()
    ranges = Ranges(layers)
    with ranges.watching():
        forward()
    for short, layer in layers.items():
        W = weight_of(layer)
        try:
            inputs = fp8.Float8Grid(float(fp8.scale_of(ranges.reach(short))))
        except GreenError as e:
            raise GreenError(f"{name}.{short}: {e.what}", e.fix) from e
        weight = fp8.round_to_float8(W)
        rounded = weight.dequantize()
        kept[f"{name}.{short}{_LOSS}"] = (rounded - W).square().sum() / W.square().sum().clamp_min(1e-12)
        kept |= {f"{name}.{short}.{part}": t for part, t in fp8.to_stored(weight, inputs).items()}
        set_weight(layer, rounded)
    return kept
