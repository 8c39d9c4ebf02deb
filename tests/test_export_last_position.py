"""Logits for the last position only: what is computed is what the plain graph computes, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import OLD, make_llama
from onnx import TensorProto, helper, numpy_helper

import greenllm
from greenllm.bench.runners import loader
from greenllm.export.last_position import FIRST, cut_to_last_position

H, V, T = 8, 16, 6


def graph(*, tail=(), outputs=("present",)):
    """Two positions-mixing layers with a residual, a cache that goes out, a norm and a head."""
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in (("e", (V, H)), ("w", (H, H)), ("h", (H, V)))}
    weights["axis"] = np.array(1, np.int64)
    make = helper.make_node
    nodes = [
        make("Gather", ["e", "ids"], ["x"]), make("MatMul", ["x", "w"], ["kv"]), make("CumSum", ["kv", "axis"], ["a"]),
        make("Identity", ["kv"], ["present"]), make("MatMul", ["a", "w"], ["o"]), make("Add", ["x", "o"], ["r"]),
        make("MatMul", ["r", "w"], ["m"]), make("Sigmoid", ["m"], ["g"]), make("Mul", ["m", "g"], ["s"]),
        *tail, make("Add", ["r", "s"], ["f"]), make("MatMul", ["f", "h"], ["logits"]),
    ]  # fmt: skip
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "t"])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "t", None]) for n in ("logits", *outputs)],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(model, **feed):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": np.arange(T)[None], **feed})


def test_the_last_position_unless_more_is_asked_for():
    model = graph()
    want, cache = run(model)
    assert cut_to_last_position(model)
    onnx.checker.check_model(model)
    for first in (None, -1, -3, 0, 2):
        feed = {} if first is None else {FIRST: np.array([first])}
        got, present = run(model, **feed)
        np.testing.assert_array_equal(got, want[:, -1 if first is None else first :])
        np.testing.assert_array_equal(present, cache)
    assert [n for n in (i.name for i in model.graph.input) if n != FIRST] == ["ids"]


def test_it_is_cut_right_after_the_last_operator_that_mixes_positions():
    model = graph()
    cut_to_last_position(model)
    cuts = {n.input[0] for n in model.graph.node if n.op_type == "Slice"}
    assert cuts == {"a", "x"}


def test_what_another_output_needs_is_not_cut():
    model = graph(outputs=("present", "m"))
    want = run(model)
    assert cut_to_last_position(model)
    got = run(model)
    np.testing.assert_array_equal(got[0], want[0][:, -1:])
    np.testing.assert_array_equal(got[2], want[2])


def test_an_operator_that_is_not_known_ends_the_cut_part():
    """Softmax over the positions, say, must see all of them."""
    model = graph(tail=[helper.make_node("Softmax", ["s"], ["p"], axis=1)])
    model.graph.node[-2].input[1] = "p"
    want = run(model)[0]
    assert cut_to_last_position(model)
    np.testing.assert_array_equal(run(model)[0], want[:, -1:])
    assert {n.input[0] for n in model.graph.node if n.op_type == "Slice"} == {"r", "p"}


def test_a_graph_that_ends_in_an_unknown_operator_is_left_alone():
    model = graph()
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.append(helper.make_node("Identity", ["inner"], ["logits"]))
    before = model.SerializeToString()
    assert not cut_to_last_position(model)
    assert model.SerializeToString() == before


@pytest.mark.skipif(OLD, reason="this onnxruntime-genai wants all positions")
@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_decoder_scores_all_positions_and_goes_on_from_the_last(tmp_path, tied):
    model = make_llama(tmp_path / "m", tied=tied)
    done = greenllm.export(model, tmp_path / "g", to="genai")
    tokens = list(range(5, 45))
    genai, plain = (loader(n).load(str(done.path), 1) for n in ("genai", "onnxruntime"))
    logits = genai.logits(tokens)
    assert logits.shape == (40, 128)
    np.testing.assert_array_equal(plain.logits(tokens), logits)
    first = genai.prefill(tokens, 3)
    assert first == plain.prefill(tokens, 3) == logits[-1].argmax()
    assert genai.step(first) == plain.step(first) == genai.logits([*tokens, first])[-1].argmax()
    session = onnxruntime.InferenceSession(str(done.path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_overridable_initializers()] == [FIRST]
