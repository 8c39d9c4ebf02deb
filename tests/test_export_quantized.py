"""Packing integers into graphs: every way a matrix is used computes what the dense graph computed."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from greenllm.errors import GreenError
from greenllm.export.forms import squeeze
from greenllm.export.graph import DATA, Weights
from greenllm.export.matching import Library
from greenllm.export.quantized import quantize_graph
from greenllm.older import older
from greenllm.quantize.grid import Grid
from greenllm.quantize.rtn import round_to_nearest

K = 64


class Source:
    """Packed weights in memory, as a checkpoint hands them out."""

    def __init__(self, **weights):
        self.weights = weights

    def packed(self):
        yield from self.weights.items()

    def read_packed(self, module):
        return self.weights[module]


def packed(n, *, k=K, bits=4, group=32, symmetric=True, seed=0):
    w = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    return round_to_nearest(w, Grid(bits, group, symmetric))


def dense(weight):
    return weight.dequantize().numpy()


def write_graph(path, nodes, weights, inputs, outputs):
    """A dense graph with its weights in an external file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs],
        [numpy_helper.from_array(np.ascontiguousarray(v), n) for n, v in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, str(path), save_as_external_data=True, location="dense.data", size_threshold=0)
    return path


def run(path, feed, *, optimize=True):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:  # QDQ as it is written, not fused to int8 arithmetic
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feed)


def check(tmp_path, source, form, feed, graph):
    """Pack, run both, compare; gives what the pass says."""
    out = tmp_path / "out" / "model.onnx"
    out.parent.mkdir()
    done = quantize_graph(graph, out, source, form=form, accuracy_level=0)
    onnx.checker.check_model(str(out))
    want = run(graph, feed)
    got = run(out, feed, optimize=form == "nbits")
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)
    assert not np.isin(
        [t.data_type for t in Weights(out).by_name.values() if len(t.dims) == 2], TensorProto.FLOAT
    ).any()
    return done, out


def x(rows=5, k=K):
    return np.random.default_rng(1).standard_normal((2, rows, k)).astype(np.float32)


FORMS = pytest.mark.parametrize("form", ["nbits", "qdq"])
OLD = older(onnxruntime.__version__, 1, 27)


def skip_two_bits(form, bits):
    if OLD and form == "nbits" and bits == 2:
        pytest.skip(f"ONNX Runtime {onnxruntime.__version__} has no kernels for 2-bit weights; 1.27 has")


X = ("x", TensorProto.FLOAT, ["b", "s", K])
Y = ("y", ["b", "s", "n"])


@FORMS
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("group", "k"), [(16, 64), (32, 64), (64, 64), (-1, 96), (-1, 576)])
def test_every_grid_computes_what_it_stands_for(tmp_path, form, bits, symmetric, group, k):
    skip_two_bits(form, bits)
    w = packed(40, k=k, bits=bits, group=group, symmetric=symmetric)
    graph = write_graph(
        tmp_path / "d" / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": dense(w).T},
        [("x", TensorProto.FLOAT, ["b", "s", k])], [Y],
    )  # fmt: skip
    done, _ = check(tmp_path, Source(a=w), form, {"x": x(k=k)}, graph)
    assert done.ops["MatMulNBits" if form == "nbits" else "DequantizeLinear"] == 1


@FORMS
@pytest.mark.parametrize("how", ["transposed", "gemm", "gemm-transposed"])
def test_every_way_to_multiply(tmp_path, form, how):
    w, bias = packed(48), np.arange(48, dtype=np.float32)
    flat = [("x", TensorProto.FLOAT, ["b", K])]
    if how == "transposed":
        nodes = [
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"]),
        ]
        weights = {"w": dense(w)}
    else:
        turned = how == "gemm-transposed"
        nodes = [helper.make_node("Gemm", ["x", "w", "c"], ["y"], transB=int(turned))]
        weights = {"w": dense(w) if turned else dense(w).T, "c": bias}
    graph = write_graph(tmp_path / "d" / "m.onnx", nodes, weights, flat, [("y", ["b", "n"])])
    _, out = check(tmp_path, Source(a=w), form, {"x": x()[0]}, graph)
    assert "Transpose" not in {n.op_type for n in onnx.load(str(out), load_external_data=False).graph.node}


