"""What a recipe will leave of a model, told before it runs: how many weights, of how many bits; and if that can run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from greenllm.export.fits import Fit, refuse_kind, refuse_misfit, shape_of, wanted
from greenllm.export.targets import Format, Precision, Runtime, Target

if TYPE_CHECKING:
    from greenllm.checkpoint import Checkpoint
    from greenllm.recipe import Recipe

_TYPES: dict[int, Precision] = {2: "int4", 3: "int4", 4: "int4", 8: "int8"}  # what holds the codes
_SCALE = 16


@dataclass(frozen=True)
class Outcome:
    """Number of weights, bits of each on average (scales included), and what holds the codes."""

    parameters: int
    bits: float
    types: frozenset[Precision] = frozenset()


def check_target(
    checkpoint: Checkpoint, recipe: Recipe, target: Target, to: Format | None, context: int | None, kv_bits: int = 0
) -> Fit:
    """Whether what the recipe leaves runs on the target, in its memory; by default in the format that suits it best.

    Raises:
        GreenError: it does not; see :mod:`greenllm.export.fits`.
    """
    from greenllm.export import usual_format

    runtime = to or usual_format(target, checkpoint)
    left = outcome(checkpoint, recipe, runtime)
    return check_runs(checkpoint, left, target, runtime, context, kv_bits)


def check_runs(
    checkpoint: Checkpoint, left: Outcome, target: Target, runtime: Runtime, context: int | None, kv_bits: int = 0
) -> Fit:
    """The same of a checkpoint as it is, or will be, by a given runtime."""
    from greenllm.export.tensorrt import built_there
    from greenllm.kinds import GENERATION, VLM

    refuse_kind(target, runtime, set(left.types))
    shape = shape_of(checkpoint.words, left.parameters, generates=checkpoint.task in (GENERATION, VLM))
    build = runtime == "tensorrt" and built_there(target)
    return refuse_misfit(
        shape, target, runtime, bits=left.bits, context=wanted(shape, context), build=build, kv_bits=kv_bits
    )


def stored(checkpoint: Checkpoint, runtime: Runtime, compute: Precision = "fp16") -> Outcome:
    """Of a checkpoint as it is; of a runtime that computes in half precision, or else in what it is told."""
    from greenllm.quantize import fp8

    if not checkpoint.quantized:
        types: list[Precision] = [compute] if runtime == "tensorrt" else []
        return Outcome(checkpoint.parameters, 32 if compute == "fp32" else _dense(runtime), frozenset(types))
    spec: dict[str, Any] = checkpoint.quantization or {}
    files = sum(f.stat().st_size for f in checkpoint.path.glob("*.safetensors"))
    if spec["quant_method"] == fp8.METHOD:
        return Outcome(checkpoint.parameters, _eights(checkpoint, _dense(runtime)), frozenset(["fp8"]))
    widths = [spec.get("bits", 8 if spec.get("load_in_8bit") else 4)]
    widths += [rule["bits"] for rule in (spec.get("dynamic") or {}).values() if "bits" in rule]
    return Outcome(checkpoint.parameters, 8 * files / checkpoint.parameters, frozenset(_TYPES[b] for b in widths))


def outcome(checkpoint: Checkpoint, recipe: Recipe, runtime: Runtime) -> Outcome:
    """Of the checkpoint after the recipe's steps."""
    found = stored(checkpoint, runtime)
    for step in recipe.steps:
        found = _after(step, found, checkpoint, _dense(runtime))
    return found


def _after(step: Any, before: Outcome, checkpoint: Checkpoint, dense: int) -> Outcome:
    """Of one step; one that finds out as it runs how much it cuts counts as if it cut nothing."""
    from greenllm.quantize.linear import weight_of

    n = before.parameters
    if step.name == "prune":
        return Outcome(round(step.keeps(checkpoint) or n), before.bits, before.types)
    if step.name == "mixed":
        return Outcome(n, 8e6 * step.size / n if step.size else step.bits, before.types)
    if step.name == "bitsandbytes":
        wide = step.kind == "int8"
        return Outcome(n, 8 if wide else 4.5, frozenset(["int8" if wide else "int4"]))
    if step.name == "fp8":
        return Outcome(n, _eights(checkpoint, dense), frozenset(["fp8"]))
    if step.name != "quantize":
        return before
    grids, model = step.grids(checkpoint), checkpoint.skeleton()
    share = {name: weight_of(model.get_submodule(name)).numel() / checkpoint.parameters for name in grids}
    bits = sum(share[name] * (g.bits + _per_weight(g.group)) for name, g in grids.items())
    bits += (1 - sum(share.values())) * dense
    return Outcome(n, bits, frozenset(_TYPES[g.bits] for g in grids.values()))


def _eights(checkpoint: Checkpoint, dense: int) -> float:
    """Bits of a weight where the linears of the blocks take 8."""
    from greenllm.quantize.linear import weight_of
    from greenllm.quantize.run import quantizable

    share = sum(weight_of(m).numel() for m in quantizable(checkpoint)[0].values()) / checkpoint.parameters
    return share * 8 + (1 - share) * dense


def _per_weight(group: int) -> float:
    """Bits of its scale; one of a whole row counts for nothing."""
    return _SCALE / group if group > 0 else 0.0


def _dense(runtime: Runtime) -> int:
    """Bits of a weight that is not quantized."""
    return 16 if runtime in ("tensorrt", "edge-llm", "gguf") else 32
