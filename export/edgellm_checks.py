"""What TensorRT Edge-LLM takes, told before the work; and whether its output is quantized, looked at after it.

Its exporter takes any decoder and writes a Llama of its weights, and its kernels fail only on the device.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenllm.errors import GreenError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # of dense decoders, which its default model is
HEAD_SIZES = (64, 128, 256)  # its attention kernels'
_MULTIPLE = 128  # inputs that share a scale, and a tile of the kernels
_ROW = 64  # outputs of a projection: half a tile
_ROPES = ("default", "llama3")
LINEARS = 7  # of a block: q, k, v, o, gate, up, down

# The operator that reads a quantized linear's codes, and the most of fp16's bytes that codes and scales take.
OPERATORS = {"int4": ("Int4GroupwiseGemmPluginV2", 0.30), "int8": ("DequantizeLinear", 0.55)}


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder: of its states, its MLP, its heads, and how many query heads share keys and values."""

    hidden: int
    mlp: int
    heads: int
    groups: int
    head_size: int
    coupled: bool  # the configuration cannot say how wide a head is

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Of transformers' configuration."""
        heads = int(config.num_attention_heads)
        return cls(
            hidden=int(config.hidden_size),
            mlp=int(config.intermediate_size),
            heads=heads,
            groups=int(getattr(config, "num_key_value_heads", None) or heads),
            head_size=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            coupled=not hasattr(config, "head_dim"),
        )

    @property
    def linears(self) -> int:
        """Weights of a block's linears."""
        attention = 2 * self.hidden * (self.heads + self.groups) * self.head_size
        return attention + 3 * self.hidden * self.mlp


def refuse_unknown(config: Any) -> None:
    """Refuse a model that would be exported as what it is not.

    Raises:
        GreenError: another family, or a detail that its Llama lacks.
    """
    kind = config.model_type
    if kind not in FAMILIES:
        raise GreenError(
            f"Edge-LLM is driven here for {', '.join(FAMILIES)}; {kind} would be written as if it were a Llama.",
            "Export it --to genai or --to onnx.",
        )
    odd = {
        f"{getattr(config, 'hidden_act', 'silu')} in its MLP": getattr(config, "hidden_act", "silu") != "silu",
        "biases in its MLP": getattr(config, "mlp_bias", False),
        "a bias in its attention's output": kind == "llama" and getattr(config, "attention_bias", False),
        "attention of a sliding window": bool(_window(config)),
        f"{_rope(config)} position scaling": _rope(config) not in _ROPES,
        f"heads of {Shape.of(config).head_size} channels": Shape.of(config).head_size not in HEAD_SIZES,
    }
    for what, found in odd.items():
        if found:
            raise GreenError(
                f"This {kind} has {what}, which Edge-LLM does not compute.", "Export it --to genai or --to onnx."
            )


def refuse_misfit(name: str, shape: Shape) -> None:
    """Refuse sizes that its int4 kernels do not take, with the command that makes them fit.

    Args:
        name: of the checkpoint, for the command.
        shape: of the model.

    Raises:
        GreenError: which sizes do not fit.
    """
    wrong = misfits(shape)
    if not wrong:
        return
    options = fitting(shape)
    way = (
        f"Prune it to sizes that fit, then distil: greenllm prune {name} -o {Path(name).name}-128 {options}"
        if options
        else "No smaller width fits."
    )
    raise GreenError(
        f"Edge-LLM's int4 kernels do not take this model: {'; '.join(wrong)}.",
        f"{way}\nOr give --precision int8, which takes any size.",
    )


def misfits(shape: Shape) -> list[str]:
    """Sizes that do not fit, in words; empty when all do."""
    queries, keys = shape.heads * shape.head_size, shape.groups * shape.head_size
    found = []
    if shape.hidden % _MULTIPLE:
        found.append(f"its hidden size {shape.hidden} is no multiple of {_MULTIPLE}")
    if shape.mlp % _MULTIPLE:
        found.append(f"its MLP size {shape.mlp} is no multiple of {_MULTIPLE}")
    if queries % _MULTIPLE:
        found.append(
            f"its {shape.heads} heads of {shape.head_size}, {queries} channels, are no multiple of {_MULTIPLE}"
        )
    if keys % _ROW:
        found.append(f"its {shape.groups} key heads of {shape.head_size}, {keys} channels, are no multiple of {_ROW}")
    return found