@FORMS
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kept", ["kn", "nk"])
def test_a_tied_embedding_shares_one_matrix(tmp_path, form, bits, symmetric, kept):
    w = packed(96, bits=bits, symmetric=symmetric)
    turn = helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0])
    first, second = ("t", "w") if kept == "kn" else ("w", "t")
    nodes = [turn, helper.make_node("Gather", [first, "i"], ["e"]), helper.make_node("MatMul", ["e", second], ["y"])]
    graph = write_graph(
        tmp_path / "d" / "m.onnx", nodes, {"w": dense(w).T if kept == "kn" else dense(w)},
        [("i", TensorProto.INT64, ["b", "s"])], [Y, ("e", ["b", "s", K])],
    )  # fmt: skip
    done, out = check(tmp_path, Source(lm_head=w), form, {"i": np.array([[0, 95, 3], [7, 7, 1]])}, graph)
    codes = [t for t in Weights(out).by_name.values() if t.name.endswith("qweight")]
    assert len(codes) == 1
    assert (out.parent / DATA).stat().st_size < 96 * K * bits / 8 * 1.6 + 4096
    assert done.ops.get("GatherBlockQuantized", 0) == (form == "nbits")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
    kinds = [n.op_type for n in onnx.load(str(tmp_path / "loaded.onnx"), load_external_data=False).graph.node]
    assert kinds.count("MatMulNBits") == 1  # not unpacked at each token


@FORMS
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_an_embedding_alone(tmp_path, form, bits):
    skip_two_bits(form, bits)
    w = packed(96, bits=bits)
    graph = write_graph(
        tmp_path / "d" / "m.onnx", [helper.make_node("Gather", ["w", "i"], ["y"])], {"w": dense(w)},
        [("i", TensorProto.INT64, ["b", "s"])], [Y],
    )  # fmt: skip
    check(tmp_path, Source(embedding=w), form, {"i": np.array([[0, 95, 3]])}, graph)


def test_two_bits_are_refused_where_the_runtime_has_no_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "1.26.0")
    graph = write_graph(
        tmp_path / "d" / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": dense(packed(48, bits=2)).T}, [X], [Y],
    )  # fmt: skip
    with pytest.raises(GreenError, match=r"1\.27 has"):
        quantize_graph(graph, tmp_path / "m.onnx", Source(a=packed(48, bits=2)), form="nbits", accuracy_level=0)


@FORMS
def test_fused_and_shuffled_matrices_are_put_together_again(tmp_path, form):
    q, k, v = packed(64, seed=1), packed(32, seed=2), packed(32, seed=3)
    order = np.random.default_rng(0).permutation(128)
    fused = np.concatenate([dense(q), dense(k), dense(v)])[order]
    graph = write_graph(
        tmp_path / "d" / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": fused.T}, [X], [Y]
    )
    check(tmp_path, Source(q=q, k=k, v=v), form, {"x": x()}, graph)


@FORMS
def test_a_fused_matrix_of_two_widths_becomes_two_operators(tmp_path, form):
    a, b = packed(64, seed=1), packed(32, bits=8, group=64, symmetric=False, seed=2)
    graph = write_graph(
        tmp_path / "d" / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": np.concatenate([dense(a), dense(b)]).T}, [X], [Y],
    )  # fmt: skip
    done, _ = check(tmp_path, Source(a=a, b=b), form, {"x": x()}, graph)
    assert done.bits == [4, 8]


@FORMS
@pytest.mark.parametrize("cut", [[64, 64], [32, 96]])
def test_a_fused_matrix_that_is_split_again_is_joined_only_where_it_must_be(tmp_path, form, cut):
    a, b = packed(64, seed=1), packed(64, bits=8, seed=2)
    halves = [("c", ["b", "s", cut[0]]), ("d", ["b", "s", cut[1]])]
    even = cut[0] == cut[1]
    nodes = [
        helper.make_node("Constant", [], ["cut"], value_ints=cut),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node(
            "Split", ["y"] if even else ["y", "cut"], ["c", "d"], axis=-1, num_outputs=2 if even else None
        ),
    ]
    weights = {"w": np.concatenate([dense(a), dense(b)]).T}
    graph = write_graph(tmp_path / "d" / "m.onnx", nodes, weights, [X], halves)
    _, out = check(tmp_path, Source(a=a, b=b), form, {"x": x()}, graph)
    ops = {n.op_type for n in onnx.load(str(out), load_external_data=False).graph.node}
    assert ("Concat" in ops, "Split" in ops) == (not even, not even)


