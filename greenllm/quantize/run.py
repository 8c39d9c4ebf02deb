"""Quantize a checkpoint on given grids: walk its blocks, round their linears, pack, save."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from greenllm import __version__
from greenllm.blocks import stacks_of
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.kinds import CAPTIONS, IMAGES, PAIRS, SPEECH, VLM
from greenllm.quantize.activations import InputGrid, Kind, Ranges, words
from greenllm.quantize.awq import scale_block
from greenllm.quantize.gptq import error_in, gptq
from greenllm.quantize.grid import Grid
from greenllm.quantize.hqq import hqq
from greenllm.quantize.linear import Moments, linears, set_weight, weight_of
from greenllm.quantize.packed import Packed, to_gptq
from greenllm.quantize.rtn import round_to_nearest
from greenllm.quantize.smoothquant import smooth_block
from greenllm.save import copy_side_files, write_config, write_shards
from greenllm.step import Context
from greenllm.walk import Batch, Walk

_BATCH_TOKENS = 2048
_PATCH = 16 * 16  # pixels of an image that count as a token
MOST_TOKENS = 1 << 15  # of calibration: second moments gain nothing from more
_LOSS, _INPUT = ".loss", ".input"  # notes about a module beside its tensors
_LOOKUP = 0.1  # weight of a tied matrix's plain error as an embedding, beside its error as a head

Grids = dict[str, Grid]  # by module name; a tied embedding goes by its head's


@dataclass(frozen=True)
class Rounding:
    """How a weight is put onto its grid; the fields are those of the step."""

    method: str
    damp: float
    act_order: bool
    awq: bool = False
    polish: int = 1
    smooth: float = 0

    def __call__(self, W: Tensor, H: Tensor | None, grid: Grid) -> Packed:
        """Round W [N, K]; H [K, K] is None for an embedding and where there is no data."""
        if self.method == "hqq":
            return hqq(W, grid)
        if self.method == "rtn" or H is None:
            return round_to_nearest(W, grid, None if H is None else H.diagonal())
        polish = 0 if grid.bits == 8 else self.polish  # noqa: PLR2004 - a byte's rounding costs nothing to speak of
        return gptq(W, H, grid, damp=self.damp, act_order=self.act_order, polish=polish)

    @property
    def calibrated(self) -> bool:
        """Whether it needs H."""
        return self.method == "gptq" or self.awq or self.smooth > 0


def quantizable(checkpoint: Checkpoint) -> tuple[dict[str, nn.Module], list[str]]:
    """What there is to quantize: linears of the blocks by full name (on meta), and embedding, head and projections.

    Embedding and head are named once, as the head, if they are one matrix.
    """
    model = checkpoint.skeleton()
    inside = {f"{p}.{name}": layer for p, blocks in stacks_of(model) for name, layer in linears(blocks).items()}
    outside = [checkpoint.head] if checkpoint.tied else [m for m in (checkpoint.embedding, checkpoint.head) if m]
    return inside, [*outside, *checkpoint.projections]


def check_grids(checkpoint: Checkpoint, grids: Grids, options: dict[str, str] | None = None) -> None:
    """Refuse weights that are integers already and group sizes that do not divide, by layer name.

    Args:
        checkpoint: what is to be quantized.
        grids: the grid of each module.
        options: the option that sets a module's group, where it is not ``group``.
    """
    if checkpoint.quantized:
        raise GreenError(f"{checkpoint.path} is quantized already.", "Start from the checkpoint it was made of.")
    model = checkpoint.skeleton()
    for name, grid in grids.items():
        k = weight_of(model.get_submodule(name)).shape[1]
        try:
            grid.size(k)
        except GreenError as e:
            fix = e.fix.replace("--group", f"--{(options or {}).get(name, 'group')}")
            raise GreenError(f"{name}: {e.what}", fix) from e
        if k * grid.bits % 32:
            raise GreenError(
                f"{name}: {k} inputs of {grid.bits} bits do not fill whole 32-bit words of the GPTQ layout.",
                "Choose other bits, or prune to a multiple of 32.",
            )


def batches(ids: Tensor) -> list[Tensor]:
    """Samples in batches of one shape; what is too much or does not fill the last one is left out.

    Args:
        ids: tokens [count, length], or pixels [count, C, H, W].
    """
    length = ids.shape[1] if ids.dim() == 2 else max(1, ids[0, 0].numel() // _PATCH)  # noqa: PLR2004 - tokens
    ids = ids[: max(1, MOST_TOKENS // length)]
    rows = max(1, min(len(ids), _BATCH_TOKENS // length))
    return list(ids[: len(ids) // rows * rows].split(rows))


def _nothing(checkpoint: Checkpoint) -> Tensor | list[Batch]:
    """A sample of zeros, where what is seen does not matter."""
    if checkpoint.task == SPEECH:
        from greenllm import hearing

        return hearing.blank(checkpoint)
    if checkpoint.task == PAIRS:
        from greenllm import pairing

        return pairing.blank(checkpoint)
    if checkpoint.task == CAPTIONS:
        from greenllm import captioning

        return captioning.blank(checkpoint)
    if checkpoint.task == VLM:
        from greenllm import looking

        return looking.blank(checkpoint)
    if checkpoint.task in IMAGES:
        return torch.zeros(1, *checkpoint.image_shape)
    return torch.zeros(1, 8, dtype=torch.int64)


def layout(checkpoint: Checkpoint, module: str, packed: Packed) -> Iterator[tuple[str, Tensor]]:
    """The stored tensors of one module.

    No reader of the GPTQ layout knows a packed embedding: others get it as fp16 beside its codes.
    """
    for part, tensor in to_gptq(packed).items():
        yield f"{module}.{part}", tensor
    if module == checkpoint.embedding or (checkpoint.tied and module == checkpoint.head):
        yield f"{checkpoint.embedding}.weight", packed.dequantize().half()


class Quantizer:
    """One run over a checkpoint.

    Args:
        checkpoint: dense.
        grids: the grid of each module; modules without one stay as they are.
        rounding: how.
        activations: what becomes of the inputs of the blocks' linears.
    """

    def __init__(self, checkpoint: Checkpoint, grids: Grids, rounding: Rounding, activations: Kind = "float") -> None:
        self.checkpoint, self.grids, self.rounding = checkpoint, grids, rounding
        self.activations = activations
        self.watches = activations in ("static", "symmetric")
        self.outside = [name for name in quantizable(checkpoint)[1] if name in grids]
        ((self.common, _),) = Counter(g for n, g in grids.items() if n not in self.outside).most_common(1)

    def run(self, out: Path, context: Context) -> dict[str, Any]:
        """Write a checkpoint in the GPTQ tensor layout into ``out``; returns what the manifest keeps."""
        seen = context.samples() if self.rounding.calibrated or self.watches else _nothing(self.checkpoint)
        given = seen if isinstance(seen, list) else [{self.checkpoint.input: b} for b in batches(seen)]
        walk = Walk(self.checkpoint, given, context.work)
        context.progress.stage(f"quantizing {len(walk.blocks)} blocks", len(walk.blocks))
        walk.run(self._block, context.progress)
        copy_side_files(self.checkpoint.path, out)
        write_shards(out, self._tensors(walk))
        write_config(out, self.checkpoint.config, self._quantization_config(self._inputs(walk)))
        losses = {n.removesuffix(_LOSS): float(t) for n, t in walk.tensors() if n.endswith(_LOSS)}
        return _summary(self.checkpoint, losses)

    def _block(self, name: str, block: nn.Module, forward: Callable[[], None]) -> dict[str, Tensor]:
        layers = {n: m for n, m in linears(block).items() if f"{name}.{n}" in self.grids}
        kept = self._scale(name, block, forward)
        moments, ranges = Moments(layers), Ranges(layers)
        with ExitStack() as stack:
            if self.rounding.calibrated:
                stack.enter_context(moments.watching())
            if self.watches:
                stack.enter_context(ranges.watching())
            if self.rounding.calibrated or self.watches:
                forward()
        for short, layer in layers.items():
            full, W = f"{name}.{short}", weight_of(layer).contiguous()
            H = moments.of(short) if self.rounding.calibrated else None
            try:
                packed = self.rounding(W, H, self.grids[full])
                if self.watches:
                    found = ranges.grid(short, symmetric=self.activations == "symmetric")
                    kept[f"{full}{_INPUT}"] = torch.tensor([found.scale, found.zero], dtype=torch.float64)
            except GreenError as e:
                raise GreenError(f"{full}: {e.what}", e.fix) from e
            kept[f"{full}{_LOSS}"] = _loss(W, packed, H)
            set_weight(layer, packed.dequantize())
            kept |= {f"{full}.{part}": t for part, t in to_gptq(packed).items()}
        return kept

    def _scale(self, name: str, block: nn.Module, forward: Callable[[], None]) -> dict[str, Tensor]:
        if self.rounding.smooth:
            return smooth_block(name, block, forward, self.rounding.smooth)
        # AWQ looks at one grid a block; the readers of one tensor share theirs in any case
        return scale_block(name, block, forward, self.common) if self.rounding.awq else {}

    def _inputs(self, walk: Walk) -> dict[str, InputGrid | None]:
        """The grids of the inputs, as the kind of activations wants them."""
        if self.activations == "dynamic":
            return {name: None for name in self.grids if name not in self.outside}
        notes = ((n.removesuffix(_INPUT), t.tolist()) for n, t in walk.tensors() if n.endswith(_INPUT))
        return {name: InputGrid(scale, int(zero)) for name, (scale, zero) in notes}

    def _head_moments(self, walk: Walk) -> dict[str, Tensor]:
        """H of the inputs of head and projections after the quantized blocks. An embedding has none."""
        if not self.rounding.calibrated:
            return {}
        heads = [h for h in (self.checkpoint.head, *self.checkpoint.projections) if h in self.outside]
        found = {
            head: torch.stack([x.T @ x for x in walk.head_inputs(walk.model.get_submodule(head))]).sum(0)
            for head in heads
        }
        if self.checkpoint.tied and self.checkpoint.head in found:
            H = found[self.checkpoint.head]
            H += _LOOKUP * H.diagonal().mean() * torch.eye(len(H))
        return found

    def _tensors(self, walk: Walk) -> Iterator[tuple[str, Tensor]]:
        checkpoint, done = self.checkpoint, set[str]()
        moments = self._head_moments(walk)
        walk.forget()
        for name, tensor in walk.tensors():
            if not name.endswith((_LOSS, _INPUT)):
                done |= {name, name.rpartition(".")[0] + ".weight"}
                yield name, tensor
        for module in self.outside:
            source = checkpoint.embedding if checkpoint.tied and module == checkpoint.head else module
            packed = self.rounding(checkpoint.tensor(f"{source}.weight"), moments.get(module), self.grids[module])
            yield from layout(checkpoint, module, packed)
            done |= {f"{module}.weight", f"{source}.weight"}
        for name in checkpoint.names():
            if name not in done:
                yield name, checkpoint.tensor(name)

    def _quantization_config(self, inputs: dict[str, InputGrid | None]) -> dict[str, Any]:
        """What other readers of the layout look for, in GPTQModel's words."""
        other = {n: g for n, g in self.grids.items() if g != self.common or n in self.outside}
        return {
            "quant_method": "gptq", "checkpoint_format": "gptq", **_words(self.common), "desc_act": False,
            "static_groups": True, "true_sequential": False, "damp_percent": self.rounding.damp,
            "lm_head": self.checkpoint.head in self.outside,
            "dynamic": {f"+:^{re.escape(n)}$": _words(g) for n, g in other.items()},
            "meta": {"quantizer": [f"greenllm:{__version__}"]} | ({"inputs": words(inputs)} if inputs else {}),
        }  # fmt: skip


def _words(grid: Grid) -> dict[str, Any]:
    return {"bits": grid.bits, "group_size": grid.group, "sym": grid.symmetric}


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
