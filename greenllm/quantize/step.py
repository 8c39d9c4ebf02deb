"""The step that makes weights integers, all on one grid; embedding and head may have their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.kinds import VLM, WRITING
from greenllm.quantize.activations import Kind
from greenllm.quantize.grid import Grid
from greenllm.quantize.linear import weight_of
from greenllm.quantize.run import MOST_TOKENS, Grids, Quantizer, Rounding, check_grids, quantizable
from greenllm.step import BASE_BYTES, Context, Estimate, flops_per_second

_LEAST = 16  # inputs that share a scale: kernels have no smaller groups


@dataclass(config={"extra": "forbid"})
class Quantize:
    """Make the weights of the linear layers integers, in groups that share a scale."""

    name: ClassVar[str] = "quantize"

    method: Literal["gptq", "rtn", "hqq"] = Field(
        "gptq", description="gptq (calibrated), or without data: rtn (round to nearest), hqq (small l_p error)"
    )
    bits: Literal[2, 3, 4, 8] = Field(4, description="bits of a weight in the blocks")
    group: int = Field(32, ge=-1, description="inputs that share a scale; -1 for the whole row")
    fit: bool = Field(False, description="halve the group of a weight with inputs that it does not divide")
    symmetric: bool = Field(True, description="no zero points: smaller, and the only kind TensorRT reads")
    awq: bool = Field(False, description="first scale inputs by how large they are (calibrated); with rtn: AWQ itself")
    activations: Kind = Field(
        "float",
        description="inputs of the blocks' linears: float, or 8 bit: dynamic (range found at run time), static "
        "(range calibrated), symmetric (static without zero point: the only kind TensorRT reads)",
    )
    smooth: float = Field(
        0, ge=0, le=1, description="SmoothQuant's alpha: outliers of the inputs go into the weights; 0 is off"
    )
    act_order: bool = Field(True, description="gptq: round the inputs that matter most first")
    damp: float = Field(0.01, gt=0, le=1, description="gptq: share of the mean diagonal added to the Hessian")
    polish: int = Field(1, ge=0, le=20, description="gptq: turns of solving for scales and improving codes afterwards")
    parts: str = Field(
        "", description="other bits of what begins with a name, 0 leaves it: model.vision_tower=8 model.projector=0"
    )
    head_bits: Literal[0, 2, 3, 4, 8] = Field(4, description="bits of embedding and head; 0 leaves them as they are")
    head_group: int = Field(32, ge=-1, description="inputs that share a scale in embedding and head")

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration samples."""
        return self.rounding.calibrated or self.activations in ("static", "symmetric")

    @property
    def rounding(self) -> Rounding:
        """How weights are put onto their grids."""
        return Rounding(self.method, self.damp, self.act_order, self.awq, self.polish, self.smooth)

    def grids(self, checkpoint: Checkpoint) -> Grids:
        """The grid of each module that becomes integers."""
        inside, outside = quantizable(checkpoint)
        wanted: dict[str, tuple[int, int]] = dict.fromkeys(inside, (self.bits, self.group))
        if self.head_bits:
            wanted |= dict.fromkeys(outside, (self.head_bits, self.head_group))
        for beginning, bits in self._parts():
            for name in [n for n in (*inside, *outside) if n.startswith(beginning)]:
                wanted[name] = (bits, self.head_group if name in outside else self.group)
        wanted = {name: w for name, w in wanted.items() if w[0]}
        model = checkpoint.skeleton()

        def grid(name: str, bits: int, group: int) -> Grid:
            while self.fit and group > _LEAST and weight_of(model.get_submodule(name)).shape[1] % group:
                group //= 2
            return Grid(bits, group, self.symmetric)

        return {name: grid(name, *w) for name, w in wanted.items()}

    def _parts(self) -> list[tuple[str, int]]:
        """Beginnings of names with the bits of what they name.

        Raises:
            GreenError: something else is written.
        """
        found = []
        for rule in self.parts.split():
            beginning, _, bits = rule.partition("=")
            if not beginning or bits not in ("0", "2", "3", "4", "8"):
                raise GreenError(f"parts: {rule!r} does not say whose bits are 0, 2, 3, 4 or 8.", "NAME=8 NAME=0")
            found.append((beginning, int(bits)))
        return found

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse weights that are integers already and group sizes that do not divide, by layer name."""
        names = [n for part in quantizable(checkpoint) for n in part]
        if other := next((b for b, _ in self._parts() if not any(n.startswith(b) for n in names)), None):
            raise GreenError(
                f"parts: nothing that is quantized has a name that begins with {other!r}.",
                f"There are {', '.join(sorted({'.'.join(n.split('.')[:2]) for n in names}))}.",
            )
        if not self.grids(checkpoint):
            raise GreenError("parts leaves everything as it is.", "Quantize something, or leave the step out.")
        if self.awq and self.smooth:
            raise GreenError("awq and smooth both scale the inputs.", "Choose one of --awq and --smooth.")
        if checkpoint.task in (*WRITING, VLM) and (self.awq or self.smooth or self.activations != "float"):
            raise GreenError(
                f"Of a model that does {checkpoint.task} weights alone become integers.",
                "Leave out --awq, --smooth and --activations.",
            )
        check_grids(checkpoint, self.grids(checkpoint), dict.fromkeys(quantizable(checkpoint)[1], "head-group"))

    def estimate(self, checkpoint: Checkpoint, tokens: int) -> Estimate:
        """Two forward passes and a Hessian a layer, at the speed a matrix product runs here now."""
        found = estimate(
            checkpoint, (1 + self.awq + (self.smooth > 0)) * tokens * self.calibrated, head=bool(self.head_bits)
        )
        if self.method == "hqq":
            found.seconds += checkpoint.parameters / 5e5
        return found

    def run(self, checkpoint: Checkpoint, out: Path, context: Context) -> dict[str, Any]:
        """Walk, quantize, and write a checkpoint in the GPTQ tensor layout into ``out``."""
        self.check(checkpoint)
        return Quantizer(checkpoint, self.grids(checkpoint), self.rounding, self.activations).run(out, context)


def estimate(checkpoint: Checkpoint, tokens: int, *, head: bool) -> Estimate:
    """Time and peak memory of a :class:`Quantizer`; no ``tokens`` means no calibration."""
    layers = list(quantizable(checkpoint)[0].values())
    weights = sum(weight_of(m).numel() for m in layers)
    columns = sum(weight_of(m).shape[1] for m in layers)
    d = int(getattr(checkpoint.words, "hidden_size", weight_of(layers[0]).shape[1]))
    outside = checkpoint.parameters - weights
    blocks = int(getattr(checkpoint.words, "num_hidden_layers", 1))
    peak = BASE_BYTES + 4 * outside * (1 + head) + 16 * weights / blocks + 8 * tokens * d
    tokens = min(tokens, MOST_TOKENS)
    if not tokens:
        return Estimate(5 + weights / 5e7, peak)
    flops = 2 * 2 * weights * tokens + sum(2 * weight_of(m).shape[1] ** 2 * tokens for m in layers) * 0.6
    return Estimate(5 + flops / flops_per_second() * 1.4 + 6e-7 * weights + 1e-4 * columns, peak)
