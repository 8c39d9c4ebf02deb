"""What the pictures of a report draw, and the figures behind them."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from conftest import make_llama
from onnx import TensorProto, helper, numpy_helper

import greenllm
from greenllm.bench import Effort, bandwidth, latency, tensors
from greenllm.bench.latency import Query, Rounds
from greenllm.bench.report import curves, sizes
from greenllm.bench.report.figures import _front, trade
from greenllm.errors import GreenError


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_tokens.weight", "embedding"), ("lm_head.MatMul.weight.qweight", "head"),
        ("model.layers.3.self_attn.q_proj.qweight", "attention"), ("model.layers.3.mlp.down_proj.weight", "MLP"),
        ("model.layers.0.post_attention_layernorm.weight", "other"), ("cos_cache.from", "other"),
        ("bert.embeddings.word_embeddings.weight", "embedding"),
        ("encoder.layer.1.attention.self.query.bias", "attention"),
        ("encoder.layer.1.attention.output.dense.weight", "attention"), ("encoder.layer.1.output.dense.weight", "MLP"),
        ("encoder.layer.1.intermediate.dense.weight", "MLP"), ("transformer.h.0.attn.c_attn.weight", "attention"),
        ("transformer.h.0.ln_1.weight", "other"), ("transformer.wte.weight", "embedding"),
        ("blk.2.ffn_down.weight", "MLP"), ("blk.2.attn_k.weight", "attention"), ("blk.2.attn_norm.weight", "other"),
        ("token_embd.weight", "embedding"), ("output.weight", "head"), ("output_norm.weight", "other"),
    ],
)  # fmt: skip
def test_kinds_by_the_names_that_the_formats_use(name, kind):
    assert tensors.kind(name) == kind


def test_bytes_of_a_checkpoint_and_of_a_graph(tmp_path):
    path = make_llama(tmp_path / "m")
    found = tensors.bytes_by_kind(path, "torch", path)
    model = sum(f.stat().st_size for f in path.glob("*.safetensors"))
    assert sum(found.values()) == pytest.approx(model, rel=0.2)  # a header besides
    assert found["attention"] > 0 < found["MLP"]
    four = helper.make_tensor(
        "model.layers.0.mlp.up_proj.weight", TensorProto.INT4, [3, 5], np.zeros(15, np.int8).tolist()
    )
    half = numpy_helper.from_array(np.zeros((2, 4), np.float16), "model.layers.0.attn.o_proj.weight")
    graph = helper.make_graph([], "g", [], [], [four, half])
    (tmp_path / "x").mkdir()
    onnx.save(helper.make_model(graph), tmp_path / "x" / "model.onnx")
    found = tensors.bytes_by_kind(tmp_path / "x", "genai", tmp_path / "x")
    assert (found["MLP"], found["attention"]) == (8, 16)  # 15 codes of half a byte; 8 of two


def test_a_damaged_file_has_no_kinds(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 32)
    assert tensors.bytes_by_kind(tmp_path, "torch", tmp_path) == {}
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    assert tensors.bytes_by_kind(tmp_path, "torch", tmp_path) == {}
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 32)
    assert tensors.bytes_by_kind(tmp_path, "genai", tmp_path) == {}
    assert tensors.bytes_by_kind(tmp_path, "openvino", tmp_path) == {}


def test_quantiles_are_of_all_tokens():
    rounds = Rounds(1, [[Query(1.0, [0.001, 0.002])], [Query(1.0, [0.003])]])
    found = rounds.quantiles()["token_quantiles"]
    assert len(found) == 101
    assert found[::50] == pytest.approx([1, 2, 3])
    assert list(Rounds(1, [[Query(0.5)], [Query(0.7)]]).quantiles()) == ["text_quantiles"]
    assert Rounds(1).quantiles() == {}


def test_the_front_is_what_none_beats_in_both():
    points = [(3.0, 10.0), (1.0, 20.0), (2.0, 30.0), (4.0, 10.0), (1.0, 25.0)]
    assert _front(points, up=False) == [(1.0, 20.0), (3.0, 10.0)]
    assert _front(points, up=True) == [(1.0, 25.0), (2.0, 30.0)]


def test_the_machine_reads_more_than_a_disk_and_less_than_a_cache():
    assert 1e9 < bandwidth.read_bandwidth(1) < 1e12


def test_the_bench_itself_takes_next_to_nothing():
    assert 0 < latency.overhead(2000) < 1e-3  # a thousandth of a second would be a bug, not a slow machine


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    base = tmp_path_factory.mktemp("pictures")
    greenllm.export(make_llama(base / "m", vocab=300), base / "x")
    least = Effort(windows=2, sittings=2, width=0.9, seconds=0.1, turn=0.01)
    return greenllm.bench([base / "m", base / "x"], effort=least, energy=False, prompt_tokens=8, answer_tokens=4,
                          window=64, report=base / "report"), base  # fmt: skip


def test_a_report_has_them(two):
    found, base = two
    html = (base / "report" / "report.html").read_text()
    assert "Time of a token" in html
    assert html.count("<polyline") >= 2
    assert "Where the bytes are" in html
    assert "pareto front" in html.lower() or trade(found).lines == ()
    assert len(curves.latencies(found).lines) == 2
    pieces = [m for m in sizes.pieces(found).marks if m.series]
    for row in found.rows:
        mine = [m for m in pieces if m.title.startswith(f"{row.name}:")]
        assert sum(m.x1 - m.x0 for m in mine) == pytest.approx(456, rel=0.05)  # they fill the bar


def test_bandwidth_is_weights_times_tokens(two):
    found, base = two
    source = found.rows[0]
    size = sum(json.loads((base / "report" / "report.json").read_text())["rows"][0]["sizes"].values())
    embedding = source.sizes["embedding"]
    tied = json.loads((base / "m" / "config.json").read_text())["tie_word_embeddings"]
    read = size if tied else size - embedding
    assert source["bandwidth"].value == pytest.approx(read / 1e3 * source["decode"].value, rel=0.02)
    assert "GB/s that this machine reads" in source["bandwidth"].note
    assert "takes" in found.methods["Speed"]
    assert found.settings["read_gb_s"] > 0


def test_longer_prompts_are_timed_and_drawn(tmp_path):
    path = make_llama(tmp_path / "m", vocab=300)
    least = Effort(windows=2, sittings=2, width=0.9, seconds=0.1, turn=0.01)
    found = greenllm.bench([path], effort=least, energy=False, prompt_tokens=8, answer_tokens=4, window=64,
                           lengths=[128, 16, 4096], report=tmp_path / "report")  # fmt: skip
    row = found.rows[0]
    assert list(row.lengths) == ["16", "128"]
    assert any("a prompt of 4096" in n for n in row.notes)  # beyond its context
    for figures in row.lengths.values():
        assert set(figures) == {"prefill", "first_token", "decode", "memory"}
        assert figures["memory"].value <= row["memory"].value * 1.2  # counted anew at each length
    html = (tmp_path / "report" / "report.html").read_text()
    assert "Peak memory by prompt length" in html
    assert "Time to first token, prompt of 128" in (tmp_path / "report" / "report.md").read_text()
    with pytest.raises(GreenError, match="too short"):
        greenllm.bench([path], lengths=[1])
    (tmp_path / "t.txt").write_text("short text " * 20)
    with pytest.raises(GreenError, match="the prompt"):
        greenllm.bench([path], lengths=[240], text=tmp_path / "t.txt", energy=False, window=8, prompt_tokens=8)
