"""TensorRT: graphs of one float type, engines really built for two generations of GPUs, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from conftest import make_llama
from onnx import TensorProto, helper
from test_cli import run
from test_export import quantized

import greenllm
from greenllm import artifact, recipe
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.export import tensorrt
from greenllm.export.profiles import profiles
from greenllm.export.stamp import check_engine
from greenllm.export.targets import load_target
from greenllm.export.trtexec import arguments
from greenllm.export.typed import positive

builds = pytest.mark.skipif(
    not importlib.util.find_spec("tensorrt_rtx"), reason="no tensorrt-rtx here: it is for x86-64 alone"
)
TWO = ("rtx-40", "rtx-50")  # compute capabilities 8.9 and 12.0


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GREENLLM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A Llama of two layers whose groups are 64 wide, tied."""
    return make_llama(tmp_path_factory.mktemp("wide") / "m", hidden_size=128, vocab=300)


@pytest.fixture(scope="module")
def packed(wide, tmp_path_factory):
    return quantized(wide, tmp_path_factory.mktemp("packed") / "q", group=64, head_bits=4, head_group=64).path


@pytest.fixture(scope="module")
def on_jetson(packed, tmp_path_factory):
    """What only the device can build: the graph stays in the artifact."""
    return greenllm.export(packed, tmp_path_factory.mktemp("orin") / "o", target="jetson-orin-nano", context=128)


def floats(model, out):
    """A checkpoint of 8-bit floats."""
    made = recipe.Recipe(name="test", seed=0, steps=[recipe.make_step("fp8", {}, "fp8")])
    return greenllm.pipeline.run_steps(model, out, made).path


def graph_of(path):
    return onnx.load(str(path / "model.onnx"), load_external_data=False).graph


@builds
@pytest.mark.parametrize("target", TWO)
def test_a_decoder_with_its_cache(wide, tmp_path, target):
    done = greenllm.export(wide, tmp_path / "o", target=target)
    done.verify()
    built = done.manifest.details["engine"]
    assert (done.path / "model.engine").stat().st_size > 2 * done.manifest.details["parameters"]
    assert not (done.path / "model.onnx").exists()
    assert (done.path / "tokenizer.json").is_file()
    assert built["compute_capability"] == load_target(target).compute_capability
    assert built["library"] == "tensorrt_rtx"
    (profile,) = built["profiles"]  # two would store the weights twice
    assert profile["shapes"]["past_key_values.0.key"] == [[1, 2, 0, 32], [1, 2, 128, 32], [1, 2, 255, 32]]
    assert done.manifest.details["verified"]["kl_divergence"] < 1e-3


@builds
@pytest.mark.parametrize("target", TWO)
def test_integer_weights_stay_integers_in_the_engine(wide, packed, tmp_path, target):
    done = greenllm.export(packed, tmp_path / "o", target=target)
    details = done.manifest.details
    assert details["operators"]["DequantizeLinear"] == 2 * 7 + 1
    assert details["stored_bits"] == [4]
    assert details["engine"]["compute_capability"] == load_target(target).compute_capability


@builds
@pytest.mark.parametrize("target", TWO)
def test_minilm(minilm, tmp_path, target):
    done = greenllm.export(minilm, tmp_path / "o", target=target)
    size = (done.path / "model.engine").stat().st_size
    assert 2 * 22e6 < size < 2.5 * 2 * 22e6
    assert done.manifest.details["verified"]["max_relative_error"] < 0.01
    (profile,) = done.manifest.details["engine"]["profiles"]
    assert profile["shapes"]["input_ids"] == [[1, 1], [8, 128], [32, 512]]


@builds
def test_inputs_that_are_integers_too(bert, tmp_path):
    small = quantized(bert, tmp_path / "q", bits=8, group=-1, activations="symmetric")
    done = greenllm.export(small, tmp_path / "o", target="rtx-40")
    assert done.manifest.details["operators"]["QuantizeLinear"] > 0
    assert "error_of_rounding" in done.manifest.details["verified"]


