"""The step that makes a checkpoint one of bitsandbytes: NF4, FP4 or LLM.int8(), by its own kernels."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.quantize.bnb import unpack
from greenllm.quantize.linear import linears, weight_of
from greenllm.quantize.run import quantizable
from greenllm.save import copy_side_files, write_config, write_shards
from greenllm.step import BASE_BYTES, Context, Estimate

Kind = Literal["nf4", "fp4", "int8"]


@dataclass(config={"extra": "forbid"})
class BitsAndBytes:
    """Make the weights of the linear layers NF4, FP4 or LLM.int8(), in the format of bitsandbytes."""

    name: ClassVar[str] = "bitsandbytes"

    kind: Kind = Field("nf4", description="nf4, fp4 (4 bits) or int8 (LLM.int8(), a scale a row)")
    block: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = Field(
        64, description="nf4, fp4: neighbouring inputs that share a scale"
    )
    double_quant: bool = Field(False, description="nf4, fp4: make the scales 8-bit too")

    @property
    def calibrated(self) -> bool:
        """It needs no calibration samples."""
        return False

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse weights that are quantized already and blocks that do not divide, by layer name."""
        if importlib.util.find_spec("bitsandbytes") is None:
            raise GreenError("bitsandbytes is not installed.", "pip install 'greenllm[bnb]'")
        if checkpoint.quantized:
            raise GreenError(f"{checkpoint.path} is quantized already.", "Start from the checkpoint it was made of.")
        for name, layer in quantizable(checkpoint)[0].items():
            k = weight_of(layer).shape[1]
            if self.kind != "int8" and k % self.block:
                raise GreenError(f"{name}: blocks of {self.block} do not divide {k} inputs.", "Choose another --block.")

    def estimate(self, checkpoint: Checkpoint, tokens: int) -> Estimate:
        """A pass over the weights, one in memory at a time beside the shard being written."""
        del tokens
        largest = max(p.numel() for p in checkpoint.skeleton().parameters())
        shard = min(6e8, 4 * checkpoint.parameters)
        return Estimate(5 + checkpoint.parameters / 2e7, BASE_BYTES + 16 * largest + shard)

    def run(self, checkpoint: Checkpoint, out: Path, context: Context) -> dict[str, Any]:
        """Quantize the linears of the blocks; embedding, head and the rest stay as they are, as in bitsandbytes."""
        self.check(checkpoint)
        inside = quantizable(checkpoint)[0]
        losses: dict[str, float] = {}
        context.progress.stage(f"quantizing {len(inside)} linears", len(inside))
        copy_side_files(checkpoint.path, out)
        write_shards(out, self._tensors(checkpoint, inside, losses, context))
        write_config(out, checkpoint.config, self._quantization_config(checkpoint, inside))
        return {
            "tied": checkpoint.tied,
            "layers": len(losses),
            "mean_relative_error": sum(losses.values()) / max(1, len(losses)),
        }

    def _tensors(
        self, checkpoint: Checkpoint, inside: dict[str, nn.Module], losses: dict[str, float], context: Context
    ) -> Iterator[tuple[str, Tensor]]:
        for name in checkpoint.names():
            module, _, leaf = name.rpartition(".")
            value = checkpoint.tensor(name)
            if module not in inside or leaf != "weight":
                yield name, value
                continue
            W = value.T.contiguous() if type(inside[module]).__name__ == "Conv1D" else value
            try:
                parts = pack(W, self.kind, self.block, double_quant=self.double_quant)
            except GreenError as e:
                raise GreenError(f"{module}: {e.what}", e.fix) from e
            error = unpack(parts).dequantize() - W
            losses[module] = float(error.square().sum() / W.square().sum().clamp_min(1e-12))
            context.progress.advance()
            for part, tensor in parts.items():
                yield f"{module}.{part}", tensor

    def _quantization_config(self, checkpoint: Checkpoint, inside: dict[str, nn.Module]) -> dict[str, Any]:
        """What transformers writes itself, with every other linear named: it would make those 4-bit when it loads."""
        from transformers import BitsAndBytesConfig

        others = [n for n in linears(checkpoint.skeleton()) if n not in inside]
        if self.kind == "int8":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=others).to_dict()
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=self.kind, bnb_4bit_use_double_quant=self.double_quant,
            llm_int8_skip_modules=others,
        ).to_dict()  # fmt: skip


def pack(W: Tensor, kind: Kind, block: int, *, double_quant: bool) -> dict[str, Tensor]:
    """The tensors of a float32 weight [N, K] in bitsandbytes' format (see :mod:`greenllm.quantize.bnb`).

    Raises:
        GreenError: a weight past the range of fp16, from which LLM.int8() starts.
    """
    from bitsandbytes import functional

    if kind == "int8":
        half = W.half()
        if not torch.isfinite(half).all():
            raise GreenError("LLM.int8() starts from fp16, and a weight is past its range.", "Take --kind nf4.")
        codes, largest, _ = functional.int8_vectorwise_quant(half)
        return {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    octets, state = functional.quantize_4bit(W, blocksize=block, quant_type=kind, compress_statistics=double_quant)
    return {"weight": octets} | {f"weight.{part}": t for part, t in state.as_dict(packed=True).items()}