def test_codes_and_scales_come_back_bit_for_bit(tmp_path):
    w = packed(48, bits=4, group=32, symmetric=False)
    graph = write_graph(
        tmp_path / "d" / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": dense(w).T}, [X], [Y]
    )
    _, out = check(tmp_path, Source(a=w), "nbits", {"x": x()}, graph)
    stored = Weights(out)
    codes = stored.array("w.qweight").reshape(48, -1)
    both = np.stack([codes & 15, codes >> 4], -1).reshape(48, K)
    assert np.array_equal(both, w.codes.numpy())
    assert stored.array("w.scales").dtype == np.float16
    assert np.array_equal(stored.array("w.scales"), w.scales.numpy())
    assert np.array_equal(stored.array("w.zeros"), squeeze(w.zeros.numpy(), 4))


def test_one_changed_weight_is_noticed(tmp_path):
    w = packed(48)
    changed = dense(w).copy()
    changed[7, 3] += 1e-3
    graph = write_graph(
        tmp_path / "d" / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": changed.T}, [X], [Y]
    )
    with pytest.raises(GreenError, match="1 of 48 rows"):
        quantize_graph(graph, tmp_path / "model.onnx", Source(a=w), form="nbits", accuracy_level=4)


def test_a_weight_that_is_not_in_the_graph_is_named(tmp_path):
    w = packed(48)
    graph = write_graph(
        tmp_path / "d" / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": dense(w).T}, [X], [Y]
    )
    with pytest.raises(GreenError, match=r"layer\.lost"):
        quantize_graph(
            graph, tmp_path / "model.onnx", Source(a=w, **{"layer.lost": packed(48, seed=9)}),
            form="nbits", accuracy_level=4,
        )  # fmt: skip


def test_a_use_without_a_quantized_operator_is_refused(tmp_path):
    w = packed(64)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "w"], ["y"])]
    graph = write_graph(
        tmp_path / "d" / "m.onnx", nodes, {"w": dense(w).T}, [("x", TensorProto.FLOAT, [64, K])], [("y", [64, 64])]
    )
    with pytest.raises(GreenError, match="no quantized operator"):
        quantize_graph(graph, tmp_path / "model.onnx", Source(a=w), form="nbits", accuracy_level=4)


def test_groups_that_no_kernel_runs_are_refused(tmp_path):
    w = packed(48, group=8)
    graph = write_graph(
        tmp_path / "d" / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": dense(w).T}, [X], [Y]
    )
    with pytest.raises(GreenError, match="Groups of 8"):
        quantize_graph(graph, tmp_path / "model.onnx", Source(a=w), form="nbits", accuracy_level=4)


def test_other_weights_stay_as_they_are(tmp_path):
    """Also one whose rows of zeros are in the packed weight too."""
    w = packed(48)
    w.codes[5] = 8  # a row of zeros
    other = np.random.default_rng(3).standard_normal((K, 48)).astype(np.float32)
    other[:, 2] = 0
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["x", "o"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]  # fmt: skip
    graph = write_graph(tmp_path / "d" / "m.onnx", nodes, {"w": dense(w).T, "o": other}, [X], [Y])
    out = tmp_path / "model.onnx"
    quantize_graph(graph, out, Source(a=w), form="nbits", accuracy_level=0)
    assert np.array_equal(Weights(out).array("o"), other)
    np.testing.assert_allclose(run(out, {"x": x()})[0], run(graph, {"x": x()})[0], rtol=1e-4, atol=1e-4)


def test_a_cut_data_file_is_told(tmp_path):
    w = packed(48)
    graph = write_graph(
        tmp_path / "d" / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": dense(w).T}, [X], [Y]
    )
    data = graph.parent / "dense.data"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(GreenError, match="too short"):
        quantize_graph(graph, tmp_path / "model.onnx", Source(a=w), form="nbits", accuracy_level=4)


def test_rows_that_two_linears_share_count_for_both():
    a = packed(16)
    library = Library(Source(a=a, b=a))
    assert library.find(dense(a), name="w") is not None
    assert library.missing() == []