@builds
def test_floats_of_8_bits_stay_so_in_the_engine(smollm2, tmp_path):
    """Of the first layers of SmolLM2: as dense ones its engine would have two bytes a weight, and more."""
    sliced = tmp_path / "m"
    steps = [{"prune": {"method": "depth", "layers": "3-29"}}, {"fp8": {}}]
    made = recipe.parse(yaml.safe_dump({"calibration": {"samples": 4, "length": 64}, "steps": steps}), "slice")
    greenllm.pipeline.run_steps(smollm2, sliced, made)
    source = open_checkpoint(sliced)
    eights = sum(weight.octets.numel() for _, weight in source.packed())
    for target in TWO:
        done = greenllm.export(sliced, tmp_path / target, target=target)
        found = done.manifest.details
        assert (found["operators"]["DequantizeLinear"], found["operators"]["QuantizeLinear"]) == (2 * 3 * 7, 3 * 7)
        assert found["stored_bits"] == [8]
        assert found["verified"]["kl_divergence"] < 0.05
        assert (done.path / "model.engine").stat().st_size < 2 * source.parameters - 0.4 * eights


def test_codes_of_8_bit_floats_are_the_checkpoints(wide, tmp_path):
    small = floats(wide, tmp_path / "q")
    done = greenllm.export(small, tmp_path / "o", target="jetson-agx-thor")
    weights = greenllm.export.graph.Weights(done.path / "model.onnx")
    stored = {t.name: t for t in graph_of(done.path).initializer}
    found = Counter()
    for name, weight in open_checkpoint(small).packed():
        for tensor in (t for t in stored.values() if t.data_type == TensorProto.FLOAT8E4M3FN and len(t.dims) == 2):
            octets = weights.raw(tensor.name).reshape(tuple(tensor.dims))
            found[name] += np.array_equal(octets.T, weight.octets.numpy())
    assert len(found) == 2 * 7
    assert set(found.values()) == {1}


@pytest.mark.parametrize("target", ["jetson-orin-nano", "a100", "cpu"])
def test_a_device_without_8_bit_floats_is_told_before_the_work(wide, tmp_path, target):
    small = floats(wide, tmp_path / "q")
    with pytest.raises(GreenError, match="no kernels for fp8"):
        greenllm.export(small, tmp_path / "o", target=target)
    with pytest.raises(GreenError, match="no kernels for fp8"):
        greenllm.compress(wide, tmp_path / "c", recipe="fp8", target=target, bench=False)
    assert not (tmp_path / "c").exists()


@builds
@pytest.mark.parametrize(("target", "bits"), [("rtx-40", 16), ("rtx-50", 4)])
def test_smollm2(smollm2, tmp_path, target, bits):
    """All of it, its cache of any length."""
    model = smollm2
    if bits == 4:
        step = {"quantize": {"method": "rtn", "bits": 4, "group": 64, "head_bits": 4, "head_group": 64}}
        made = recipe.parse(yaml.safe_dump({"steps": [step]}), "int4")
        model = greenllm.pipeline.run_steps(smollm2, tmp_path / "m", made).path
    done = greenllm.export(model, tmp_path / "o", target=target)
    details = done.manifest.details
    assert details["stored_bits"] == [bits]
    assert details["verified"]["kl_divergence"] < 0.05
    (profile,) = details["engine"]["profiles"]
    assert profile["shapes"]["past_key_values.29.value"] == [[1, 3, 0, 64], [1, 3, 1024, 64], [1, 3, 2047, 64]]
    assert (done.path / "model.engine").stat().st_size < (320e6 if bits == 16 else 180e6)


@builds
def test_an_engine_comes_from_the_cache_the_second_time(bert, tmp_path):
    first = greenllm.export(bert, tmp_path / "a", target="rtx-40")
    again = greenllm.export(bert, tmp_path / "b", target="rtx-40")
    assert not first.manifest.details["engine"]["cached"]
    assert again.manifest.details["engine"]["cached"]
    assert (again.path / "model.engine").read_bytes() == (first.path / "model.engine").read_bytes()
    (kept,) = (Path(os.environ["GREENLLM_CACHE"]) / "engines").glob("*.engine")
    kept.write_bytes(b"damaged")
    third = greenllm.export(bert, tmp_path / "c", target="rtx-40")
    assert not third.manifest.details["engine"]["cached"]
    assert (third.path / "model.engine").stat().st_size > 10_000


