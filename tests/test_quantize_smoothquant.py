"""SmoothQuant and integer inputs: equation 4, folds that change nothing, and graphs that ONNX Runtime fuses."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import greenllm
from greenllm import pipeline, recipe
from greenllm.bench.runners import onnxruntime as runner
from greenllm.blocks import blocks_of
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.export.int8 import int8_rows
from greenllm.export.quantized import quantize_graph
from greenllm.quantize.activations import Ranges, dynamic_round, grid_of, read, words
from greenllm.quantize.fold import first_call
from greenllm.quantize.grid import Grid
from greenllm.quantize.linear import linears
from greenllm.quantize.rtn import round_to_nearest
from greenllm.quantize.smoothquant import smooth_block, smooth_scales

K, N = 64, 48


def inputs(rows=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, K, generator=g)
    x[:, [3, 40]] *= 50
    return x


def weight(seed=1):
    return torch.randn(N, K, generator=torch.Generator().manual_seed(seed))


def test_scales_are_those_of_equation_4():
    x, W = inputs().abs().amax(0), weight()
    for alpha in (0.25, 0.5, 1.0):
        want = [float(x[j]) ** alpha / float(W[:, j].abs().max()) ** (1 - alpha) for j in range(K)]
        np.testing.assert_allclose(smooth_scales([W[:20], W[20:]], x, alpha).numpy(), want, rtol=1e-5)


def test_dead_channels_are_left_alone_and_outliers_stay_finite():
    x, W = inputs().abs().amax(0), weight()
    x[5], W[:, 9], W[0, 2] = 0, 0, 1e30
    s = smooth_scales([W], x, 0.5)
    assert s[5] == 1
    assert s[9] == 1
    assert torch.isfinite(s).all()
    assert (s > 0).all()


@pytest.mark.parametrize("where", ["inputs", "weights"])
def test_nan_is_told(where):
    x, W = inputs().abs().amax(0), weight()
    (x if where == "inputs" else W[0])[0] = torch.nan
    with pytest.raises(GreenError, match="NaN"):
        smooth_scales([W], x, 0.5)


def test_smoothing_makes_w8a8_better():
    x, W = inputs(), weight()
    s = smooth_scales([W], x.abs().amax(0), 0.5)

    def error(x, W):
        W8 = round_to_nearest(W, Grid(8, -1, symmetric=True)).dequantize()
        return (dynamic_round(x) @ W8.T - x @ W.T).norm()

    assert error(x / s, W * s) < 0.6 * error(x, W)


@pytest.mark.parametrize("fixture", ["llama", "bert"])
def test_a_smoothed_block_computes_what_it_did(request, fixture):
    """And where a norm takes the scales, the channels of the inputs come nearer to each other."""
    model = open_checkpoint(request.getfixturevalue(fixture)).load_model()
    _, blocks = blocks_of(model)
    ids = torch.arange(3, 35).view(2, 16)
    with torch.no_grad():
        with first_call(blocks[0]) as call:
            want = model(input_ids=ids)[0]
        before = [m.weight.clone() for m in linears(blocks[0]).values()]
        smooth_block("b", blocks[0], lambda: call.run(blocks[0]), 0.5)
        got = model(input_ids=ids)[0]
    assert any(not torch.equal(a, m.weight) for a, m in zip(before, linears(blocks[0]).values(), strict=True))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_grid_spans_its_range_and_has_zero():
    for low, high in [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)]:
        grid = grid_of(low, high)
        x = torch.linspace(min(low, 0), max(high, 0), 300)
        assert (grid.round(x) - x).abs().max() <= 0.5001 * grid.scale + 1e-9
        assert grid.round(torch.zeros(1)) == 0
    assert grid_of(-1, 3, symmetric=True).zero == 128


def test_dynamic_rounding_is_that_of_onnx():
    x = inputs().numpy()
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    back = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])
    got = run_nodes([node, back], {}, {"x": x})[0]
    np.testing.assert_allclose(got, dynamic_round(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-5)


def test_ranges_that_were_never_seen_or_hold_nan_are_refused():
    layer = nn.Linear(4, 4)
    ranges = Ranges({"a": layer})
    with pytest.raises(GreenError, match="never ran"):
        ranges.grid("a", symmetric=False)
    with ranges.watching():
        layer(torch.full((1, 4), torch.nan))
    with pytest.raises(GreenError, match="NaN"):
        ranges.grid("a", symmetric=False)


def test_grids_of_inputs_come_back_from_the_configuration():
    given = {"a": grid_of(-1, 2), "b": None}
    assert read({"meta": {"inputs": json.loads(json.dumps(words(given)))}}) == given
    with pytest.raises(GreenError, match="no grid for the inputs of a"):
        read({"meta": {"inputs": {"a": {"scale": 0, "zero": 0}}}})


@pytest.mark.parametrize(("bits", "group"), [(8, -1), (8, 32), (4, 32), (3, 16)])
def test_int8_rows_stand_for_the_weight(bits, group):
    packed = round_to_nearest(weight(), Grid(bits, group, symmetric=True))
    codes, scales = int8_rows(packed)
    W = packed.dequantize().numpy()
    kept = bits == 8 and group == -1
    assert (scales > 0).all()
    off = np.abs(codes * scales[:, None] - W)
    assert (off <= (1.001 if kept else 0.501) * scales[:, None]).all()
    assert (off > 1e-6).sum() <= (N if kept else N * K)  # of kept codes only a row's -128 moves


def graph_of(tmp_path, packed, grid):
    """x @ W.T + c, packed with inputs on ``grid``."""
    W = np.ascontiguousarray(packed.dequantize().numpy().T)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "c"], ["y"])]
    model = model_of(nodes, {"w": W, "c": np.ones(N, np.float32)}, {"x": [None, None, K]})
    (tmp_path / "d").mkdir()
    onnx.save(model, str(tmp_path / "d" / "m.onnx"), save_as_external_data=True, location="w", size_threshold=0)
    quantize_graph(
        tmp_path / "d" / "m.onnx", tmp_path / "m.onnx", Source(packed), form="qdq", accuracy_level=4,
        inputs={"a": grid},
    )  # fmt: skip
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    return tmp_path / "m.onnx"


class Source:
    def __init__(self, packed):
        self.one = packed

    def packed(self):
        yield "a", self.one

    def read_packed(self, module):
        assert module == "a"
        return self.one


def model_of(nodes, weights, inputs):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(next(iter(inputs.values()))))],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run_nodes(nodes, weights, feed):
    model = model_of(nodes, weights, {n: list(v.shape) for n, v in feed.items()})
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)


def fused(path, tmp_path):
    """What ONNX Runtime makes of a graph, and a session of it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return {
        n.op_type for n in onnx.load(str(tmp_path / "optimized.onnx"), load_external_data=False).graph.node
    }, session


