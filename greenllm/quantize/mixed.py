"""The step that gives each linear its own bits and group size: the least loss within a budget."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.kinds import GENERATION
from greenllm.quantize.allocate import Option, allocate
from greenllm.quantize.fisher import Fisher, fisher
from greenllm.quantize.grid import Grid
from greenllm.quantize.linear import weight_of
from greenllm.quantize.run import Quantizer, Rounding, batches, check_grids, quantizable
from greenllm.quantize.sensitivity import conditional_variances, predicted_kl
from greenllm.quantize.step import estimate
from greenllm.step import BASE_BYTES, Context, Estimate, flops_per_second

_TOKENS = 4096  # enough for second moments; the backward pass is the dear part
_ROWS = 8192
_OTHER = 32  # bits of a weight that stays as it is (norms, biases)


@dataclass(config={"extra": "forbid"})
class Mixed:
    """Give each linear its own bits and group size: the least predicted loss within a budget."""

    name: ClassVar[str] = "mixed"
    calibrated: ClassVar[bool] = True

    bits: float = Field(4.6, gt=0, le=16, description="bits of a weight on average, everything included")
    size: float = Field(0, ge=0, description="MB of all weights; overrides bits")
    grids: str = Field("4g32 4g64 8g32", description="what to choose from: bits, g, group; an a behind for zero points")
    act_order: bool = Field(True, description="round the inputs that matter most first")
    polish: int = Field(1, ge=0, le=20, description="turns of solving for scales and improving codes afterwards")
    damp: float = Field(0.01, gt=0, le=1, description="share of the mean diagonal added to the Hessian")

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse what cannot be measured, budgets below the smallest choice, and modules that fit no grid."""
        if checkpoint.task != GENERATION:
            raise GreenError(f"{checkpoint.path}: sensitivity is measured on text generators.", "Use quantize.")
        check_grids(checkpoint, {})
        least = [min(_size(n, k, g) for g in self._fitting(name, k)) for name, (n, k) in _shapes(checkpoint).items()]
        if sum(least) > self._budget(checkpoint):
            fewest = (sum(least) + self._rest(checkpoint)) / checkpoint.parameters
            raise GreenError(f"No choice from {self.grids} is below {fewest:.2f} bits a weight.", "Raise --bits.")

    def estimate(self, checkpoint: Checkpoint, tokens: int) -> Estimate:
        """That of :class:`Quantize`, and a forward and backward pass of the whole model in memory."""
        after = estimate(checkpoint, tokens, head=True)
        shapes = _shapes(checkpoint)
        moments = sum({k * k for _, k in shapes.values()}) * 4 * len(shapes) / 2
        seconds = 6 * checkpoint.parameters * min(tokens, _TOKENS) / flops_per_second()
        seconds += len(self.grids.split()) * checkpoint.parameters / 2e7
        peak = BASE_BYTES + 4 * checkpoint.parameters + moments + 16 * 512 * int(checkpoint.config.vocab_size)
        return Estimate(after.seconds + seconds, max(after.peak_bytes, peak))

    def run(self, checkpoint: Checkpoint, out: Path, context: Context) -> dict[str, Any]:
        """Measure, choose, quantize; the choice of each module is in what it returns."""
        self.check(checkpoint)
        units = self._units(checkpoint, context)
        chosen = allocate(units, self._budget(checkpoint))
        grids = {name: _parse(o.what[1]) for o in chosen for name in o.what[0]}
        rounding = Rounding("gptq", self.damp, self.act_order, polish=self.polish)
        found = Quantizer(checkpoint, grids, rounding).run(out, context)
        total = sum(o.size for o in chosen) + self._rest(checkpoint)
        return found | {
            "bits_per_weight": round(total / checkpoint.parameters, 4),
            "predicted_kl": round(sum(o.loss for o in chosen), 5),
            "choice": {name: o.what[1] for o in chosen for name in o.what[0]},
        }

    def _budget(self, checkpoint: Checkpoint) -> float:
        """Bits for the modules that are quantized."""
        total = self.size * 8e6 if self.size else self.bits * checkpoint.parameters
        return total - self._rest(checkpoint)

    def _rest(self, checkpoint: Checkpoint) -> float:
        return _OTHER * (checkpoint.parameters - sum(n * k for n, k in _shapes(checkpoint).values()))

    def _fitting(self, name: str, inputs: int) -> list[str]:
        labels = self.grids.split()
        found = [g for g in labels if inputs % _parse(g).group == 0]
        if not found:
            raise GreenError(f"{name}: none of {self.grids} divides its {inputs} inputs.", "Add one to --grids.")
        return found

    def _units(self, checkpoint: Checkpoint, context: Context) -> list[list[Option[tuple[list[str], str]]]]:
        """Options of each set of modules that read the same inputs; measured once, kept for a resumed run."""
        context.work.mkdir(parents=True, exist_ok=True)
        file = context.work / "sensitivity.json"
        if not file.exists():
            part = file.with_suffix(".part")
            part.write_text(json.dumps(self._measure(checkpoint, context)), encoding="utf-8")
            part.replace(file)
        measured: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8"))
        shapes = _shapes(checkpoint)
        units = []
        for names, losses in measured.items():
            members = names.split()
            sizes = {g: sum(_size(*shapes[m], g) for m in members) for g in losses}
            units.append([Option((members, g), sizes[g], loss) for g, loss in losses.items()])
        return units

    def _measure(self, checkpoint: Checkpoint, context: Context) -> dict[str, dict[str, float]]:
        """Predicted loss by unit (names, blanks between) and grid."""
        ids = context.samples()
        ids = ids[: max(1, _TOKENS // ids.shape[1])]
        small = [part for batch in batches(ids) for part in batch.split(max(1, 512 // ids.shape[1]))]
        model = checkpoint.load_model()
        names = _shapes(checkpoint)
        context.progress.stage("measuring sensitivities", len(small) + len(names))
        layers = {n: model.get_submodule(n) for n in names if checkpoint.tied or n != checkpoint.embedding}
        found = fisher(model, layers, small, context.seed, context.progress)
        units: dict[str, list[str]] = defaultdict(list)
        for name in names:
            units[found.leader.get(name, name)].append(name)
        losses = {}
        for leader, members in units.items():
            variances = conditional_variances(found.A.pop(leader), self.damp) if leader in layers else None
            unit: dict[str, float] = defaultdict(float)
            for name in members:
                W = weight_of(model.get_submodule(name))
                looked_up = name not in layers or (checkpoint.tied and name == checkpoint.head)
                for grid in self._fitting(name, W.shape[1]):
                    unit[grid] += _loss(W, found, name, grid, variances, looked_up=looked_up)
                context.progress.advance()
            losses[" ".join(members)] = dict(unit)
        return losses


def _loss(W: Tensor, found: Fisher, name: str, label: str, variances: Tensor | None, *, looked_up: bool) -> float:
    """Of a matrix that is multiplied (then its inputs have variances), looked up as an embedding, or both."""
    grid, total = _parse(label), 0.0
    for a in range(0, len(W), _ROWS):
        rows = slice(a, a + _ROWS)
        if variances is not None:
            total += predicted_kl(W[rows], variances, found.g[name][rows], grid)
        if looked_up:
            total += predicted_kl(W[rows], found.embedding, found.reads[rows], grid)
    return total


def _parse(label: str) -> Grid:
    """``4g32`` or, with zero points, ``4g32a``."""
    match = re.fullmatch(r"([2-8])g(\d+)(a?)", label)
    if not match:
        raise GreenError(f"{label}: no grid is written like this.", "For instance 4g32, or 4g32a with zero points.")
    return Grid(int(match[1]), int(match[2]), not match[3])


def _size(n: int, k: int, label: str) -> float:
    """Bits of a weight [n, k]."""
    grid = _parse(label)
    return n * k * (grid.bits + (16 if grid.symmetric else 16 + grid.bits) / grid.group)


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """[N, K] of every module that can be quantized and is measured."""
    inside, outside = quantizable(checkpoint)
    model = checkpoint.skeleton()
    every = {**inside, **{n: model.get_submodule(n) for n in outside}}
    return {n: (weight_of(m).shape[0], weight_of(m).shape[1]) for n, m in every.items()}