@builds
def test_compress_makes_an_engine_and_says_why_it_is_not_benched(wide, tmp_path, capsys):
    code, _, err = run(
        capsys, "compress", wide, "-o", tmp_path / "out", "--target", "rtx-50", "--recipe", "int8", "--country", "DEU"
    )
    assert code == 0, err
    assert "does not run here" in " ".join(err.split())
    done = artifact.open_verified(tmp_path / "out")
    assert done.deployable.kind == "tensorrt"
    assert not (done.path / "report.json").exists()
    code, _, err = run(capsys, "bench", tmp_path / "out", "--country", "DEU")
    assert code == 1
    said = " ".join(err.split())
    assert "An engine runs on an NVIDIA GPU alone" in said or "built for compute capability" in said


def test_no_scale_of_8_bits_is_negative():
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 256, (3, 10), dtype=np.uint8)
    scales = draw.normal(size=(3, 3)).astype(np.float32)
    new, positive_scales = positive(codes, scales, 4)
    whole, after = (s.repeat(4, axis=1)[:, :10] for s in (scales, positive_scales))
    assert (positive_scales > 0).all()
    off = np.abs((new.astype(int) - 128) * after - (codes.astype(int) - 128) * whole)
    assert (off <= np.where((codes == 0) & (whole < 0), after, 1e-6)).all()


def test_bf16_is_told_to_be_unchecked(wide, tmp_path):
    done = greenllm.export(wide, tmp_path / "o", target="jetson-agx-thor", precision="bf16")
    assert "nothing" in done.manifest.details["verified"]["against"]
    assert Counter(t.data_type for t in graph_of(done.path).initializer if len(t.dims) == 2)[TensorProto.BFLOAT16] == 15


def test_the_graph_has_one_float_type_and_keeps_its_norms_in_float32(on_jetson):
    graph = graph_of(on_jetson.path)
    kinds = {i.name: i.type.tensor_type.elem_type for i in graph.input}
    assert kinds["past_key_values.0.key"] == TensorProto.FLOAT16
    made = {o: n for n in graph.node for o in n.output}
    stored = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            assert stored[node.input[0]].data_type == TensorProto.INT4
            assert stored[node.input[1]].data_type == TensorProto.FLOAT16
            assert len(node.input) == 2
        if node.op_type == "Pow":  # of the norms: squares of half precision overflow
            assert made[node.input[0]].op_type == "Cast"


def test_codes_and_scales_stand_for_the_checkpoints_weights(packed, on_jetson):
    graph = graph_of(on_jetson.path)
    source = open_checkpoint(packed)
    want = {k: p.dequantize().half().numpy() for k, p in source.packed()}
    weights = greenllm.export.graph.Weights(on_jetson.path / "model.onnx")
    found = 0
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        k, n = weights.by_name[node.input[0]].dims
        octets = weights.raw(node.input[0])
        codes = np.stack([octets & 15, octets >> 4], -1).reshape(-1)[: k * n].reshape(k, n).astype(np.int8)
        codes = np.where(codes > 7, codes - 16, codes)
        dense = (codes * weights.array(node.input[1]).astype(np.float32).repeat(64, 0)).T
        found += any(
            np.array_equal(dense.astype(np.float16), w.astype(np.float16)) for w in want.values() if w.shape == (n, k)
        )
    assert found == len(want) == 15


def test_where_only_the_device_builds(on_jetson):
    assert on_jetson.kind == "tensorrt"
    details = on_jetson.manifest.details
    assert details["entry"] == "model.onnx"
    assert details["engine"]["library"] == ""
    assert details["engine"]["compute_capability"] == "8.7"
    assert details["memory"]["context"] == 128
    assert sum(details["memory"]["bytes"].values()) > 0.6e9
    script = (on_jetson.path / "build.sh").read_text()
    assert "jetson-orin-nano (compute capability 8.7), JetPack 7.2, TensorRT 10.16" in script
    subprocess.run(["/bin/sh", "-n", on_jetson.path / "build.sh"], check=True)