@pytest.mark.parametrize("kind", ["dynamic", "static", "symmetric"])
@pytest.mark.parametrize(("bits", "group"), [(8, -1), (8, 32), (4, 32)])
def test_a_graph_is_fused_and_computes_what_its_integers_stand_for(tmp_path, kind, bits, group):
    packed = round_to_nearest(weight(), Grid(bits, group, symmetric=True))
    x = inputs()[None]
    grid = None if kind == "dynamic" else grid_of(float(x.min()), float(x.max()), symmetric=kind == "symmetric")
    ops, session = fused(graph_of(tmp_path, packed, grid), tmp_path)
    assert ops <= {"DynamicQuantizeMatMul", "QuantizeLinear", "MatMulIntegerToFloat", "Add"}
    codes, scales = int8_rows(packed)
    rounded = dynamic_round(x) if grid is None else grid.round(x)
    want = rounded.numpy() @ (codes * scales[:, None]).T + 1
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], want, rtol=1e-4, atol=2e-3)


def test_four_bits_stay_four_bits_in_the_file(tmp_path):
    packed = round_to_nearest(weight(), Grid(4, 32, symmetric=True))
    path = graph_of(tmp_path, packed, None)
    stored = {t.name: t for t in onnx.load(str(path)).graph.initializer}
    assert stored["w.narrow.qweight"].data_type == TensorProto.INT4


