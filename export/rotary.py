"""Rotary tables as a formula: a few kB of frequencies in the file instead of megabytes of cosines.

Exporters store cos and sin of position times frequency for every position of the context. The runtime
computes them when it loads (constant folding), so the graph that runs is the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from greenllm.export.graph import Weights, Writer

_READERS = {"GroupQueryAttention": (7, 8), "RotaryEmbedding": (2, 3)}  # where they take cos and sin
_CLOSE = 1e-6  # two libraries' cosines of the same float32 angle differ by less


def replace_tables(weights: Weights, writer: Writer) -> tuple[set[str], list[NodeProto]]:
    """Nodes that compute the rotary tables of a graph, and the names of the tables that they stand for.

    A table that no set of frequencies explains (scaled ones of some long contexts) is left alone.
    """
    pairs = {
        (node.input[at[0]], node.input[at[1]])
        for node in weights.model.graph.node
        if (at := _READERS.get(node.op_type)) and len(node.input) > at[1]
    }
    gone: set[str] = set()
    nodes: list[NodeProto] = []
    for cos, sin in sorted(pairs):
        if not _is_table(weights, cos) or not _is_table(weights, sin) or {cos, sin} & gone:
            continue
        found = frequencies(weights.array(cos), weights.array(sin))
        if found is not None:
            gone |= {cos, sin}
            nodes += _formula(writer, cos, sin, found, len(weights.array(cos)))
    return gone, nodes


def frequencies(cos: NDArray[np.float32], sin: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The frequencies float32 [D] of which ``cos`` and ``sin`` [L, D] are the tables; None if there are none.

    Each is read off position 1 and made exact at positions 2, 4, 8, ..., whose angles have no rounding.
    """
    if cos.shape != sin.shape or len(cos) < 2:  # noqa: PLR2004 - one position tells nothing
        return None
    f = np.zeros(cos.shape[1])
    position = 1
    while position < len(cos):
        angle = np.arctan2(sin[position].astype(float), cos[position].astype(float))
        off = angle - position * f
        f += (off - 2 * np.pi * np.round(off / (2 * np.pi))) / position
        position *= 2
    exact = f.astype(np.float32)
    angles = np.arange(len(cos), dtype=np.float32)[:, None] * exact
    worst = max(np.abs(np.cos(angles) - cos).max(), np.abs(np.sin(angles) - sin).max())
    return exact if worst < _CLOSE else None


def _is_table(weights: Weights, name: str) -> bool:
    found = weights.by_name.get(name)
    return found is not None and len(found.dims) == 2 and found.data_type == TensorProto.FLOAT  # noqa: PLR2004


def _formula(writer: Writer, cos: str, sin: str, f: NDArray[np.float32], length: int) -> list[NodeProto]:
    ends = [writer.add(f"{cos}.{n}", np.array(v, np.float32)) for n, v in (("from", 0), ("to", length), ("step", 1))]
    column = writer.add(f"{cos}.column", np.array([-1, 1]))
    names = [f"{cos}.{n}" for n in ("positions", "rows", "angles")]
    return [
        helper.make_node("Range", ends, [names[0]], names[0]),
        helper.make_node("Reshape", [names[0], column], [names[1]], names[1]),
        helper.make_node("Mul", [names[1], writer.add(f"{cos}.frequencies", f[None])], [names[2]], names[2]),
        helper.make_node("Cos", [names[2]], [cos], cos),
        helper.make_node("Sin", [names[2]], [sin], sin),
    ]
