"""Names of weights in a graph that torch exported: of matrices, which it turns round for a MatMul, it keeps numbers."""

from __future__ import annotations

import ast
from pathlib import Path

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: the modules that it lies in, and itself


def name_weights(path: Path) -> None:
    """Call each matrix of the graph by the module that multiplies by it, and drop what the exporter notes of nodes.

    Notes name files of this machine, and of a small graph they are the larger part.
    """
    model = onnx.load(str(path), load_external_data=False)
    weights = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "[]")
        del node.metadata_props[:]
        inside = ast.literal_eval(scopes)[:-1]
        if node.op_type != "MatMul" or not inside or not node.input[1].startswith("val_"):
            continue
        old, new = node.input[1], f"{inside[-1]}.weight"
        if old in weights and new not in weights:
            weights[new] = weights.pop(old)
            weights[new].name = new
            for reader in model.graph.node:
                reader.input[:] = [new if i == old else i for i in reader.input]
    onnx.save(model, str(path))
