"""Several queries at once: each is answered as if it were alone, and who cannot is a row that says so."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from conftest import make_bert, make_llama
from test_bench_session import bigram

import greenllm
from greenllm.bench import Effort
from greenllm.bench.batches import _figures
from greenllm.bench.latency import Query, Rounds
from greenllm.bench.runners import loader
from greenllm.errors import GreenError

LEAST = Effort(windows=2, sentences=10, sittings=2, width=0.9, seconds=0.1, turn=0.01)
QUICK = {"effort": LEAST, "energy": False, "prompt_tokens": 8, "answer_tokens": 4, "window": 32, "threads": 1}
PROMPTS = [[5, 9, 60, 33, 7], [44, 2, 8, 19, 101], [5, 9, 60, 33, 8]]


def answers(runner, prompts, count=6):
    """What it writes, all at once."""
    rows = [runner.prefill_all(prompts, count)]
    for _ in range(count - 1):
        rows.append(runner.step_all(rows[-1]))
    return np.array(rows).T.tolist()


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "genai"])
def test_each_is_answered_as_if_it_were_alone(tmp_path, engine):
    path = make_llama(tmp_path / "m", vocab=300)
    if engine != "torch":
        path = greenllm.export(path, tmp_path / "x", to="onnx" if engine == "onnxruntime" else "genai").path
    runner = loader(engine).load(str(path), 1)
    alone = [answers(runner, [p])[0] for p in PROMPTS]
    assert answers(runner, PROMPTS) == alone
    assert alone[0] != alone[1]
    runner.close()


def test_tokens_of_all_queries_count():
    found = _figures(Rounds(4 * 10, [[Query(0.5, [0.1, 0.1])], [Query(0.5, [0.1, 0.1])]]), 4)
    assert found["prefill"].value == pytest.approx(80)
    assert found["decode"].value == pytest.approx(40)
    found = _figures(Rounds(4 * 10, [[Query(0.5)], [Query(0.5)]]), 4)
    assert found["encode"].value == pytest.approx(8)
    assert found["batch_p50"].value == pytest.approx(500)


def test_who_cannot_is_a_row_that_says_so(tmp_path):
    table = np.random.default_rng(0).normal(size=(128, 128)).astype(np.float32)
    source, one = bigram(tmp_path / "any", table, batch="b"), bigram(tmp_path / "one", table)
    found = greenllm.bench([source, one], batches=[3, 1, 3], report=tmp_path / "report", **QUICK)
    good, bad = found.rows
    assert good.error is bad.error is None
    assert list(good.batches) == list(bad.batches) == ["1", "3"]
    assert {"prefill", "decode"} <= set(good.batches["3"])
    assert bad.batches["1"]
    assert bad.batches["3"] == {}
    assert any("batch of 3: Its graph was exported for batches of 1" in n for n in bad.notes)
    for name in ("report.html", "report.md"):
        text = (tmp_path / "report" / name).read_text()
        assert "Decode, batch of 3" in text
        assert "cannot" in text
    rows = list(csv.DictReader((tmp_path / "report" / "report.csv").open()))
    assert {r["batch"] for r in rows if r["metric"] == "decode, batch of 3"} == {"3"}
    with pytest.raises(GreenError, match="no batch of 0"):
        greenllm.bench([source], batches=[0], **QUICK)


def test_encoders_by_batch(tmp_path):
    row = greenllm.bench([make_bert(tmp_path / "m")], batches=[2], **QUICK).rows[0]
    assert set(row.batches["2"]) == {"encode", "batch_p50"}
