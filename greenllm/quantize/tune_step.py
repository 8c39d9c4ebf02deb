"""The step that lets a quantized checkpoint learn from the one it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from greenllm import artifact
from greenllm.checkpoint import Checkpoint, open_checkpoint
from greenllm.errors import GreenError
from greenllm.gpu import compute_type
from greenllm.quantize.fakequant import FakeQuant
from greenllm.quantize.packed import Packed
from greenllm.quantize.run import layout
from greenllm.quantize.tune import Rates, Tuner, as_type
from greenllm.save import copy_side_files, write_config, write_shards
from greenllm.step import BASE_BYTES, Context, Estimate, flops_per_second

_HELD_OUT = 16  # one of so many samples is kept to measure on


@dataclass(config={"extra": "forbid"})
class Tune:
    """Let quantized weights learn from the unquantized model, end to end; bits and bytes stay what they are."""

    name: ClassVar[str] = "tune"
    calibrated: ClassVar[bool] = True

    steps: int = Field(100, ge=1, description="updates")
    rows: int = Field(8, ge=1, description="samples an update")
    rate: float = Field(3e-4, ge=0, le=1, description="learning rate of codes, in steps of their grid; 0 holds them")
    scale_rate: float = Field(2e-3, ge=0, le=1, description="learning rate of scales, relative; 0 holds them")
    norm_rate: float = Field(2e-4, ge=0, le=1, description="learning rate of norms and biases; 0 holds them")
    compute: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="type to compute in; auto: bfloat16 where the processor multiplies it"
    )
    teacher: str = Field("", description="the dense model that was quantized; a recipe knows its own")

    def check(self, checkpoint: Checkpoint) -> None:
        """Nothing to refuse before there is a quantized checkpoint: see :meth:`run`."""

    def estimate(self, checkpoint: Checkpoint, tokens: int) -> Estimate:
        """Each token goes forward twice and backward once; weights, their latent copies and two moments in memory."""
        n = checkpoint.parameters
        length = 256
        speed = flops_per_second() * (3 if compute_type(self.compute) == torch.bfloat16 else 1)
        seconds = self.steps * (8 * n * min(tokens, self.rows * length) / speed + n / 5e7)
        return Estimate(10 + seconds, BASE_BYTES + 24 * n + 5e4 * int(getattr(checkpoint.config, "vocab_size", 0)))

    def run(self, checkpoint: Checkpoint, out: Path, context: Context) -> dict[str, Any]:
        """Learn, keep whichever is better on held-out samples, and write it in the GPTQ tensor layout.

        Raises:
            GreenError: it is not quantized, not to integers, not made of the teacher, or the loss became NaN.
        """
        teacher = self._teacher(checkpoint, context)
        packed = _integers(checkpoint)
        ids = context.samples()
        held = max(1, len(ids) // _HELD_OUT)
        if held == len(ids):
            raise GreenError("One sample is none to learn from and to measure on.", "Give more with --samples.")
        dtype = compute_type(self.compute)
        learning = {n: FakeQuant.of(teacher.tensor(_dense(checkpoint, n)), p) for n, p in packed.items()}
        tuner = Tuner(
            checkpoint.load_model(), as_type(teacher.load_model(), dtype), learning,
            Rates(self.rate, self.scale_rate, self.norm_rate), dtype, context.work,
        )  # fmt: skip
        before = tuner.measure(ids[:held])
        context.progress.stage(f"learning from the source, in {str(dtype).removeprefix('torch.')}", self.steps)
        tuner.run(ids[held:], self.steps, self.rows, context.seed, context.progress)
        after = tuner.measure(ids[:held])
        found = {"tied": checkpoint.tied, "compute": str(dtype), "divergence_before": before, "divergence_after": after}
        if after >= before:
            context.progress.note(f"WARNING. Nothing was learned ({before:.4g} → {after:.4g}); kept as it was.")
            _write(checkpoint, out, packed, {})
            return found | {"kept": "before"}
        others = {n: p.data for n, p in tuner.others.items()}
        _write(checkpoint, out, {n: f.learned() for n, f in learning.items()}, others)
        return found | {"kept": "after"}

    def _teacher(self, checkpoint: Checkpoint, context: Context) -> Checkpoint:
        found = open_checkpoint(self.teacher) if self.teacher else context.dense
        if found is None or found.quantized:
            raise GreenError("tune learns from the dense model that was quantized.", "Name it with --teacher.")
        if found.names() != checkpoint.names() or found.config.vocab_size != checkpoint.config.vocab_size:
            raise GreenError(f"{checkpoint.path} was not made of {found.path}: other weights.", "See --teacher.")
        return found


def _integers(checkpoint: Checkpoint) -> dict[str, Packed]:
    packed = dict(checkpoint.packed())
    if not packed:
        raise GreenError(f"{checkpoint.path} is not quantized; there is nothing to tune.", "Put quantize before it.")
    if other := [n for n, p in packed.items() if not isinstance(p, Packed)]:
        raise GreenError(f"{other[0]} holds no integers; tune learns those.", "Take quantize instead of bitsandbytes.")
    steps = artifact.read(checkpoint.path).manifest.steps if artifact.is_artifact(checkpoint.path) else []
    if any(s.parameters.get("awq") for s in steps):
        raise GreenError("AWQ moved scales between the weights; the teacher's are no longer theirs.", "Leave out awq.")
    return {n: p for n, p in packed.items() if isinstance(p, Packed)}


def _dense(checkpoint: Checkpoint, module: str) -> str:
    """The teacher's name of a module's weight; a tied head's is the embedding's."""
    return f"{checkpoint.embedding if checkpoint.tied and module == checkpoint.head else module}.weight"


def _write(checkpoint: Checkpoint, out: Path, packed: dict[str, Packed], others: dict[str, Tensor]) -> None:
    """The same checkpoint with other numbers in it."""
    copy_side_files(checkpoint.path, out)
    write_shards(out, _tensors(checkpoint, packed, others))
    write_config(out, checkpoint.config, checkpoint.quantization)


def _tensors(
    checkpoint: Checkpoint, packed: dict[str, Packed], others: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    done = set[str]()
    for module, weight in packed.items():
        for name, tensor in layout(checkpoint, module, weight):
            yield name, tensor
        done |= {f"{module}.weight", _dense(checkpoint, module)}
    for name in checkpoint.names():
        if name not in done:
            yield name, others.get(name, checkpoint.tensor(name))
