"""Whole benches over small real graphs: a table of logits, so that the truth is known."""

from __future__ import annotations

import itertools
import json
import math
import re

import numpy as np
import pytest
from conftest import make_tokenizer

import greenllm
from greenllm.bench import Effort, Results, texts
from greenllm.bench.process import Failed, Model
from greenllm.bench.session import Session
from greenllm.errors import GreenError

onnx = pytest.importorskip("onnx")
TINY = Effort(windows=4, sentences=12, sittings=2, width=0.5, seconds=0.2, turn=0.02, energy=0.1)
QUICK = {"effort": TINY, "window": 32, "prompt_tokens": 8, "answer_tokens": 4, "threads": 1, "energy": False}


def bigram(path, table, vocab=128, batch=1):
    """An ONNX decoder whose logits after token i are row i of ``table``."""
    from onnx import TensorProto, helper, numpy_helper

    path.mkdir(parents=True)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, [batch, "t"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, "t", table.shape[1]])
    node = helper.make_node("Gather", ["table", "input_ids"], ["logits"])
    graph = helper.make_graph([node], "g", [ids], [logits], [numpy_helper.from_array(table, "table")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path / "model.onnx")
    make_tokenizer(path, vocab)
    return path


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(128, 128)).astype(np.float32)
    return a, (a + 0.5 * rng.normal(size=a.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def two(tmp_path_factory, tables):
    root = tmp_path_factory.mktemp("two")
    return bigram(root / "before", tables[0]), bigram(root / "after", tables[1])


@pytest.fixture(scope="module")
def results(two, tmp_path_factory):
    return greenllm.bench(list(two), report=tmp_path_factory.mktemp("report") / "r.html", **QUICK)


def test_perplexity_and_kl_are_the_tables_own(results, two, tables):
    cut = texts.Tokens(two[0]).windows(texts.read(None).text, 32, 4)
    pairs = [(a, b) for w in cut.tokens for a, b in itertools.pairwise(w)]
    p, q = (t - np.log(np.exp(t).sum(1, keepdims=True)) for t in tables)
    for name, logp in (("before", p), ("after", q)):
        nll = -np.mean([logp[a, b] for a, b in pairs])
        assert results[name]["perplexity"].value == pytest.approx(math.exp(nll), rel=1e-5)
    kl = np.mean([(np.exp(p[a]) * (p[a] - q[a])).sum() for a, _ in pairs])
    assert results["after"]["kl"].value == pytest.approx(kl, rel=1e-4)
    same = np.mean([p[a].argmax() == q[a].argmax() for a, _ in pairs])
    assert results["after"]["top1"].value == pytest.approx(100 * same)


def test_results_survive_json(results):
    assert Results.from_json(results.to_json()) == results
    with pytest.raises(GreenError, match="no bench results"):
        Results.from_json("{}")


def test_a_row_has_all_that_was_asked_for(results):
    for row in results.rows:
        assert row.error is None
        assert {"perplexity", "decode", "prefill", "token_p50", "load", "disk", "memory"} <= set(row.measurements)
    assert "energy_gross" not in results["after"]
    assert results.settings["windows"] == 4
    assert results.settings["scored_tokens"] == 4 * 31
    with pytest.raises(GreenError, match="there are before, after"):
        results["neither"]


def test_models_of_one_name_are_told_apart_by_their_directories(tmp_path):
    from greenllm.bench.models import find_all

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.gguf").write_bytes(b"GGUF")
    found = find_all([f"torch:{tmp_path / n / 'model.gguf'}" for n in ("a", "b", "b")], None)
    assert [t.name for t in found] == ["a/model.gguf", "b/model.gguf", "b/model.gguf (2)"]


def test_a_model_against_itself_is_not_said_to_differ(two):
    found = greenllm.bench([two[0], two[0]], **QUICK)
    twin = found.rows[1]
    assert twin.name == "before (2)"
    assert 1.0 in twin.ratios["perplexity"]
    assert twin.verdict("perplexity") == "same"
    assert twin.verdict("disk") == "same"
    assert twin["kl"].value == pytest.approx(0, abs=1e-6)


def test_nan_logits_are_a_row_that_says_so(two, tables, tmp_path):
    broken = tables[0].copy()
    broken[:, 5] = np.nan
    found = greenllm.bench([two[0], bigram(tmp_path / "broken", broken), two[1]], **QUICK)
    assert "NaN or infinity" in found["broken"].error
    assert "decode" in found["broken"]  # what was measured before stays
    assert found["after"].error is None
    assert "kl" in found["after"]


def test_another_tokenizer_is_compared_per_byte_only(two, tables, tmp_path):
    small = bigram(tmp_path / "small", tables[0][:100, :100], vocab=100)
    found = greenllm.bench([two[0], small], **QUICK)
    assert "perplexity" not in found["small"].ratios
    assert "kl" not in found["small"]
    assert "bits_per_byte" in found["small"].ratios
    assert any("per byte" in n for n in found["small"].notes)


def test_a_killed_process_is_a_row_and_not_the_end(two):
    from greenllm.bench import phases
    from greenllm.bench.models import find_all
    from greenllm.bench.session import Query
    from greenllm.bench.speed import Speed
    from greenllm.progress import Silent

    with Session(find_all(list(two), None), 1, Silent()) as session:
        session.load()
        phases.cut(session, texts.read(None), 32, 4, Query(8, 4))
        session.live[1].model._process.kill()
        Speed(session, Query(8, 4), TINY).begin()
        phases.score(session)
    assert "Killed by the system (SIGKILL)" in session.rows[1].error
    assert "perplexity" in session.rows[0]


def test_a_hung_process_is_stopped(two):
    """No interpreter starts within a thousandth of a second."""
    with Model(1, limit=0.001) as model, pytest.raises(Failed, match="No answer within"):
        model.call("load", "onnxruntime", str(two[0]), 1)


def test_energy_by_an_injected_meter(two):
    import time

    class Constant:
        method, covers, leaves_out, resolution = "measured:fake", "30 W, always", "nothing", "exact"
        period, lag = 0.01, 0.0

        def __init__(self):
            self.begin = time.perf_counter()

        def joules(self):
            return 30 * (time.perf_counter() - self.begin)

        def close(self):
            raise AssertionError("not ours to close")

    found = greenllm.bench(list(two), **{**QUICK, "energy": True}, meter=Constant(), intensity=360.0)
    row = found["after"]
    query = np.mean(row.samples["query_seconds"])
    assert row["energy_gross"].value == pytest.approx(30 * query, rel=0.5)  # windows of 0.1 s have wide edges
    assert row["carbon_gross"].value == pytest.approx(row["energy_gross"].value * 0.1)  # 360 g/kWh is 0.1 mg/J
    assert row["carbon_1000"].value == pytest.approx(row["carbon_gross"].value / 1000 / 4 * 1000)
    assert found.settings["idle_w"] == pytest.approx(30, rel=0.01)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "nothing", "there is no such model"),
        (lambda p: p, "holds no model"),
        (lambda p: (p / "x.bin").write_bytes(b"1") and p / "x.bin", "a file that is no model"),
    ],
)
def test_what_is_no_model(tmp_path, make, says):
    with pytest.raises(GreenError, match=says):
        greenllm.bench([make(tmp_path)], **QUICK)