def fitting(shape: Shape) -> str:
    """Options of ``greenllm prune`` for the largest sizes below that fit; "" where there are none."""
    sizes = _attention(shape) if len(misfits(shape)) > bool(shape.mlp % _MULTIPLE) else {}
    if shape.mlp % _MULTIPLE:
        sizes["mlp"] = shape.mlp // _MULTIPLE * _MULTIPLE
    if not sizes or 0 in sizes.values():
        return ""
    return " ".join(f"--{k} {n}" for k, n in sizes.items()) + f" --multiple {_MULTIPLE}"


def _attention(shape: Shape) -> dict[str, int]:
    """Hidden channels and heads that fit, where they change: of all pairs the one with most channels; 0 for none."""
    each = shape.heads // shape.groups
    pairs = [
        (hidden, g * each)
        for g in range(1, shape.groups + 1)
        for hidden in range(_MULTIPLE, shape.hidden + 1, _MULTIPLE)
        if not g * each * shape.head_size % _MULTIPLE and not g * shape.head_size % _ROW
        if hidden == g * each * shape.head_size or (not shape.coupled and not hidden % (g * each))  # transformers' rule
    ]
    hidden, heads = max(pairs, key=lambda p: (p[0] * p[1], p), default=(0, 0))
    found = {"hidden": hidden} if hidden != shape.hidden else {}
    return found | ({"heads": heads} if heads != shape.heads and not shape.coupled else {})


def refuse_dense(graph: Path, shape: Shape, layers: int, head_bytes: int, precision: str) -> dict[str, Any]:
    """Count the operators and the bytes of an export, and refuse one whose linears are not all quantized.

    Args:
        graph: ``model.onnx``, its external data beside it.
        shape: of the model.
        layers: number of blocks.
        head_bytes: what the head takes, which stays fp16.
        precision: a key of :data:`OPERATORS`, or "fp16".

    Returns:
        Figures for the manifest: operators by name, and bytes of the blocks' linears against fp16's.

    Raises:
        GreenError: linears that stayed float, or too many bytes.
    """
    import onnx

    loaded = onnx.load(str(graph), load_external_data=False).graph
    codes = {t.name for t in loaded.initializer if t.data_type == onnx.TensorProto.INT8}
    codes |= {i.name for i in loaded.input if i.type.tensor_type.elem_type == onnx.TensorProto.INT8}
    ops = Counter(n.op_type for n in loaded.node)
    readers = Counter(n.op_type for n in loaded.node if codes & set(n.input))
    stored = sum(f.stat().st_size for f in weight_files(graph.parent)) - head_bytes
    ratio = stored / (2 * layers * shape.linears)
    found = {"operators": dict(ops), "linears_bytes": stored, "linears_of_fp16": round(ratio, 4)}
    if precision in OPERATORS:
        operator, most = OPERATORS[precision]
        wanted = layers * LINEARS
        if readers[operator] < wanted or ratio > most:
            raise GreenError(
                f"Edge-LLM's export is not quantized: {readers[operator]} of {wanted} linears are {operator}, and "
                f"their weights take {ratio:.0%} of fp16's bytes (at most {most:.0%}).",
                "This is a fault of the export, not of the checkpoint: nothing was kept.",
            )
    return found


def weight_files(directory: Path) -> list[Path]:
    """Files that hold the graph's weights: its external data, and weights that are its inputs; not the embedding."""
    return [*directory.glob("model.onnx.data*"), *directory.glob("external_*.safetensors")]


def _window(config: Any) -> int | None:
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)


def _rope(config: Any) -> str:
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(scaling.get("rope_type") or scaling.get("type") or "default")
