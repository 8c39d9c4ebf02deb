"""A cache of keys and values in 8 and 4 bits: its scales, graphs that have it, what runs them, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import pytest
import torch
from conftest import OLD, first_blocks, make_llama, ran
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from test_cli import run
from test_export import PROMPT, genai_greedy, quantized
from tokenizers import Tokenizer

import greenllm
from greenllm.bench.runners import genai
from greenllm.checkpoint import open_checkpoint
from greenllm.errors import GreenError
from greenllm.export.fits import fit, refuse_misfit, shape_of
from greenllm.export.targets import load_target
from greenllm.export.tokenizer import ENGLISH
from greenllm.progress import Silent
from greenllm.quantize.kv_cache import channel_scales, measure

new = pytest.mark.skipif(bool(OLD), reason="this onnxruntime-genai has no caches of integers")
KINDS = {8: TensorProto.INT8, 4: TensorProto.UINT8}


def rounded(states, scales, bits):
    top = 2 ** (bits - 1)
    return (states / scales).round().clamp(-top, top - 1) * scales


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_no_scale_of_4_bits_is_much_better(seed):
    states = torch.randn(64, 3, generator=torch.Generator().manual_seed(seed))
    scales = channel_scales(states, 4)
    assert (scales > 0).all()
    found = (rounded(states, scales, 4) - states).square().sum(0)
    every = states.abs().amax(0) / 7 * torch.linspace(0.4, 1.1, 200)[:, None]
    least = torch.stack([(rounded(states, s, 4) - states).square().sum(0) for s in every]).amin(0)
    assert (found <= 1.25 * least + 1e-9).all()


def test_8_bits_reach_the_largest():
    states = torch.randn(64, 3)
    torch.testing.assert_close(channel_scales(states, 8), states.abs().amax(0) / 127)


def test_a_channel_that_was_never_anything_has_a_scale_too():
    states = torch.cat([torch.randn(16, 2), torch.zeros(16, 1)], 1)
    scales = channel_scales(states, 8)
    assert float(scales[2]) == pytest.approx(1e-3 * float(scales.max()))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_states_that_are_no_numbers(bad):
    with pytest.raises(GreenError, match="NaN, infinite, or all zero"):
        channel_scales(torch.full((4, 2), bad), 8)


def test_keys_are_seen_at_places_all_over_the_context(llama, monkeypatch):
    """Rotary embeddings make other channels large there."""
    checkpoint, seen = open_checkpoint(llama), []
    model = checkpoint.load_model()

    def asked(**given):
        seen.append(given["position_ids"][0].tolist())
        return model(**given)

    monkeypatch.setattr(type(checkpoint), "load_model", lambda _: asked)
    measure(checkpoint, torch.arange(1, 121).view(4, 30), 8, 256, Silent())
    assert [p[0] for p in seen] == [0, 75, 150, 226]
    assert all(p == list(range(p[0], p[0] + 30)) for p in seen)


def test_what_is_measured_is_what_the_cache_holds(llama):
    found = measure(open_checkpoint(llama), torch.arange(1, 65).view(2, 32), 8, 64, Silent())
    assert set(found) == {"k_scales", "v_scales"}
    assert {len(layer) for side in found.values() for layer in side} == {2 * 16}
    assert all(s > 0 for side in found.values() for layer in side for s in layer)


@new
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_a_graph_with_such_a_cache_runs(llama, tmp_path, bits, packed):
    model = quantized(llama, tmp_path / "q").path if packed else llama
    plain = greenllm.export(model, tmp_path / "plain", to="genai")
    done = greenllm.export(model, tmp_path / "o", to="genai", kv_bits=bits)
    done.verify()
    assert done.manifest.details["kv_cache"]["bits"] == bits
    assert done.manifest.details["kv_cache"]["calibration"]["source"] == "self"
    graph = onnx.load(str(done.path / "model.onnx"), load_external_data=False).graph
    caches = [v for v in (*graph.input, *graph.output) if v.name.startswith(("past_key_values", "present"))]
    assert {v.type.tensor_type.elem_type for v in caches} == {KINDS[bits]}
    assert {v.type.tensor_type.shape.dim[3].dim_value for v in caches} == {16 if bits == 8 else 8}
    assert sum(n.op_type == "GroupQueryAttention" for n in graph.node) == 2
    tokens = genai_greedy(done.path, PROMPT, 12)
    assert len(tokens) == len(PROMPT) + 12
    ours, theirs = (genai.load(str(a.path), 1) for a in (done, plain))
    want, got = theirs.logits(tokens), ours.logits(tokens)
    assert np.abs(got - want).max() > 0
    assert np.linalg.norm(got - want) < (0.05 if bits == 8 else 0.4) * np.linalg.norm(want)
    first = ours.prefill(PROMPT, 8)
    assert [first, *(ours.step(first) for _ in range(3))] == tokens[len(PROMPT) : len(PROMPT) + 4]


@new
def test_it_is_asked_for_on_the_command_line(llama, tmp_path, capsys):
    code, _, err = run(
        capsys, "compress", llama, "-o", tmp_path / "c", "--recipe", "int8", "--kv-bits", "8", "--no-bench"
    )
    assert code == 0, err
    deploy = tmp_path / "c" / "deploy"
    assert json.loads((deploy / "greenllm.json").read_text())["details"]["kv_cache"]["bits"] == 8
    code, _, err = ran(capsys, tmp_path / "c", "hello", "--max-tokens", "4")
    assert code == 0, err
    code, _, err = run(capsys, "export", llama, "-o", tmp_path / "o", "--kv-bits", "4")
    assert code == 0, err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kv_bits": 3}, "No cache has 3 bits"),
        ({"kv_bits": 0}, "No cache has 0 bits"),
        ({"kv_bits": 8, "to": "onnx"}, "stay as they are in onnx"),
        ({"kv_bits": 8, "to": "gguf"}, "stay as they are in gguf"),
        ({"kv_bits": 8, "target": "jetson-orin-nano"}, "stay as they are in tensorrt"),
        ({"kv_bits": 8, "adapters": ["somewhere"]}, "Adapters change"),
        ({"calibration": "self"}, "with --kv-bits"),
    ],
)
def test_what_nothing_runs_is_refused(llama, tmp_path, options, says):
    with pytest.raises(GreenError, match=says):
        greenllm.export(llama, tmp_path / "o", **options)
    assert not (tmp_path / "o").exists()


def test_compress_refuses_it_before_the_work(llama, tmp_path):
    with pytest.raises(GreenError, match="stay as they are in onnx"):
        greenllm.compress(llama, tmp_path / "c", to="onnx", kv_bits=8, bench=False)
    assert not (tmp_path / "c").exists()


def test_the_arithmetic_of_memory_knows_it():
    config = open_shape()
    target = load_target("raspberry-pi-5")
    plain = fit(config, target, "genai", bits=4.5, context=2048)
    eight = fit(config, target, "genai", bits=4.5, context=2048, kv_bits=8)
    four = fit(config, target, "genai", bits=4.5, context=2048, kv_bits=4)
    assert plain.parts["cache of 2048 tokens"] == 2 * eight.parts["cache of 2048 tokens"]
    assert eight.parts["cache of 2048 tokens"] == 2 * four.parts["cache of 2048 tokens"]


def test_where_the_cache_is_too_large_the_way_out_is_named(tmp_path):
    config = open_shape()
    file = tmp_path / "small.yaml"
    need = fit(config, load_target("raspberry-pi-5"), "genai", bits=4.5, context=8192).needed / 2**30
    file.write_text(
        "description: small\nformats: {text-generation: genai}\nruntimes: [genai]\n"
        f"memory: {need - 0.01:.3f}\nreserved: 0\n"
    )
    with pytest.raises(GreenError, match=r"needs") as told:
        refuse_misfit(config, load_target(str(file)), "genai", bits=4.5, context=8192)
    assert "--kv-bits 8" in told.value.fix
    refuse_misfit(config, load_target(str(file)), "genai", bits=4.5, context=8192, kv_bits=8)


def open_shape():
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152,
        max_position_embeddings=8192,
    )  # fmt: skip
    return shape_of(config, 134_515_008, generates=True)


@new
def test_a_real_model_loses_little(smollm2, data, tmp_path):
    """The first blocks of SmolLM2 over English text."""
    model = first_blocks(smollm2, tmp_path / "m", 3)
    ids = Tokenizer.from_file(str(smollm2 / "tokenizer.json")).encode(ENGLISH * 4).ids[:200]
    logits = {}
    for bits in (None, 8, 4):
        text = str(data / "calibration" / "c4_en_300.jsonl") if bits else None
        done = greenllm.export(model, tmp_path / str(bits), to="genai", kv_bits=bits, calibration=text)
        logits[bits] = torch.log_softmax(torch.from_numpy(genai.load(str(done.path), 1).logits(ids)).double(), -1)
    lost = {b: float((logits[None].exp() * (logits[None] - logits[b])).sum(-1).mean()) for b in (8, 4)}
    assert 0 < lost[8] < 2e-3
    assert lost[8] < lost[4] < 0.2


def test_a_model_whose_cache_is_something_else(tmp_path, monkeypatch):
    model = make_llama(tmp_path / "m")
    checkpoint = open_checkpoint(model)
    loaded = checkpoint.load_model()
    monkeypatch.setattr(type(checkpoint), "load_model", lambda _: lambda **_: (None, object()))
    assert loaded is not None
    with pytest.raises(GreenError, match="not one of keys and values"):
        measure(checkpoint, torch.ones(1, 8, dtype=torch.int64), 8, 8, Silent())
