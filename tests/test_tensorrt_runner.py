"""The runner of TensorRT engines over a stand-in that computes the same graph from the same buffers: no GPU is here."""

from __future__ import annotations

import ctypes
import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from conftest import make_bert, make_llama
from test_export import quantized

import greenllm
from greenllm import artifact
from greenllm.bench.runners import onnxruntime, tensorrt
from greenllm.errors import GreenError

KINDS = {"tensor(float16)": "HALF", "tensor(float)": "FLOAT", "tensor(int64)": "INT64"}


class Memory:
    """The GPU's memory: buffers of NumPy, by their address."""

    stream, compute_capability = 7, "8.7"

    def __init__(self):
        self.held = []

    def allocate(self, size):
        self.held.append(np.full(size, 255, np.uint8))  # NaN, where nothing was written
        return self.held[-1].ctypes.data

    def put(self, address, values):
        ctypes.memmove(address, np.ascontiguousarray(values).ctypes.data, values.nbytes)

    def get(self, address, values):
        ctypes.memmove(values.ctypes.data, address, values.nbytes)

    def used(self):
        return sum(each.nbytes for each in self.held)

    def close(self):
        self.held = []


class Engine:
    """``ICudaEngine`` and ``IExecutionContext`` as the runner uses them; an exported graph computes."""

    def __init__(self, directory):
        self.session = ort.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])
        self.profiles = artifact.read(directory).manifest.details["engine"]["profiles"]
        self.tensors = {t.name: t for t in [*self.session.get_inputs(), *self.session.get_outputs()]}
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), len(self.profiles)
        self.shapes, self.addresses, self.profile, self.used = {}, {}, 0, []

    def get_tensor_name(self, i):
        return list(self.tensors)[i]

    def get_tensor_mode(self, name):
        return SimpleNamespace(name="INPUT" if name in self.inputs else "OUTPUT")

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name=KINDS[self.tensors[name].type])

    def get_tensor_profile_shape(self, name, profile):
        return self.profiles[profile]["shapes"][name]

    def create_execution_context(self):
        return self

    def get_tensor_shape(self, name):
        return self.shapes.get(name, self.tensors[name].shape)

    def set_optimization_profile_async(self, profile, stream):
        assert stream == Memory.stream
        self.profile = profile

    def set_input_shape(self, name, shape):
        least, _, most = self.profiles[self.profile]["shapes"][name]
        assert all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)), (name, shape, self.profile)
        self.shapes[name] = tuple(shape)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        assert stream == Memory.stream
        assert len(set(self.addresses.values())) == len(self.tensors) == len(self.addresses)  # each has its own
        self.used.append(self.profile)
        outputs = [n for n in self.tensors if n not in self.inputs]
        found = self.session.run(outputs, {name: self._read(name) for name in self.inputs})
        for name, values in zip(outputs, found, strict=True):
            self.shapes[name] = values.shape
            ctypes.memmove(self.addresses[name], np.ascontiguousarray(values).ctypes.data, values.nbytes)
        return True

    def _read(self, name):
        dtype = {"HALF": np.float16, "FLOAT": np.float32, "INT64": np.int64}[KINDS[self.tensors[name].type]]
        values = np.empty(self.shapes[name], dtype)
        ctypes.memmove(values.ctypes.data, self.addresses[name], values.nbytes)
        return values


@pytest.fixture(scope="module", params=["fp16", "fp32"])
def decoder(request, tmp_path_factory):
    source = make_llama(tmp_path_factory.mktemp("m") / "m", hidden_size=128, vocab=300)
    packed = quantized(source, tmp_path_factory.mktemp("q") / "q", group=64, head_bits=4, head_group=64).path
    out = tmp_path_factory.mktemp("o") / "o"
    return greenllm.export(packed, out, target="jetson-orin-nano", precision=request.param, context=24).path


def run(directory, kind):
    bound = tensorrt.Bound(Engine(directory), Memory())
    return kind(bound, tensorrt.Info("", directory, gpu=True)), bound


def test_a_decoder_answers_as_the_graph_does(decoder, monkeypatch):
    monkeypatch.setattr("greenllm.export.profiles.BLOCK", 8)
    ours, bound = run(decoder, tensorrt.EngineDecoder)
    plain = onnxruntime.load(str(decoder), 1)
    prompt = list(range(3, 14))
    assert ours.info.vocabulary == 300
    for _ in range(2):  # a second query begins anew
        tokens, wanted = [ours.prefill(prompt, 8)], [plain.prefill(prompt, 8)]
        for _ in range(7):
            tokens.append(ours.step(tokens[-1]))
            wanted.append(plain.step(wanted[-1]))
        assert tokens == wanted
    assert set(bound.engine.used) == {0, 1}  # one profile reads, the other decodes
    np.testing.assert_array_equal(ours.logits(prompt), plain.logits(prompt))
    with pytest.raises(GreenError, match="holds 24 tokens; 25"):
        ours.logits([1] * 25)
    ours.close()


def test_a_prompt_of_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("greenllm.export.profiles.BLOCK", 8)
    source = make_llama(tmp_path / "m", hidden_size=128, vocab=300)
    out = greenllm.export(source, tmp_path / "o", target="jetson-orin-nano", precision="fp32", context=21).path
    ours, bound = run(out, tensorrt.EngineDecoder)
    assert bound.blocks == [8, 1]
    prompt = [int(t) for t in np.random.default_rng(0).integers(0, 300, 21)]
    wanted = onnxruntime.load(str(out), 1).logits(prompt)
    np.testing.assert_allclose(ours.logits(prompt), wanted, atol=1e-5)  # three blocks: 8, 8, 5


def test_an_encoder_in_parts(tmp_path):
    source = make_bert(tmp_path / "m")
    out = greenllm.export(source, tmp_path / "o", target="jetson-orin-nano", precision="fp32", context=16).path
    ours, _ = run(out, tensorrt.EngineEncoder)
    rows = np.random.default_rng(0).integers(5, 90, (40, 9))  # more than the engine's 32 at once
    texts = [row[: 3 + i % 6].tolist() for i, row in enumerate(rows)]
    np.testing.assert_allclose(ours.encode(texts), onnxruntime.load(str(out), 1).encode(texts), atol=1e-5)


def test_bfloat16_is_read_as_what_it_is():
    values = np.array([[[1.0, -2.5, 3e30]]], np.float32)
    engine = SimpleNamespace(
        get_tensor_dtype=lambda _: SimpleNamespace(name="BF16"), get_tensor_shape=lambda _: (1, 1, 3)
    )
    device = Memory()
    address = device.allocate(6)
    device.put(address, (values.view(np.uint32) >> 16).astype(np.uint16))
    bound = tensorrt.Bound.__new__(tensorrt.Bound)
    bound.engine = bound.context = engine
    bound.device = device
    np.testing.assert_allclose(bound.take("logits", address), values, rtol=2**-7)


@pytest.mark.skipif(not importlib.util.find_spec("cuda"), reason="no cuda-bindings here")
def test_without_a_gpu_the_bench_says_so(decoder):
    from cuda.bindings import runtime

    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU here")
    engine = decoder / "model.engine"
    engine.write_bytes(b"built there")
    stamp = {"compute_capability": "8.7", "library": "tensorrt", "version": "10.3.0.30-1+cuda12.5"}
    (decoder / "engine.json").write_text(json.dumps(stamp))
    try:
        with pytest.raises(GreenError, match=r"CUDA: cuda\w+ failed"):
            tensorrt.load(str(decoder), 1)
    finally:
        engine.unlink()
        (decoder / "engine.json").unlink()
