"""OpenVINO on the CPU: a directory with ``openvino_model.xml``, a causal model that keeps its cache as state.

The inputs are those of optimum-intel's exports: input_ids, attention_mask, position_ids, beam_idx.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from greenllm.bench.runners import Decoder, Info, Runner
from greenllm.errors import GreenError

GRAPH = "openvino_model.xml"


def load(path: str, threads: int) -> Runner:
    """See :class:`greenllm.bench.runners.Loader`."""
    return OpenvinoDecoder(Path(path), threads)


class OpenvinoDecoder(Decoder):
    """Runs with OpenVINO's own settings; the prompt's head is computed for its last position, as OpenVINO GenAI does.

    Perplexity needs all positions: the whole graph is compiled for it when it is first asked for.
    """

    def __init__(self, directory: Path, threads: int) -> None:
        self._core = ov.Core()
        self._settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        self._file = directory / GRAPH
        graph = self._core.read_model(self._file)
        self._inputs = {name for i in graph.inputs for name in i.names}
        unknown = self._inputs - {"input_ids", "attention_mask", "position_ids", "beam_idx"}
        if unknown or not graph.get_variables():
            raise GreenError(
                f"{self._file}: a graph with inputs {sorted(unknown)} and {len(graph.get_variables())} states is not "
                "known here.",
                "Export it as a stateful model.",
            )
        vocabulary = graph.output("logits").partial_shape[-1]
        _last_position_only(graph)
        self._fast = self._core.compile_model(graph, "CPU", self._settings).create_infer_request()
        self._whole: Any = None
        self._length = 0
        kept = self._fast.get_compiled_model().get_property("KV_CACHE_PRECISION").get_type_name()
        self.info = Info(
            "text-generation",
            directory,
            vocabulary.get_length() if vocabulary.is_static else 0,
            None,
            [f"OpenVINO {ov.__version__.split('-')[0]} on the CPU, stateful, {kept} cache"],
        )

    def prefill(self, tokens: list[int], answer: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`."""
        del answer  # the cache grows
        self._length = 0
        self._fast.reset_state()
        return self.step(*tokens)

    def step(self, *tokens: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`."""
        return int(self._run(self._fast, list(tokens))[-1].argmax())

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """See :class:`greenllm.bench.runners.Runner`."""
        if self._whole is None:
            graph = self._core.read_model(self._file)
            self._whole = self._core.compile_model(graph, "CPU", self._settings).create_infer_request()
        self._length = 0
        self._whole.reset_state()
        return self._run(self._whole, tokens).astype(np.float32)

    def _run(self, request: Any, tokens: list[int]) -> NDArray[np.float32]:
        """Logits [T, V] of new tokens, or of the last one."""
        total = self._length + len(tokens)
        feed: dict[str, NDArray[Any]] = {
            "input_ids": np.array([tokens], dtype=np.int64),
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(self._length, total, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        request.infer({name: value for name, value in feed.items() if name in self._inputs}, share_inputs=True)
        self._length = total
        found: NDArray[np.float32] = request.get_tensor("logits").data[0]
        return found

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._fast = self._whole = None


def _last_position_only(graph: ov.Model) -> None:
    """Cut the states before the head to the last position."""
    head = graph.output("logits").get_node().input_value(0).get_node()
    while head.get_type_name() in {"Convert", "Add", "Multiply", "Tanh", "Divide"}:  # bias, soft cap
        head = head.input_value(0).get_node()
    if head.get_type_name() != "MatMul":
        raise GreenError(f"The logits come from {head.get_type_name()}, not from a matrix product.")
    states = head.input(0)
    cut = ops.slice(states.get_source_output(), np.array([-1]), np.array([2**31 - 1]), np.array([1]), np.array([1]))
    states.replace_source_output(cut.output(0))
    graph.validate_nodes_and_infer_types()
