"""OpenVINO int4: a checkpoint traced to a stateful graph, its weights compressed by NNCF with its defaults.

The graph is shaped as optimum-intel shapes it: the cache is state, reordered by ``beam_idx``. Batch 1.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as ops
from torch import Tensor, nn

_GROUP = 64  # the largest power of two that divides SmolLM2's 576 columns; NNCF's own 128 does not


class _Flat(nn.Module):
    """A causal model as a function of ids, mask, positions, then keys and values in turn."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Logits, then keys and values with the new tokens' at their end."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        cache = DynamicCache()
        for keys, values in zip(past[::2], past[1::2], strict=True):
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values  # update() of an empty layer traces to a constant
            cache.layers.append(layer)
        out = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        return (out.logits, *(t for layer in out.past_key_values.layers for t in (layer.keys, layer.values)))


def write(checkpoint: Path, out: Path) -> None:
    """Make ``openvino_model.xml``: symmetric int4 in groups of 64, embedding and head int8.

    Args:
        checkpoint: a dense causal model that transformers loads.
        out: existing directory to fill.
    """
    import nncf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    graph = stateful(trace(model))
    compressed = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=_GROUP, ratio=1.0)
    ov.save_model(compressed, out / "openvino_model.xml")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, out)


def trace(model: Any) -> ov.Model:
    """With optimum's names, for batch 1 and any length."""
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape, count = (1, config.num_key_value_heads, 3, width), 2 * config.num_hidden_layers
    example = (torch.ones(1, 5, dtype=torch.int64), torch.ones(1, 8, dtype=torch.int64), torch.arange(3, 8)[None])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of each branch on a shape
        graph: ov.Model = ov.convert_model(
            _Flat(model), example_input=(*example, *(torch.zeros(shape) for _ in range(count)))
        )
    cache = [f"{i}.{kind}" for i in range(count // 2) for kind in ("key", "value")]
    inputs = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{c}" for c in cache)]
    outputs = ["logits", *(f"present.{c}" for c in cache)]
    for port, name in [*zip(graph.inputs, inputs, strict=True), *zip(graph.outputs, outputs, strict=True)]:
        port.get_tensor().set_names({name})
    flat, past = ov.PartialShape([1, -1]), ov.PartialShape([1, shape[1], -1, width])
    graph.reshape({name: past if name.startswith("past") else flat for name in inputs})
    return graph


def stateful(graph: ov.Model) -> ov.Model:
    """Inputs ``past_key_values…`` and outputs ``present…`` become state."""
    from openvino._offline_transformations import apply_make_stateful_transformation

    beam = ops.parameter(ov.PartialShape([1]), np.int32, name="beam_idx")
    beam.output(0).get_tensor().set_names({"beam_idx"})
    pairs = {}
    for port in graph.inputs[3:]:
        readers = port.get_target_inputs()
        chosen = ops.gather(port, beam, np.array(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
        pairs[port.any_name] = port.any_name.replace("past_key_values", "present")
    graph.add_parameters([beam])
    apply_make_stateful_transformation(graph, pairs)
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":  # the CPU's plug-in wants to be told that a cache begins empty
            empty = [d.min_length for d in node.get_output_partial_shape(0)]
            node.set_arguments([ops.broadcast(np.float32(0), np.array(empty)).output(0)])
    graph.validate_nodes_and_infer_types()
    return graph
