"""Other engines agree with torch on the same weights, and their files are counted honestly."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from conftest import make_llama

import greenllm
from greenllm.bench import Effort
from greenllm.bench.models import find, sizes
from greenllm.bench.runners import loader
from greenllm.errors import GreenError

QUICK = {
    "effort": Effort(windows=2, sittings=2, width=0.5, seconds=0.2, turn=0.02), "window": 32, "prompt_tokens": 8,
    "answer_tokens": 4, "threads": 1, "energy": False,
}  # fmt: skip
PROMPT = [40, 5, 77, 130, 9, 61, 200, 33]


def need(module):
    return pytest.mark.skipif(
        importlib.util.find_spec(module) is None, reason=f'{module} is not installed: pip install "greenllm[peers]"'
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny Llama with a merge, which llama.cpp insists on, and more rows than tokens."""
    path = make_llama(tmp_path_factory.mktemp("peers") / "source", vocab=300)
    file = path / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["zz"] = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["merges"] = [["z", "z"]]
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def float16(source, tmp_path_factory):
    from greenllm.bench.peers import make

    return make(source, tmp_path_factory.mktemp("float16"), ["llamacpp-f16"])[0]


@pytest.fixture(scope="module")
def int4(source, tmp_path_factory):
    from greenllm.bench.peers import make

    return make(source, tmp_path_factory.mktemp("int4"), ["openvino-int4"])[0]


def greedy(runner, steps=6):
    found = [runner.prefill(PROMPT, steps)]
    while len(found) < steps:
        found.append(runner.step(found[-1]))
    return found


def agree(runner, reference, tolerance):
    want = reference.logits(PROMPT)
    got = runner.logits(PROMPT)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())
    assert greedy(runner) == greedy(reference)
    assert greedy(runner) == greedy(reference)  # the cache of the query before is gone
    np.testing.assert_array_equal(runner.logits(PROMPT), got)


@need("llama_cpp")
def test_gguf_in_llamacpp_is_the_checkpoint_in_torch(source, float16):
    found = find(float16)
    assert found.runner == "llamacpp"
    runner = loader("llamacpp").load(found.path, 1)
    agree(runner, loader("torch").load(str(source), 1), 5e-3)  # float16 weights and cache
    runner.close()


@need("llama_cpp")
def test_bits_of_a_gguf_are_its_tensors(float16, source):
    target = find(float16)
    total, weights = sizes(float16, target)
    embedding, layer, norm = 300 * 64, (2 * 64 + 2 * 32 + 3 * 192) * 64, 64
    assert weights == 2 * (embedding + 2 * layer) + 4 * 5 * norm
    assert total == (float16 / "model.gguf").stat().st_size > weights
    runner = loader("llamacpp").load(target.path, 1)
    assert runner.info.parameters == embedding + 2 * layer + 5 * norm
    runner.close()


@need("llama_cpp")
def test_llamacpp_quantizer(source, float16, tmp_path):
    from greenllm.bench.peers import make

    eight, four = make(source, tmp_path, ["llamacpp-q8_0", "llamacpp-q4_0"])
    assert sizes(eight, find(eight))[1] > sizes(four, find(four))[1]
    before = (four / "model.gguf").stat().st_mtime_ns
    assert make(source, tmp_path, ["llamacpp-q4_0"]) == [four]
    assert (four / "model.gguf").stat().st_mtime_ns == before  # what is there is kept
    found = greenllm.bench([source, float16, eight], **QUICK)
    assert [r.error for r in found.rows] == [None] * 3
    assert found["llamacpp-f16"]["kl"].value < 1e-4
    assert found["llamacpp-q8_0"]["bits_per_weight"].value < found["llamacpp-f16"]["bits_per_weight"].value


@need("llama_cpp")
def test_a_strange_tokenizer_beside_a_gguf(float16, tmp_path, llama):
    lone = tmp_path / "model.gguf"
    lone.write_bytes((float16 / "model.gguf").read_bytes())
    with pytest.raises(GreenError, match=r"no tokenizer\.json beside"):
        greenllm.bench([lone], **QUICK)
    tokenizer = json.loads((float16 / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(GreenError, match="their tokens differ"):
        greenllm.bench([lone], **QUICK)


@need("llama_cpp")
def test_a_broken_gguf_is_said_to_be_one(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(GreenError, match="llama.cpp cannot load it"):
        greenllm.bench([tmp_path / "x.gguf"], **QUICK)


@need("openvino")
@need("nncf")
def test_openvino_is_the_checkpoint_in_torch(source, tmp_path):
    """Traced and made stateful, before NNCF: the same model."""
    import openvino as ov
    import torch
    from transformers import AutoModelForCausalLM

    from greenllm.bench.peers.openvino import stateful, trace

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    ov.save_model(stateful(trace(model)), tmp_path / "openvino_model.xml", compress_to_fp16=False)
    found = find(tmp_path)
    assert found.runner == "openvino"
    agree(loader("openvino").load(found.path, 1), loader("torch").load(str(source), 1), 1e-2)  # its cache is int8


@need("openvino")
@need("nncf")
def test_openvino_int4_in_a_bench(source, int4):
    found = greenllm.bench([source, int4], **QUICK)
    row = found["openvino-int4"]
    assert row.error is None
    assert {"perplexity", "decode", "prefill", "kl"} <= set(row.measurements)
    assert 4 < row["bits_per_weight"].value < 9


@need("openvino")
def test_a_graph_without_state_is_refused(tmp_path):
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter([1, -1], np.int64, name="input_ids")
    x.output(0).get_tensor().set_names({"input_ids"})
    ov.save_model(ov.Model([ops.convert(x, "f32")], [x], "m"), tmp_path / "openvino_model.xml")
    with pytest.raises(GreenError, match="0 states"):
        greenllm.bench([tmp_path], **QUICK)


@pytest.mark.parametrize(("engine", "module"), [("llamacpp", "llama_cpp"), ("openvino", "openvino")])
def test_an_engine_that_is_not_there(monkeypatch, tmp_path, engine, module):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == module else real(name, *a))
    file = {"llamacpp": "x.gguf", "openvino": "openvino_model.xml"}[engine]
    (tmp_path / file).write_text("x")
    with pytest.raises(GreenError, match=r"not installed here.*\n.*greenllm\[peers\]"):
        find(tmp_path)


def test_an_engine_may_be_named(tmp_path):
    (tmp_path / "x.gguf").write_text("x")
    found = find(f"torch:{tmp_path / 'x.gguf'}")
    assert (found.runner, found.path) == ("torch", str(tmp_path / "x.gguf"))


def test_a_peer_nobody_knows(source, tmp_path):
    from greenllm.bench.peers import make

    with pytest.raises(GreenError, match="openvino-int4"):
        make(source, tmp_path, ["awq"])
