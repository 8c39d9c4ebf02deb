"""Places for LoRA in a graph of ORT-GenAI's builder: y = W x + (x A) B, with A and B inputs of the graph.

Both are empty (rank 0) unless an adapter is on, so that one graph is the base and every adapted model, and changes from
one to the other in no time. Adapters go into ONNX Runtime's own files (``.onnx_adapter``), in half precision. LoRA: Hu
et al., 2021, arXiv:2106.09685; AdaLoRA's singular values (Zhang et al., 2023, arXiv:2303.10512) are multiplied into A.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from greenllm import switch
from greenllm.adapt import adapters
from greenllm.blocks import blocks_of
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.quantize.linear import linears

Factors = tuple[NDArray[np.float32], NDArray[np.float32]]  # A [inputs, rank], B [rank, outputs]
_VALUE = re.compile(r"/model/layers\.(\d+)/(?:attn|mlp)/(\w+)/MatMul/output_0")
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_PRODUCTS = ("MatMul", "MatMulNBits", "MatMulBnb4")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_FORMAT = 1  # of ONNX Runtime's files, and the model's own version, which is not used


@dataclass(frozen=True)
class Place:
    """A product in the graph: its input ``x`` and its ``value``, made of the outputs of these modules side by side."""

    x: str
    value: str
    modules: tuple[str, ...]
    widths: tuple[int, ...]
    inputs: int

    @property
    def names(self) -> tuple[str, str]:
        """Of the graph's inputs A and B."""
        stem = self.value.removesuffix("/MatMul/output_0").removeprefix("/").replace("/", ".")
        return f"{stem}.lora_A", f"{stem}.lora_B"

    def join(self, factors: Mapping[str, Factors]) -> Factors:
        """A and B of all its modules: the first side by side, the second along a diagonal."""
        mine = [factors.get(m) for m in self.modules]
        a = [np.zeros((self.inputs, 0), np.float32) if f is None else f[0] for f in mine]
        b = np.zeros((sum(x.shape[1] for x in a), sum(self.widths)), np.float32)
        row = column = 0
        for f, width in zip(mine, self.widths, strict=True):
            if f is not None:
                b[row : row + len(f[1]), column : column + width] = f[1]
                row += len(f[1])
            column += width
        return np.concatenate(a, 1), b


class Linear:
    """Name and shape of a linear, or of GPT-2's Conv1D, which keeps its weight the other way round."""

    def __init__(self, name: str, module: Any) -> None:
        self.name = name
        shape = tuple(module.weight.shape)
        self.outputs, self.inputs = shape[::-1] if type(module).__name__ == "Conv1D" else shape


def named(given: Sequence[str | Path], checkpoint: Checkpoint) -> dict[str, Path]:
    """Adapters by the names of their directories.

    Raises:
        GreenError: one is no adapter of this checkpoint, or of a kind that has no place; or two have one name.
    """
    found: dict[str, Path] = {}
    base = adapters.fingerprint(checkpoint.path) if given else ""
    for path in map(Path, given):
        adapter, _ = adapters.read(path)
        name = path.absolute().name
        if adapter.sha256 != base:
            raise GreenError(f"{path} is an adapter of another model than {checkpoint.path}: the hash differs.")
        if adapter.method not in ("lora", "adalora"):
            way = (
                "Only the torch checkpoint runs a prefix." if adapter.method == "prefix" else "greenllm adapt --merge."
            )
            raise GreenError(f"{path}: {adapter.method} has no place in the graph; lora and adalora have.", way)
        if name in found or not _NAME.fullmatch(name):
            raise GreenError(
                f"{path}: {name!r} is no name for an adapter here, or two have it.", "Rename its directory."
            )
        found[name] = path
    return found


def add_places(graph: Path, checkpoint: Checkpoint, first: int) -> list[Place]:
    """Give the linears of all blocks from ``first`` on a place, in the file.

    Raises:
        GreenError: the graph does not compute one of them as the builder of ORT-GenAI does for most models.
    """
    model = onnx.load(str(graph), load_external_data=False)
    found = places(model, checkpoint, first)
    by_value = {p.value: p for p in found}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        for i, output in enumerate(node.output):
            if (place := by_value.get(output)) is not None:
                node.output[i] = f"{output}.base"
                nodes += _nodes(place)
    for place in found:
        for name, shape in zip(place.names, _shapes(place), strict=True):
            model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape))
            empty = [n if isinstance(n, int) else 0 for n in shape]
            model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT16, empty, b"", raw=True))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(graph))
    return found


def _shapes(place: Place) -> tuple[list[Any], list[Any]]:
    rank = f"{place.names[0]}.rank"
    return [place.inputs, rank], [rank, sum(place.widths)]


def _nodes(place: Place) -> list[NodeProto]:
    a, b = place.names
    down, up = f"{place.value}.down", f"{place.value}.up"
    wide = [f"{a}32", f"{b}32"]
    return [
        *(helper.make_node("Cast", [n], [w], w, to=TensorProto.FLOAT) for n, w in zip((a, b), wide, strict=True)),
        helper.make_node("MatMul", [place.x, wide[0]], [down], down),
        helper.make_node("MatMul", [down, wide[1]], [up], up),
        helper.make_node("Add", [f"{place.value}.base", up], [place.value], f"{place.value}.adapted"),
    ]


