"""Where a graph reads its float matrices, and how each is kept."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import NodeProto, TensorProto, helper

from greenllm.export.graph import Weights

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass
class Use:
    """A node that reads a matrix W [N, K], however the graph keeps it.

    Attributes:
        node: MatMul, Gemm or Gather.
        turned: whether the graph keeps W as [K, N].
        via: the Transpose between the initializer and the node.
    """

    node: NodeProto
    turned: bool
    via: NodeProto | None = None


def find_uses(weights: Weights) -> dict[str, list[Use]]:
    """Float matrices among the initializers, and the nodes that multiply by them or look rows up."""
    graph = weights.model.graph
    matrices = {
        n
        for n, t in weights.by_name.items()
        if len(t.dims) == 2 and t.data_type in _FLOATS  # noqa: PLR2004
    }
    vias = {n.output[0]: n for n in graph.node if n.op_type == "Transpose" and n.input[0] in matrices}
    found: dict[str, list[Use]] = {}
    for node in graph.node:
        at = {"MatMul": 1, "Gemm": 1, "Gather": 0}.get(node.op_type)
        if at is None or len(node.input) <= at:
            continue
        via = vias.get(node.input[at])
        name = via.input[0] if via is not None else node.input[at]
        kept_as_kn = _reads_kn(node)
        if name in matrices and kept_as_kn is not None:
            found.setdefault(name, []).append(Use(node, kept_as_kn != (via is not None), via))
    return found


def _reads_kn(node: NodeProto) -> bool | None:
    """Whether the node wants its matrix as [K, N]; None when no quantized operator stands for it."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "MatMul":
        return True
    if node.op_type == "Gather":
        return False if given.get("axis", 0) == 0 else None
    plain = given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
    return not given.get("transB", 0) if plain else None
