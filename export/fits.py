"""What a target can run, and what fits into its memory: told with its arithmetic before any work begins.

A model needs its weights, the cache of keys and values for the tokens it must hold, room for what it computes, and the
runtime itself. Where the engine is built on the device, building it needs more. What the last two take is estimated:
see :data:`RUNTIME` and :data:`BUILD`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from greenllm.errors import GreenError
from greenllm.export.targets import Precision, Runtime, Target

CONTEXT = 2048  # tokens to hold where nothing is said
_LENGTHS = ("max_position_embeddings", "max_target_positions")
_GB = 2.0**30  # as makers of memory count
_BLOCK = 512  # tokens of a prompt that are computed at a time
# Bytes that the loaded runtime takes beside the model, Python and a tokenizer with it. genai and onnx: measured here;
# the others are estimates, with CUDA's own in those that use it; Edge-LLM's is what its makers ask for.
RUNTIME: dict[Runtime, float] = {"genai": 0.11e9, "onnx": 0.11e9, "gguf": 0.1e9, "tensorrt": 0.6e9, "edge-llm": 2e9}
# What ONNX Runtime's kernels make of the weights at the peak: of 4 bits with a scale for every 32, 24 bytes for 18, and
# what is read meanwhile. SmolLM2 with RUNTIME took less than this: 206 of 231 MB in 4 bits, 271 of 332 in 8, 788 of 974
# in float32.
LAYOUT: dict[Runtime, float] = {"genai": 1.6, "onnx": 1.6}
# Building an engine holds the graph's weights, the engine, and copies that are timed: so many times the weights, on
# this much. Measured with tensorrt-rtx here, without the copies on a GPU; the third is for those: an estimate.
BUILD = (3.0, 0.6e9)
_CACHE_BYTES: dict[Runtime, int] = {"genai": 4, "onnx": 4, "gguf": 2, "tensorrt": 2, "edge-llm": 2}


@dataclass(frozen=True)
class Shape:
    """What of a model decides on memory.

    Attributes:
        parameters: number of weights.
        layers: blocks with a cache; 0 for an encoder.
        cached: numbers that a block caches for each token: keys and values of all heads.
        vocabulary: logits of a token; 0 for an encoder.
        hidden: width of a token's state.
        longest: tokens the model was made for.
    """

    parameters: int
    layers: int
    cached: int
    vocabulary: int
    hidden: int
    longest: int


@dataclass(frozen=True)
class Fit:
    """Bytes that a model needs on a target, by what needs them, and what there is (None: not known)."""

    target: str
    context: int
    parts: dict[str, float]
    there: float | None

    @property
    def needed(self) -> float:
        """Sum of the parts, bytes."""
        return sum(self.parts.values())

    @property
    def ok(self) -> bool:
        """Whether it fits, or nobody knows."""
        return self.there is None or self.needed <= self.there

    @property
    def words(self) -> str:
        """The arithmetic, for people."""
        parts = " + ".join(f"{name} {size / _GB:.2f}" for name, size in self.parts.items())
        return f"{parts} = {self.needed / _GB:.2f} GB"


def shape_of(config: Any, parameters: int, *, generates: bool) -> Shape:
    """The shape of a model by transformers' configuration, or an object with its attributes.

    Args:
        config: for instance :attr:`greenllm.checkpoint.Checkpoint.config`.
        parameters: number of weights, tied ones counted once.
        generates: whether it keeps a cache.
    """
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    hidden = int(getattr(config, "hidden_size", 0) or 0)
    width = int(getattr(config, "head_dim", None) or hidden // max(1, heads))
    kept = int(getattr(config, "num_key_value_heads", None) or heads)
    return Shape(
        parameters=parameters,
        layers=int(getattr(config, "num_hidden_layers", 0) or 0) if generates else 0,
        cached=2 * kept * width,
        vocabulary=int(config.vocab_size) if generates else 0,
        hidden=hidden,
        longest=int(next(filter(None, (getattr(config, k, 0) for k in _LENGTHS)), CONTEXT)),
    )


def wanted(shape: Shape, context: int | None) -> int:
    """Tokens to hold: what was asked for, else :data:`CONTEXT` or the model's own fewer.

    Raises:
        GreenError: more than the model was made for.
    """
    if context is None:
        return min(CONTEXT, shape.longest)
    if not 1 <= context <= shape.longest:
        raise GreenError(
            f"The model was made for {shape.longest} tokens, not {context}.", f"Give --context {shape.longest} or less."
        )
    return context


def fit(
    shape: Shape, target: Target, runtime: Runtime, *, bits: float, context: int, batch: int = 1, build: bool = False,
    kv_bits: int = 0,
) -> Fit:  # fmt: skip
    """What running the model needs, or building its engine, if that is on the target and needs more.

    Args:
        shape: of the model.
        target: where it will run.
        runtime: that runs it.
        bits: that a weight takes, scales included, over all weights.
        context: tokens to hold, prompt and answer.
        batch: sequences at once.
        build: whether the engine is built there.
        kv_bits: of keys and values in the cache; 0 for the runtime's own type.
    """
    weights = shape.parameters * bits / 8
    laid_out = LAYOUT.get(runtime, 1)
    number = _CACHE_BYTES[runtime]
    kept = 2 * kv_bits / 8 if kv_bits else number  # a cache of integers is copied at each token
    block = min(context, _BLOCK)
    parts = {
        "weights" + (f" x {laid_out} as kernels want them" if laid_out != 1 else ""): weights * laid_out,
        f"cache of {context} tokens": float(batch * context * shape.layers * shape.cached * kept),
        "computing": float(batch * block * (8 * shape.hidden + shape.vocabulary) * number),
        "runtime": RUNTIME[runtime],
    }
    if build:
        factor, fixed = BUILD
        building = {f"{factor:g} x weights to build the engine": factor * weights, "builder": fixed}
        parts = max(parts, building, key=lambda p: sum(p.values()))
    return Fit(target.name, context, parts, room(target))


def room(target: Target) -> float | None:
    """Bytes that a target has for a model; None where nobody knows."""
    return None if target.memory is None else (target.memory - target.reserved) * _GB


def refuse_misfit(
    shape: Shape, target: Target, runtime: Runtime, *, bits: float, context: int, batch: int = 1, build: bool = False,
    kv_bits: int = 0,
) -> Fit:  # fmt: skip
    """:func:`fit`, if it does.

    Raises:
        GreenError: it does not: with the arithmetic, and what would.
    """
    found = fit(shape, target, runtime, bits=bits, context=context, batch=batch, build=build, kv_bits=kv_bits)
    if found.ok:
        return found
    there = (found.there or 0) / _GB
    what = (
        f"{target.name} has {there:.2f} GB for a model ({target.memory:g} GB less {target.reserved:g} for the "
        f"system); this one needs {found.words}."
    )

    def fits(bits: float, context: int, kv_bits: int = kv_bits) -> bool:
        return fit(
            shape, target, runtime, bits=bits, context=context, batch=batch, build=build, kv_bits=kv_bits
        ).ok  # fmt: skip

    ways = []
    shorter = next((c for c in (context >> i for i in range(1, 12)) if c >= 128 and fits(bits, c)), None)  # noqa: PLR2004
    if shorter:
        ways.append(f"--context {shorter}")
    if runtime == "genai" and not kv_bits and (cache := next((k for k in (8, 4) if fits(bits, context, k)), None)):
        ways.append(f"--kv-bits {cache}")
    narrower = next((b for b in (8, 4, 3) if b < bits and fits(b + 0.5, context)), None)
    if narrower:
        ways.append(f"--bits {narrower}")
    if not ways:
        raise GreenError(what, "Take a smaller model, prune it (greenllm prune), or choose a larger target.")
    raise GreenError(what, f"It fits with {' or with '.join(ways)}.")


def refuse_kind(target: Target, runtime: Runtime, precisions: set[Precision]) -> None:
    """Refuse what the target has no runtime or no kernels for.

    Args:
        target: where it will run.
        runtime: that is to run it.
        precisions: that the model's weights and its arithmetic have.

    Raises:
        GreenError: naming what it does have.
    """
    if runtime not in target.runtimes:
        raise GreenError(f"{target.name} does not run {runtime}.", f"It runs {', '.join(target.runtimes)}.")
    missing = sorted(precisions - set(target.precisions))
    if missing:
        raise GreenError(
            f"{target.name} has no kernels for {', '.join(missing)}.", f"It has {', '.join(target.precisions)}."
        )