def quantized(checkpoint, out, **options):
    step = {"method": "rtn", "bits": 8, "group": -1, "head_bits": 0, **options}
    made = recipe.Recipe(
        name="w8a8", calibration=recipe.Calibration(source="self", samples=8, length=16),
        steps=[recipe.make_step("quantize", step, "w8a8")],
    )  # fmt: skip
    return pipeline.run_steps(checkpoint, out, made)


@pytest.mark.parametrize("activations", ["dynamic", "static", "symmetric"])
@pytest.mark.parametrize("fixture", ["llama", "bert"])
def test_a_checkpoint_goes_the_whole_way(request, tmp_path, fixture, activations):
    smooth = 0.5 if fixture == "llama" else 0
    made = quantized(request.getfixturevalue(fixture), tmp_path / "c", activations=activations, smooth=smooth)
    opened = open_checkpoint(made.path)
    linear = {n for n in linears(opened.skeleton()) if "layers." in n or "layer." in n}
    assert set(opened.inputs) == linear
    assert all((g is None) == (activations == "dynamic") for g in opened.inputs.values())
    done = greenllm.export(made, tmp_path / "e")
    assert done.manifest.kind == "onnx"
    ops, _ = fused(tmp_path / "e" / "model.onnx", tmp_path)
    assert "MatMulIntegerToFloat" in ops
    if fixture == "llama":
        with pytest.raises(GreenError, match="--to onnx"):
            greenllm.export(made, tmp_path / "g", to="genai")


def test_both_ways_to_scale_inputs_are_refused(llama, tmp_path):
    with pytest.raises(GreenError, match="awq and smooth"):
        quantized(llama, tmp_path / "c", awq=True, smooth=0.5)


def test_an_encoder_is_fused_and_knows_its_padding(bert, tmp_path):
    greenllm.export(bert, tmp_path / "e")
    ops, session = fused(tmp_path / "e" / "model.onnx", tmp_path)
    assert "MultiHeadAttention" in ops
    assert not ops & {"SkipLayerNormalization", "Softmax", "IsNaN"}
    ids = np.random.default_rng(0).integers(3, 100, (2, 12))
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    got = session.run(None, feed)[0]
    with torch.no_grad():
        want = open_checkpoint(bert).load_model()(**{k: torch.from_numpy(v) for k, v in feed.items()})[0].numpy()
    np.testing.assert_allclose(got[mask == 1], want[mask == 1], rtol=1e-3, atol=1e-4)


def test_a_target_of_standard_operators_gets_them(bert, tmp_path):
    target = tmp_path / "other.yaml"
    target.write_text("description: any\nformats: {feature-extraction: onnx}\n")
    greenllm.export(quantized(bert, tmp_path / "c"), tmp_path / "e", target=str(target))
    graph = onnx.load(str(tmp_path / "e" / "model.onnx"), load_external_data=False).graph
    assert {n.domain for n in graph.node} == {""}
    assert "MatMulInteger" not in {n.op_type for n in graph.node}


def test_minilm_keeps_its_embeddings(minilm, tmp_path):
    texts = [list(range(2000 + 40 * i, 2000 + 40 * i + 9 + i)) for i in range(8)]
    greenllm.export(minilm, tmp_path / "fp32")
    greenllm.export(quantized(minilm, tmp_path / "c", head_bits=8), tmp_path / "int8")
    a, b = (runner.load(str(tmp_path / n), 2).encode(texts) for n in ("fp32", "int8"))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.97