def places(model: onnx.ModelProto, checkpoint: Checkpoint, first: int) -> list[Place]:
    """See :func:`add_places`."""
    makers = {o: n for n in model.graph.node for o in n.output}
    values = {(int(m[1]), m[2]): o for o in makers if (m := _VALUE.fullmatch(o))}
    name, blocks = blocks_of(checkpoint.skeleton())
    found: list[Place] = []
    for i in range(first, len(blocks)):
        inner = {n.rpartition(".")[2]: Linear(f"{name}.{i}.{n}", m) for n, m in linears(blocks[i]).items()}
        for proj, parts in [*_FUSED.items(), *((leaf, (leaf,)) for leaf in inner)]:
            value, mine = values.get((i, proj)), [inner[p] for p in parts if p in inner]
            if value is None or len(mine) < len(parts) or any(m.name in f.modules for m in mine for f in found):
                continue
            modules, widths = tuple(m.name for m in mine), tuple(m.outputs for m in mine)
            found.append(Place(_input_of(value, makers), value, modules, widths, mine[0].inputs))
        every = {f"{name}.{i}.{n}" for n in linears(blocks[i])}
        if missing := every - {m for f in found for m in f.modules}:
            raise GreenError(
                f"The exported graph has no place for an adapter of {', '.join(sorted(missing)[:3])}.",
                "Merge it instead: greenllm adapt --merge.",
            )
    return found


def _input_of(value: str, makers: Mapping[str, NodeProto]) -> str:
    """What is multiplied to make ``value``; of rows with other bits the products lie side by side."""
    node = makers[value]
    while node.op_type == "Concat":
        node = makers[node.input[0]]
    if node.op_type not in _PRODUCTS:
        raise GreenError(f"{value} comes of {node.op_type} in the exported graph: an adapter has no place there.")
    return str(node.input[0])


def factors_of(wrapped: Any) -> dict[str, Factors]:
    """A and B of each adapted module, by the base's names; what scales their product is in A."""
    found: dict[str, Factors] = {}
    for name, module in wrapped.base_model.model.named_modules():
        if not hasattr(module, "lora_A") or "default" not in module.lora_A:
            continue
        a, b = module.lora_A["default"], module.lora_B["default"]
        scale = float(module.scaling["default"])
        if hasattr(module, "lora_E"):
            down = (a * module.lora_E["default"]) * (scale / (float(module.ranknum["default"]) + 1e-5))
            up = b
        else:
            down, up = a.weight * scale, b.weight
        found[name] = tuple(np.ascontiguousarray(t.detach().float().T.numpy()) for t in (down, up))  # type: ignore[assignment]
    return found


def write(file: Path, where: Sequence[Place], factors: Mapping[str, Factors]) -> int:
    """Write an adapter for these places; its bytes.

    Raises:
        GreenError: it adapts a module that has none.
    """
    import onnxruntime as ort

    if lost := set(factors) - {m for p in where for m in p.modules}:
        raise GreenError(f"There is no place in the graph for the adapter of {min(lost)}.")
    values = {n: v.astype(np.float16) for p in where for n, v in zip(p.names, p.join(factors), strict=True) if v.size}
    if any(not np.isfinite(v).all() for v in values.values()):
        raise GreenError(f"{file.stem} has weights that half precision cannot hold.", "greenllm adapt --merge.")
    out = ort.AdapterFormat()
    out.set_adapter_version(_FORMAT)
    out.set_model_version(_FORMAT)
    out.set_parameters({n: ort.OrtValue.ortvalue_from_numpy(v) for n, v in values.items()})
    file.parent.mkdir(exist_ok=True)
    out.export_adapter(str(file))
    return file.stat().st_size


def add(
    part: Path, graph: str, checkpoint: Checkpoint, given: Mapping[str, Path], arithmetic: Literal["fp32", "int8"]
) -> dict[str, Any]:
    """Make places for these adapters, write each, and compare the graph that has it on with torch.

    Returns:
        Of each what a manifest says.

    Raises:
        GreenError: no place for one, or a graph that departs from the adapted checkpoint.
    """
    from greenllm.export.verify import verify_adapted

    read = {name: adapters.read(path) for name, path in given.items()}
    where = add_places(part / graph, checkpoint, min(a.first for a, _ in read.values()))
    told: dict[str, Any] = {}
    for name, path in given.items():
        wrapped = adapters.load(checkpoint.load_model(), path)
        file = part / switch.FOLDER / f"{name}{switch.SUFFIX}"
        size = write(file, where, factors_of(wrapped))
        adapter, made = read[name]
        told[name] = {
            "method": adapter.method, "rank": adapter.rank, "bytes": size, "made": made.manifest.created,
            "sha256": made.manifest.files[adapters.WEIGHTS].sha256,
            "verified": verify_adapted(checkpoint, part, wrapped.base_model.model, file, arithmetic),
        }  # fmt: skip
    return told
