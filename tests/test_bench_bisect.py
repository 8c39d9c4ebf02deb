"""Bisection: a damaged block is found, and a faithful graph is told to be one."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import pytest
from conftest import make_bert, make_llama

import greenllm
from greenllm.bench import Effort
from greenllm.bench.bisect import departs, errors
from greenllm.errors import GreenError

LEAST = Effort(windows=2, sentences=10, sittings=2, width=0.9, seconds=0.1, turn=0.01)
QUICK = {"effort": LEAST, "energy": False, "prompt_tokens": 16, "answer_tokens": 4, "window": 64, "bisect": True}


def walk(rng, count):
    """Hidden states as blocks leave them: each a little other than the one before."""
    steps = rng.normal(size=(count, 5, 8)).astype(np.float32) * 0.3
    return np.cumsum(steps, axis=0) + rng.normal(size=(5, 8)).astype(np.float32)


def test_outputs_are_found_among_other_values_in_the_graphs_order():
    rng = np.random.default_rng(0)
    blocks = walk(rng, 6)
    values = []
    for i, block in enumerate(blocks):
        values.append(rng.normal(size=block.shape).astype(np.float32))  # something else
        if i != 3:  # fused away
            values.append(block * np.float32(1.001 if i < 4 else 1.2))
    found = errors(blocks, values)
    assert {i: round(e, 4) for i, e in found.items() if i != 3} == {0: 0.001, 1: 0.001, 2: 0.001, 4: 0.2, 5: 0.2}
    assert found.get(3, 1.0) > 0.1
    assert errors(blocks, []) == {}


@pytest.mark.parametrize(
    ("found", "first"),
    [
        ({}, None), ({0: 1e-7, 1: 2e-6, 2: 9e-6}, None), ({0: 1e-7, 1: 0.02}, 1), ({0: 1e-6, 1: 0.003, 2: 0.004}, 1),
        ({0: 4e-4, 1: 9e-4, 2: 3e-3, 3: 9e-3}, None), ({0: 0.5}, 0),
    ],
)  # fmt: skip
def test_where_it_departs(found, first):
    assert departs(found) == first


def damaged(graph, out, name):
    """A copy of an exported directory, one weight of which is another."""
    shutil.copytree(graph, out)
    file = out / "model.onnx"
    model = onnx.load(file)
    (out / "model.onnx.data").unlink(missing_ok=True)
    tensor = next(t for t in model.graph.initializer if name in t.name and len(t.dims) == 2)
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array((values[::-1] * 1).astype(values.dtype), tensor.name))
    onnx.save(model, file)
    (out / "greenllm.json").unlink()
    return out


def test_a_damaged_block_is_found(tmp_path):
    source = make_llama(tmp_path / "m", layers=5, vocab=300)
    whole = greenllm.export(source, tmp_path / "x", to="genai").path
    bad = damaged(whole, tmp_path / "bad", "layers.3.mlp.down_proj")
    found = greenllm.bench([source, whole, bad], report=tmp_path / "report", **QUICK)
    assert "Error by block" in (tmp_path / "report" / "report.html").read_text()
    _, good, worse = found.rows
    assert max(good.blocks.values()) < 1e-4
    assert any("it computes what m computes" in n for n in good.notes)
    assert departs({int(k): v for k, v in worse.blocks.items()}) == 3
    assert any("departs from m first in block 3" in n for n in worse.notes)


def test_a_plain_graph_is_followed_too(tmp_path):
    source = make_llama(tmp_path / "m", vocab=300)
    found = greenllm.bench([source, greenllm.export(source, tmp_path / "x", to="onnx").path], **QUICK)
    assert len(found.rows[1].blocks) == 2
    assert max(found.rows[1].blocks.values()) < 1e-4


def test_a_graph_with_names_for_the_sizes_of_its_cache_is_followed(tmp_path):
    source = make_llama(tmp_path / "m", vocab=300)
    made = greenllm.export(source, tmp_path / "x", to="onnx").path
    (made / "greenllm.json").unlink()
    model = onnx.load(made / "model.onnx", load_external_data=False)
    for each in [i for i in model.graph.input if i.name.startswith("past")]:
        for place in (1, 3):
            each.type.tensor_type.shape.dim[place].dim_param = f"size_{place}"
    onnx.save(model, made / "model.onnx")
    shutil.copy(source / "config.json", made)
    found = greenllm.bench([source, made], **QUICK).rows[1]
    assert found.error is None
    assert max(found.blocks.values()) < 1e-4
    (made / "config.json").unlink()
    with pytest.raises(GreenError, match=r"how many heads its cache has"):
        greenllm.bench([source, made], **QUICK)


def test_an_encoder_is_followed_too(tmp_path):
    source = make_bert(tmp_path / "m")
    found = greenllm.bench([source, greenllm.export(source, tmp_path / "x").path], **QUICK)
    assert found.rows[1].blocks
    assert max(found.rows[1].blocks.values()) < 1e-3


def test_integer_weights_are_followed_as_they_are_deployed(tmp_path):
    made = greenllm.compress(make_llama(tmp_path / "m", layers=3, vocab=300), tmp_path / "x", bench=False).path
    found = greenllm.bench([made / "checkpoint", made / "deploy"], **QUICK)
    assert len(found.rows[1].blocks) == 3
    assert max(found.rows[1].blocks.values()) < 0.1  # inputs rounded to int8 by the runtime