def test_bad_numbers_and_names(two):
    for bad, says in (({"effort": "heroic"}, "quick, full"), ({"answer_tokens": 0}, "answer_tokens is 0"),
                      ({"threads": -1}, "threads is -1"), ({"text": "no.txt"}, "no such text file")):  # fmt: skip
        with pytest.raises(GreenError, match=says):
            greenllm.bench(list(two), **{**QUICK, **bad})
    with pytest.raises(GreenError, match="no model to bench"):
        greenllm.bench([], **QUICK)


def test_baseline_comes_first(two):
    from greenllm.bench.models import find_all

    assert [t.name for t in find_all(list(two), two[1])] == ["after", "before"]


def test_report_escapes_names_and_stands_alone(tables, tmp_path, two):
    evil = bigram(tmp_path / '<script>alert(1)<img src=x onerror="x">|`_', tables[1])
    html = tmp_path / "out" / "report.html"
    greenllm.bench([two[0], evil], report=html.parent, **QUICK)
    text = html.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"(?:src|href)=|url\(|@import", re.sub(r"&#?\w+;", "", text.replace("src=x", "")))
    markdown = html.with_suffix(".md").read_text(encoding="utf-8")
    assert "<script" not in markdown
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert json.loads(html.with_suffix(".json").read_text(encoding="utf-8"))["baseline"] == "before"


def test_table_for_the_terminal(results):
    from rich.console import Console

    from greenllm.bench.report import table

    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115 - a sink
    console.print(table(results))
    text = console.export_text()
    assert "Perplexity" in text
    assert "before" in text


def test_encoders_go_the_same_way(bert):
    pytest.importorskip("torch")
    found = greenllm.bench([bert, bert], **QUICK)
    twin = found.rows[1]
    assert twin.task == "feature-extraction"
    assert twin["cosine"].value == pytest.approx(1, abs=1e-5)
    assert {"encode", "text_p50", "memory"} <= set(twin.measurements)


def test_generators_and_encoders_are_not_mixed(bert, two):
    with pytest.raises(GreenError, match="cannot be benched against each other"):
        greenllm.bench([two[0], bert], **QUICK)


def test_a_slice_of_the_real_model(smollm2, data):
    found = greenllm.bench(
        [smollm2], text=data / "wikitext2" / "test.txt", effort=Effort(windows=2, sittings=2, seconds=0.1, turn=0.1),
        window=128, prompt_tokens=16, answer_tokens=4, energy=False,
    )  # fmt: skip
    row = found.rows[0]
    assert row.error is None
    assert 5 < row["perplexity"].value < 100
    assert 31.9 < row["bits_per_weight"].value < 32.1
