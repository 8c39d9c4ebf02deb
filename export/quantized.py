"""Put packed integer weights into the graph of the dense model, in a stream from file to file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import NodeProto, helper

from greenllm.errors import GreenError
from greenllm.export.bnb4 import Bnb4
from greenllm.export.forms import Form, NBits, Qdq, Stored
from greenllm.export.graph import Weights, Writer
from greenllm.export.int8 import Int8
from greenllm.export.matching import Library, PackedSource, Rows
from greenllm.export.rotary import replace_tables
from greenllm.export.typed import typed
from greenllm.export.uses import Use, find_uses
from greenllm.progress import Progress, Silent
from greenllm.quantize.activations import Inputs
from greenllm.quantize.bnb import Blockwise
from greenllm.quantize.fp8 import Float8, Float8Grid

_DOMAIN = "com.microsoft"
_QUANTIZED = (  # a dense graph has none of these
    "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear",
    "MatMulInteger",
)  # fmt: skip


@dataclass
class Quantized:
    """What the pass did.

    Attributes:
        ops: how many nodes of each quantized operator the graph has.
        weights: names of the packed linears that are in the graph.
        bits: bits a code takes in the file, over all matrices.
        missing: of ``weights`` those of which a row was not found: another graph of the model has them.
    """

    ops: dict[str, int]
    weights: list[str] = field(default_factory=list)
    bits: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def quantize_graph(
    source: Path,
    out: Path,
    checkpoint: PackedSource,
    *,
    form: Form,
    accuracy_level: int,
    inputs: Inputs | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    alone: bool = True,
) -> Quantized:
    """Copy a dense graph with its packed weights in integers.

    Args:
        source: the dense graph (``.onnx`` with external data), made from the dequantized weights.
        out: the graph to write, in another directory; its data lie beside it.
        checkpoint: where the packed weights are.
        form: see :mod:`greenllm.export.forms`.
        accuracy_level: of MatMulNBits: 4 computes with int8 activations, 0 with float32.
        inputs: packed linears whose inputs become integers too; they take :mod:`greenllm.export.int8`.
        dtype: of the dense graph.
        progress: advanced by 1 in total.
        alone: whether no other graph has packed weights of this model; else :func:`join` sees that all are found.

    Raises:
        GreenError: a packed weight is not in the graph, or is used in a way no quantized operator has.
    """
    progress = progress or Silent()
    library = Library(checkpoint, dtype)
    weights = Weights(source)
    uses = find_uses(weights)
    with Writer(out) as writer:
        rewrite = _Rewrite(weights, writer, library, form, accuracy_level, inputs or {}, dtype)
        for name, found in uses.items():
            rewrite.matrix(name, found)
            progress.advance(1 / len(uses))
        missing = library.missing()
        if alone:
            _refuse(missing)
        rewrite.finish()
    return replace(_count(out, library.names, rewrite), missing=missing)


def join(graphs: Iterable[Quantized]) -> Quantized:
    """What was done to all graphs of a model.

    Raises:
        GreenError: a packed weight is in none of them.
    """
    each = list(graphs)
    _refuse([n for n in each[0].missing if all(n in q.missing for q in each)])
    ops = sum((Counter(q.ops) for q in each), Counter())
    return Quantized(dict(ops), each[0].weights, sorted({b for q in each for b in q.bits}))


def _refuse(missing: list[str]) -> None:
    if missing:
        raise GreenError(
            f"{len(missing)} quantized weights are not in the exported graph: {', '.join(missing[:5])}.",
            "This architecture's exporter changes its weights; try the other format (--to onnx or --to genai).",
        )


class _Rewrite:
    """The pass's state: new nodes by the id of the old one that they stand for."""

    def __init__(
        self, weights: Weights, writer: Writer, library: Library, form: Form, accuracy_level: int, inputs: Inputs,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.weights, self.writer, self.library = weights, writer, library
        self.form, self.accuracy_level, self.inputs, self.dtype = form, accuracy_level, inputs, dtype
        self.nodes = list(weights.model.graph.node)  # held: an id lasts as long as its object
        self.replaced: dict[int, list[NodeProto]] = {}
        self.gone: set[str] = set()
        self.expected: Counter[str] = Counter()
        self.bits: list[int] = []
        shapes = [*weights.model.graph.input, *weights.model.graph.value_info]
        self.ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in shapes}

    def matrix(self, name: str, uses: list[Use]) -> None:
        """Replace one initializer if it is made of packed rows."""
        turned = uses[0].turned
        values = self.weights.array(name).astype(np.float32, copy=False)
        found = self.library.find(values.T if turned else values, name=name)
        if found is None:
            return
        if any(u.turned != turned for u in uses) or len(uses) != self._readers(name, uses):
            raise GreenError(f"The exported graph uses the weight {name} in a way no quantized operator has.")
        gathered = [u for u in uses if u.node.op_type == "Gather"]
        if self.form == "typed" and gathered:  # an embedding stays as it is: see export.typed
            uses = [u for u in uses if u not in gathered]
            if not uses:
                return
        runs = self.library.split(found)
        # A MatMul first: it decides how a matrix is kept that an embedding shares.
        gathers = any(u.node.op_type == "Gather" for u in uses)
        only_gathers = all(u.node.op_type == "Gather" for u in uses)
        if gathers and len(runs) > 1:
            raise GreenError(f"The embedding {name} has rows of different bit widths or groups; that cannot be run.")
        stored = [
            self._store(f"{name}.{i}" if i else name, run, columns=not only_gathers) for i, run in enumerate(runs)
        ]
        for use in sorted(uses, key=self._position):
            self.replaced[id(use.node)] = self._nodes(use, stored, [len(run.rows) for run in runs])
            self.expected.update(n.op_type for n in self.replaced[id(use.node)])
            if use.via is not None:
                self.replaced[id(use.via)] = []
        if self.form != "typed" or not gathered:
            self.gone.add(name)

    def finish(self) -> None:
        """Copy what stayed dense and write the graph."""
        model = self.weights.model
        tables, formulas = replace_tables(self.weights, self.writer)
        self.gone |= tables
        for name in self.weights.by_name:
            if name not in self.gone:
                self.writer.copy(self.weights, name)
        nodes = [*formulas, *(new for old in self.nodes for new in self.replaced.get(id(old), [old]))]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        stale = [v for v in model.graph.value_info if v.name in self.gone]
        for v in stale:
            model.graph.value_info.remove(v)
        theirs = any(n.domain == _DOMAIN for n in nodes)
        if theirs and all(o.domain != _DOMAIN for o in model.opset_import):
            model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
        self.writer.save(model)

    def _store(self, name: str, run: Rows, *, columns: bool) -> Stored:
        packed = self.library.gather(run)
        self.bits.append(packed.bits)
        module = self.library.names[int(run.linears[0])]  # rows of one matrix share their inputs
        grid, rounds = self.inputs.get(module), module in self.inputs
        if self.form == "typed":
            return typed(self.writer, name, packed, self.dtype, grid=grid, rounds=rounds)
        if isinstance(packed, Float8):
            raise GreenError(f"The weight {name} is FP8, which TensorRT alone runs here.", "Export it --to tensorrt.")
        if isinstance(packed, Blockwise):
            return Bnb4(self.writer, name, packed)
        if rounds and not isinstance(grid, Float8Grid):
            return Int8(self.writer, name, packed, grid)
        if self.form == "nbits":
            return NBits(self.writer, name, packed, self.accuracy_level)
        return Qdq(self.writer, name, packed, columns=columns)

    def _nodes(self, use: Use, stored: list[Stored], widths: list[int]) -> list[NodeProto]:
        node, out = use.node, use.node.output[0]
        if node.op_type == "Gather":
            return stored[0].gather(node.input[1], out, self.ranks.get(node.input[1], 2))
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""  # noqa: PLR2004 - A, B, C
        whole = f"{out}.product" if bias else out
        if len(stored) == 1:
            nodes = stored[0].matmul(node.input[0], whole)
        else:
            split = None if bias else self._split(out, widths)
            parts = list(split.output) if split else [f"{out}.part{i}" for i in range(len(stored))]
            nodes = [n for s, part in zip(stored, parts, strict=True) for n in s.matmul(node.input[0], part)]
            if split:
                self.replaced[id(split)] = []
            else:
                nodes.append(helper.make_node("Concat", parts, [whole], whole, axis=-1))
        if bias:
            nodes.append(helper.make_node("Add", [whole, bias], [out], out))
        return nodes

    def _split(self, whole: str, widths: list[int]) -> NodeProto | None:
        """The one reader of ``whole`` if it cuts it into ``widths`` again, as after a fused gate and up."""
        readers = [n for n in self.nodes if whole in n.input]
        if len(readers) != 1 or readers[0].op_type != "Split" or len(readers[0].input) != 1:
            return None
        given = {a.name: helper.get_attribute_value(a) for a in readers[0].attribute}
        same = given.get("axis") == -1 and len(readers[0].output) == len(widths) and len(set(widths)) == 1
        return readers[0] if same else None

    def _position(self, use: Use) -> int:
        return next(i for i, n in enumerate(self.weights.model.graph.node) if n is use.node)

    def _readers(self, name: str, uses: list[Use]) -> int:
        """How many nodes read the matrix, be it through one of its Transposes."""
        names = {name, *(u.via.output[0] for u in uses if u.via is not None)}
        vias = {id(u.via) for u in uses}
        return sum(i in names for n in self.weights.model.graph.node if id(n) not in vias for i in n.input)


def _count(out: Path, names: list[str], rewrite: _Rewrite) -> Quantized:
    """Read the graph that was written and compare its operators with what it should have.

    Raises:
        GreenError: an operator is missing.
    """
    model = onnx.load(str(out), load_external_data=False)
    ops = Counter(n.op_type for n in model.graph.node)
    for kind in _QUANTIZED:
        if ops[kind] != rewrite.expected[kind]:
            raise GreenError(f"{out} has {ops[kind]} operators {kind} where {rewrite.expected[kind]} were written.")
    return Quantized({k: ops[k] for k in (*_QUANTIZED, "MatMul", "Gather") if ops[k]}, names, sorted(set(rewrite.bits)))