def device(tmp_path, on_jetson, version, code=0):
    """A copy of the artifact, with a trtexec that writes down what it was asked, and a dpkg that says ``version``."""
    shutil.copytree(on_jetson.path, tmp_path / "a")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "dpkg-query").write_text(f"#!/bin/sh\necho {version}\n")
    (tools / "trtexec").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > asked\necho x > model.engine.part\nexit {code}\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "TRTEXEC": str(tools / "trtexec")}
    return subprocess.run(
        ["/bin/sh", tmp_path / "a" / "build.sh"], env=environment, capture_output=True, text=True, check=False
    )


def test_the_script_asks_trtexec_for_the_profiles(tmp_path, on_jetson):
    done = device(tmp_path, on_jetson, "10.16.2.10-1+cuda13.2")
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "a" / "asked").read_text().splitlines()
    assert {"--stronglyTyped", "--skipInference", "--profile=0", "--profile=1"} <= set(asked)
    (longest,) = (a for a in asked[asked.index("--profile=1") :] if a.startswith("--maxShapes"))
    assert "input_ids:1x1,attention_mask:1x128" in longest
    assert "past_key_values.0.key:1x2x127x32" in longest
    stamp = json.loads((tmp_path / "a" / "engine.json").read_text())
    assert stamp == {"compute_capability": "8.7", "library": "tensorrt", "version": "10.16.2.10-1+cuda13.2"}
    assert (tmp_path / "a" / "model.engine").exists()


@pytest.mark.parametrize(("version", "code"), [("10.3.0.30-1+cuda12.5", 0), ("10.16.2", 3)])
def test_the_script_leaves_nothing_for_another_version_or_a_failure(tmp_path, on_jetson, version, code):
    done = device(tmp_path, on_jetson, version, code)
    assert done.returncode != 0
    assert not (tmp_path / "a" / "model.engine").exists()
    if not code:
        assert "Here is TensorRT 10.3.0.30-1+cuda12.5; this was made for 10.16" in done.stderr


def test_profiles_cover_all_lengths():
    inputs = {"input_ids": [None, None], "attention_mask": [None, None], "past_key_values.0.key": [None, 2, None, 64]}
    prefill, decode = profiles(inputs, 2048, apart=True)
    assert prefill.shapes["input_ids"] == ([1, 1], [1, 128], [1, 512])
    assert prefill.shapes["past_key_values.0.key"] == ([1, 2, 0, 64], [1, 2, 0, 64], [1, 2, 2047, 64])
    assert decode.shapes["input_ids"] == ([1, 1], [1, 1], [1, 1])
    assert decode.shapes["attention_mask"][2] == [1, 2048]
    assert sum(a.startswith("--minShapes") for a in arguments([prefill, decode])) == 2
    (both,) = profiles(inputs, 2048, apart=False)
    for part in (prefill, decode):
        for name, (least, _, most) in part.shapes.items():
            assert all(a <= b for a, b in zip(both.shapes[name][0], least, strict=True))
            assert all(a >= b for a, b in zip(both.shapes[name][2], most, strict=True))
    with pytest.raises(GreenError, match="pixel_values"):
        profiles({"pixel_values": [None, 3, 224, 224]}, 16, apart=True)


def test_an_engine_is_refused_elsewhere():
    built = {"compute_capability": "8.9", "library": "tensorrt_rtx", "version": "1.7.1.116"}
    check_engine(built, "8.9", "tensorrt_rtx", "1.7.1.116")
    for here in (("12.0", "tensorrt_rtx", "1.7.1.116"), ("8.9", "tensorrt_rtx", "1.8"), ("8.9", "tensorrt", "10.16")):
        with pytest.raises(GreenError, match=r"built for compute capability 8\.9 by tensorrt_rtx 1\.7"):
            check_engine(built, *here)
    with pytest.raises(GreenError):
        check_engine({}, "8.9", "tensorrt_rtx", "1.7.1.116")


