"""The step that takes parts out of a model: blocks, heads and channels, tokens, or single weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.prune.run import PERPLEXITY_TOKENS, Depth, Vocabulary, Width
from greenllm.prune.sparse import Sparsity, check_pattern, sparsify
from greenllm.prune.vocabulary import estimate_expected
from greenllm.quantize.step import estimate
from greenllm.step import BASE_BYTES, Context, Estimate, flops_per_second

_SPARSE = ("magnitude", "wanda", "sparsegpt")
_OF = {  # options that say something to some methods only
    "to": ("depth", "width", "vocabulary"), "layers": ("depth",), "rank": ("depth",), "heads": ("width",),
    "mlp": ("width",), "hidden": ("width",), "multiple": ("width", "vocabulary"), "corpus": ("vocabulary",),
    "pattern": _SPARSE, "solve": ("width", *_SPARSE), "damp": ("width", "sparsegpt"),
}  # fmt: skip
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}


@dataclass(config={"extra": "forbid"})
class Prune:
    """Take out what a model needs least: blocks, heads and channels, tokens, or single weights."""

    name: ClassVar[str] = "prune"

    method: Literal["auto", "depth", "width", "vocabulary", "magnitude", "wanda", "sparsegpt"] = Field(
        "auto",
        description="depth (whole blocks), width (heads, MLP channels, hidden channels), vocabulary (tokens); or zeros "
        "in matrices of the same size: magnitude, wanda, sparsegpt. auto: by the options given, else width",
    )
    ratio: float = Field(0, ge=0, lt=1, description="share of all weights to cut; of the blocks' linears for zeros")
    to: str = Field("", description="number of weights to keep instead, such as 100M")
    layers: str = Field("", description="depth: these blocks go, such as 12,13 or 20-24; the first is 0")
    rank: Literal["influence", "perplexity"] = Field(
        "influence", description="depth: least first by how far a block turns its states, or by the loss without it"
    )
    heads: int = Field(0, ge=0, description="width: attention heads to keep; 0 as ratio or size demand")
    mlp: int = Field(0, ge=0, description="width: MLP channels to keep; 0 as ratio or size demand")
    hidden: int = Field(0, ge=0, description="width: hidden channels to keep; 0 for all")
    multiple: int = Field(32, ge=1, description="width, vocabulary: sizes are multiples of this, as kernels like them")
    corpus: str = Field("", description="vocabulary: texts whose tokens stay (.txt, .jsonl, hub data sets; commas)")
    pattern: Literal["unstructured", "2:4"] = Field(
        "unstructured", description="zeros: anywhere, or two of every four inputs, which TensorRT computes faster"
    )
    solve: int = Field(
        20,
        ge=0,
        le=1000,
        description="width, zeros: turns of fitting what stays to do the work of what went; 0 is off",
    )
    damp: float = Field(
        0.01, gt=0, le=1, description="width, sparsegpt: share of the mean diagonal added to the Hessian"
    )

    @property
    def kind(self) -> str:
        """The method that the options mean."""
        if self.method != "auto":
            return self.method
        by = {"layers": "depth", "corpus": "vocabulary", "heads": "width", "mlp": "width", "hidden": "width"}
        return next((m for f, m in by.items() if getattr(self, f)), "width")

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration samples."""
        return self.kind != "vocabulary" and not self.layers

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse options that do not belong together, sizes that cannot be, and checkpoints that cannot be cut."""
        if checkpoint.quantized:
            raise GreenError(f"{checkpoint.path} is quantized already.", "Prune first: start from what it was made of.")
        fields: Any = dataclasses.fields(self)
        for field in fields:
            given = getattr(self, field.name) != field.default.default
            if given and self.kind not in _OF.get(field.name, (self.kind,)):
                raise GreenError(
                    f"--{field.name} says nothing to {self.kind}.", f"It is for {' and '.join(_OF[field.name])}."
                )
        if self.ratio and self.to:
            raise GreenError("--ratio and --to both say how much.", "Choose one of them.")
        if self.ratio and self.pattern == "2:4":
            raise GreenError("2:4 takes half of the weights, no more and no less.", "Leave out --ratio.")
        amounts = (self.ratio, self.to, self.layers, self.heads, self.mlp, self.hidden, self.corpus)
        if not any(amounts) and self.pattern == "unstructured":
            raise GreenError("How much is to be cut?", "Give --ratio, --to, --layers, --heads, --mlp or --hidden.")
        self._prepare(checkpoint)

    def estimate(self, checkpoint: Checkpoint, tokens: int) -> Estimate:
        """A forward pass, with second moments and what is done with them for zeros; a pass a block for perplexity."""
        n, write = checkpoint.parameters, 5 + checkpoint.parameters / 1e8
        if self.kind == "vocabulary":
            asks = bool(self.ratio or self.to)
            asked = estimate_expected(checkpoint) if asks else Estimate(0, 0)
            return Estimate(write + 20 + asked.seconds, BASE_BYTES + 5 * n + asked.peak_bytes)
        if self.kind in _SPARSE or (self.kind == "width" and self.solve):
            found = estimate(checkpoint, tokens, head=False)
            return Estimate(found.seconds + 3e-8 * n * self.solve * (self.kind != "width"), found.peak_bytes)
        if self.kind == "depth" and self.rank == "perplexity":
            blocks = int(checkpoint.config.num_hidden_layers)
            seconds = (blocks / 2 + 1) * 2 * n * min(tokens, PERPLEXITY_TOKENS) / flops_per_second()
            return Estimate(write + 2 * seconds, BASE_BYTES + 9 * n)
        return Estimate(write + 2 * n * self.calibrated * tokens / flops_per_second(), BASE_BYTES + 5 * n)

    def run(self, checkpoint: Checkpoint, out: Path, context: Context) -> dict[str, Any]:
        """Measure, choose, cut, and write an ordinary checkpoint into ``out``."""
        self.check(checkpoint)
        found = self._prepare(checkpoint)(out, context)
        return {"tied": checkpoint.tied, "method": self.kind} | found

    def _prepare(self, checkpoint: Checkpoint) -> Callable[[Path, Context], dict[str, Any]]:
        """What is to be run; all that can be refused before is refused here."""
        target = self.keeps(checkpoint)
        if self.kind == "depth":
            return Depth(checkpoint, target, self.layers, self.rank)
        if self.kind == "width":
            damp = self.damp if self.solve else None
            return Width(checkpoint, target, self.heads, self.mlp, self.hidden, self.multiple, damp)
        if self.kind == "vocabulary":
            return Vocabulary(checkpoint, target, self.corpus, self.multiple)
        sparsity = Sparsity(self.kind, self.ratio, self.pattern, self.damp, self.solve)
        check_pattern(checkpoint, sparsity)
        return lambda out, context: sparsify(checkpoint, sparsity, out, context)

    def keeps(self, checkpoint: Checkpoint) -> float | None:
        """Number of weights to keep at most; None where something else says what goes."""
        if self.ratio and self.kind not in _SPARSE:
            return checkpoint.parameters * (1 - self.ratio)
        if not self.to:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMB]?)", self.to.strip(), re.IGNORECASE)
        if not match:
            raise GreenError(f"--to {self.to}: no number of weights is written like this.", "For instance 100M.")
        target = float(match[1]) * _UNITS[match[2].upper()]
        if not target < checkpoint.parameters:
            raise GreenError(
                f"{checkpoint.path} has {checkpoint.parameters / 1e6:.1f}M weights, no more than {self.to}.",
                "Give a smaller --to.",
            )
        return target
