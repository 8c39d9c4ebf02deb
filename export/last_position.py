"""Logits for the last position only, unless a reader asks for more.

An exporter's graph computes the logits of every position of a prompt; to go on from it takes the last one's. What
comes after the last attention treats each position on its own, so that the wanted ones can be cut out before it.

The graph gets an optional input ``first_logit``, int64 [1]: the first position whose logits are computed. It has the
default -1, so that a runtime that does not know it gets the last; 0 gives all positions.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

FIRST = "first_logit"
LOGITS = "logits"
# Operators that treat each position of [batch, position, ...] on its own.
_BY_POSITION = {
    "MatMul", "MatMulNBits", "MatMulBnb4", "Add", "Sub", "Mul", "Div", "Cast", "Split", "Concat",
    "Sigmoid", "Tanh", "Relu", "Gelu", "FastGelu", "QuickGelu",
    "LayerNormalization", "SimplifiedLayerNormalization",
    "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
}  # fmt: skip


def cut_to_last_position(model: ModelProto) -> bool:
    """Give ``model`` the input ``first_logit``; its logits [B, S, V] become [B, 1, V] where it is not fed.

    Returns:
        Whether it did; a graph that ends in operators that are not known here stays as it is.
    """
    graph = model.graph
    nodes = list(graph.node)
    tail = _tail(nodes, {o.name for o in graph.output} - {LOGITS})
    made = {name for i in tail for name in nodes[i].output}
    if LOGITS not in made:
        return False
    live = _live(graph)
    crossing = list(dict.fromkeys(x for i in tail for x in nodes[i].input if x in live - made))
    end, axis = f"{FIRST}.end", f"{FIRST}.axis"
    graph.initializer.extend(
        numpy_helper.from_array(np.array([value], np.int64), name)
        for name, value in ((FIRST, -1), (end, np.iinfo(np.int64).max), (axis, 1))
    )
    graph.input.append(helper.make_tensor_value_info(FIRST, TensorProto.INT64, [1]))
    for i in tail:
        nodes[i].input[:] = [f"{x}.wanted" if x in crossing else x for x in nodes[i].input]
    slices = [helper.make_node("Slice", [x, FIRST, end, axis], [f"{x}.wanted"], f"{x}.wanted") for x in crossing]
    ordered = [*(n for i, n in enumerate(nodes) if i not in tail), *slices, *(nodes[i] for i in sorted(tail))]
    del graph.node[:]
    graph.node.extend(ordered)
    next(o for o in graph.output if o.name == LOGITS).type.tensor_type.shape.dim[1].dim_value = 1
    for stale in [v for v in graph.value_info if v.name in made]:
        graph.value_info.remove(stale)
    return True


def _tail(nodes: list[NodeProto], others: set[str]) -> set[int]:
    """Which nodes treat each position on its own and are followed by such nodes only, up to the logits.

    Args:
        nodes: in topological order.
        others: outputs of the graph that are not the logits.
    """
    readers: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        for x in node.input:
            readers.setdefault(x, []).append(i)
    tail: set[int] = set()
    for i, node in reversed(list(enumerate(nodes))):
        after = [r for x in node.output for r in readers.get(x, [])]
        leads_on = bool(after) or LOGITS in node.output
        if node.op_type in _BY_POSITION and leads_on and tail.issuperset(after) and not others & set(node.output):
            tail.add(i)
    return tail


def _live(graph: GraphProto) -> set[str]:
    """Tensors that depend on what is fed."""
    live = {i.name for i in graph.input} - {t.name for t in graph.initializer}
    for node in graph.node:
        if live & set(node.input):
            live |= set(node.output)
    return live - {""}