@pytest.mark.parametrize("how", ["missing", "short", "link", "outside", "no graph"])
def test_a_graph_whose_weights_are_not_there(on_jetson, tmp_path, how):
    copy = shutil.copytree(on_jetson.path, tmp_path / "o")
    data = copy / "model.onnx.data"
    if how == "short":
        data.write_bytes(data.read_bytes()[:-4096])
    elif how == "link":
        data.rename(tmp_path / "elsewhere")
        data.symlink_to(tmp_path / "elsewhere")
    elif how == "missing":
        data.unlink()
    elif how == "no graph":
        (copy / "model.onnx").write_bytes(b"\x00\x01 nonsense")
    else:
        model = onnx.load(str(copy / "model.onnx"), load_external_data=False)
        for t in model.graph.initializer:
            for entry in t.external_data:
                entry.value = "../elsewhere" if entry.key == "location" else entry.value
        (copy / "model.onnx").write_bytes(model.SerializeToString())
    says = {
        "missing": "missing",
        "short": "too short",
        "link": "a link",
        "outside": "outside",
        "no graph": "cannot be read",
    }
    with pytest.raises(GreenError, match=says[how]):
        tensorrt.make_engine(copy, load_target("rtx-40"), 128)
    assert not (copy / "model.engine").exists()


def tiny_graph(path, node, *, domain=""):
    """A graph of one node that TensorRT does not have."""
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [node], "g", [value("input_ids", TensorProto.INT64, ["b", "s"])], [value("y", TensorProto.INT64, None)]
    )
    opsets = [helper.make_opsetid("", 21), *([helper.make_opsetid(domain, 1)] if domain else [])]
    path.mkdir()
    onnx.save(helper.make_model(made, opset_imports=opsets), str(path / "model.onnx"))
    return path


def test_an_operator_of_another_runtime_is_named(tmp_path):
    node = helper.make_node("FusedMatMul", ["input_ids"], ["y"], "the_bad_one", domain="com.microsoft")
    path = tiny_graph(tmp_path / "g", node, domain="com.microsoft")
    with pytest.raises(GreenError, match=r"com\.microsoft FusedMatMul: the node the_bad_one"):
        tensorrt.make_engine(path, load_target("rtx-40"), 128)


@builds
@pytest.mark.parametrize("target", ["rtx-40", "jetson-orin-nano"])
def test_a_node_that_tensorrt_does_not_take_is_named_before_the_build(tmp_path, target):
    path = tiny_graph(tmp_path / "g", helper.make_node("Det", ["input_ids"], ["y"], "the_bad_one"))
    with pytest.raises(GreenError, match=r"does not take the node the_bad_one \(Det\)"):
        tensorrt.make_engine(path, load_target(target), 128)
    assert not (path / "build.sh").exists()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"symmetric": False}, "has zero points"),
        ({"activations": "dynamic", "bits": 8, "group": -1}, "while the model runs"),
    ],
)
def test_weights_that_tensorrt_does_not_read_are_refused(llama, tmp_path, fields, says):
    small = quantized(llama, tmp_path / "q", **fields)
    with pytest.raises(GreenError, match=says):
        greenllm.export(small, tmp_path / "o", target="jetson-orin-nano")
    assert not (tmp_path / "o").exists()


def test_without_tensorrt_it_says_how_to_get_it(bert, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt.engine, "LIBRARIES", ())
    with pytest.raises(GreenError, match="No TensorRT is installed") as e:
        greenllm.export(bert, tmp_path / "o", target="rtx-40")
    assert "greenllm[tensorrt]" in e.value.fix
    done = greenllm.export(bert, tmp_path / "j", target="jetson-orin-nano")
    assert done.manifest.details["engine"]["checked"] == ""


def test_a_builder_that_dies_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(GreenError, match="tensorrt_rtx failed: exit code 1"):
        tensorrt._run("tensorrt_rtx", {})


def test_the_gpu_that_is_here_decides_only_with_tensorrt_itself(monkeypatch):
    assert tensorrt.built_there(load_target("jetson-agx-thor"))
    assert tensorrt.built_there(load_target("h100"))
    assert not tensorrt.built_there(load_target("a100"))
    monkeypatch.setattr(tensorrt, "_here", lambda: [90])
    assert not tensorrt.built_there(load_target("h100"))
