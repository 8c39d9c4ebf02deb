"""All that an ONNX graph computes: every value becomes an output. Needs ``onnx``; not for timing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Feed = Callable[[ort.InferenceSession], dict[str, Any]]


def values(graph: Path, feed: Feed, shape: tuple[int, int]) -> list[NDArray[np.float32]]:
    """What the graph computes of one shape, in its order.

    Args:
        graph: the ``.onnx`` file, its external data beside it.
        feed: makes the inputs, given the session.
        shape: [T, H] of what is wanted; leading ones do not count.
    """
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    there = {o.name for o in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(names, feed(session))
    wide = [v for v in found if isinstance(v, np.ndarray) and v.dtype.kind == "f" and v.ndim]
    fits = [v for v in wide if v.shape[-1] == shape[1] and v.size == shape[0] * shape[1]]
    return [v.reshape(shape).astype(np.float32) for v in fits]
