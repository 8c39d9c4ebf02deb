"""Classifiers of texts: compressed, exported, benched by their labels, asked by name; as transformers runs them."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import edit, make_bert, make_llama, make_tokenizer, ran

import greenllm
from greenllm import classes, generate
from greenllm.bench import Effort, bench
from greenllm.bench.runners import loader
from greenllm.classify import Classifier
from greenllm.errors import GreenError
from greenllm.export import export
from greenllm.export.bundle import bundle
from greenllm.serve import open_model

TINY = Effort(windows=1, sentences=6, sittings=1, width=0.5, seconds=0.2, turn=0.02, energy=0.1)
WORDS = [("good", "Great"), ("fine", "Great"), ("bad", "poor"), ("dull", "poor"), ("so so", "mixed")]
ROWS = [{"text": f"a {w} film {i}", "label": label, "group": "ab"[i % 2]} for i in range(8) for w, label in WORDS]


def make_classifier(path, *, labels=("poor", "mixed", "great"), **more):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2,
        max_position_embeddings=64, id2label=dict(enumerate(labels)), **more,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    model.classifier.weight.data *= 50  # far apart, so that rounding flips few
    model.save_pretrained(path)
    make_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return make_classifier(tmp_path_factory.mktemp("classes") / "bert-mood")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "films.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    return file


@pytest.fixture(scope="module")
def int8(dense, rows, tmp_path_factory):
    """The whole command: quantized, exported, verified, and measured beside its source."""
    run = {"tasks": [rows], "effort": TINY, "threads": 1, "energy": False}
    return greenllm.compress(dense, tmp_path_factory.mktemp("made") / "int8", "int8", bench_options=run)


def stock(path, texts):
    """Logits as transformers has them, float32 [texts, classes]."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = (k.from_pretrained(path) for k in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.no_grad():
        return np.concatenate([model(input_ids=tokenizer(t, return_tensors="pt").input_ids).logits for t in texts])


def test_the_command_counts_right_classes_of_source_and_result(int8, dense):
    report = json.loads((int8.path / "report.json").read_text())
    before, after = report["rows"]
    (task,) = before["tasks"].values()
    found = stock(dense, [r["text"] for r in ROWS]).argmax(1)
    want = [{"poor": 0, "mixed": 1, "great": 2}[r["label"].lower()] for r in ROWS]
    assert task["scores"]["acc"]["values"] == [float(a == b) for a, b in zip(found, want, strict=True)]
    assert task["chance"] == pytest.approx(1 / 3)
    assert {"acc: a", "acc: b"} <= set(task["scores"])
    assert after["measurements"]["top1"]["value"] == 100
    assert 0.99 < after["measurements"]["cosine"]["value"] <= 1
    (theirs,) = after["tasks"].values()
    assert theirs["scores"]["acc"]["against"]["difference"]["unit"] == "points"
    assert int8.deployable.manifest.details["task"] == classes.TASK


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_runners_give_the_logits_of_transformers(dense, tmp_path, engine):
    path = dense if engine == "torch" else export(dense, tmp_path / "onnx").path
    runner = loader(engine).load(str(path), 1)
    assert (runner.info.task, runner.info.vocabulary) == (classes.TASK, 3)
    texts = ["short", "a text of some more length"]
    from greenllm.bench.texts import Tokens

    ids = Tokens(path).sentences(texts, 64)
    np.testing.assert_allclose(runner.encode(ids), stock(dense, texts), rtol=1e-3, atol=1e-3)


def test_a_decoder_with_a_head_for_classes(rows, tmp_path):
    """Llama reads its class from the last token that pads nothing: texts of other lengths at once change nothing."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2,
        id2label={0: "poor", 1: "mixed", 2: "great"}, pad_token_id=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "llama")
    make_tokenizer(tmp_path / "llama")
    row = bench([str(tmp_path / "llama")], tasks=[rows], energy=False, effort=TINY, threads=1).rows[0]
    (task,) = row.tasks.values()
    found = stock(tmp_path / "llama", [r["text"] for r in ROWS]).argmax(1)
    want = [{"poor": 0, "mixed": 1, "great": 2}[r["label"].lower()] for r in ROWS]
    assert task.scores["acc"].values == [float(a == b) for a, b in zip(found, want, strict=True)]


def test_run_names_the_classes(int8, dense, capsys):
    code, out, told = ran(capsys, int8.path, "a good film")
    assert code == 0
    assert "11 tokens read" in told
    shares = {line.split("%")[1].strip(): float(line.split("%")[0]) for line in out.splitlines()}
    logits = torch.tensor(stock(dense, ["a good film"])[0])
    want = dict(zip(("poor", "mixed", "great"), (100 * logits.softmax(-1)).tolist(), strict=True))
    assert shares == pytest.approx(want, abs=3)
    assert list(shares) == sorted(shares, key=shares.get, reverse=True)
    code, _, told = ran(capsys, int8.path, "a good film", "--temperature", 0.5)
    assert code == 1
    assert "writes none" in told
    with pytest.raises(GreenError, match="to which class"):
        generate.load(int8.path)
    with pytest.raises(GreenError, match="to which class"):
        open_model(int8.path, 1)
    code, _, told = ran(capsys, int8.path, "a" * 100)
    assert code == 1
    assert "this model reads 1 to 64" in told


def test_a_bundle_names_them_too(int8, dense, tmp_path):
    made = bundle(int8.path, tmp_path / "bundle", target="x86-64")
    out = subprocess.run(
        [sys.executable, made / "run.py", "a good film"], capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(out)
    want = dict(zip(("poor", "mixed", "great"), stock(dense, ["a good film"])[0].tolist(), strict=True))
    assert set(found) == set(want)
    assert max(found, key=found.get) == max(want, key=want.get)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_classes_that_exclude_nothing_and_values_that_are_no_class(tmp_path, capsys):
    several = make_classifier(tmp_path / "several", problem_type="multi_label_classification")
    export(several, tmp_path / "several-onnx")
    found, _ = Classifier(tmp_path / "several-onnx").classify("so so")
    want = 1 / (1 + np.exp(-stock(several, ["so so"])[0]))
    assert [p for _, p in found] == pytest.approx(sorted(want.tolist(), reverse=True), abs=1e-3)
    assert "do not add up" in ran(capsys, tmp_path / "several-onnx", "so so")[2]
    one = make_classifier(tmp_path / "one", labels=("LABEL_0",))
    export(one, tmp_path / "one-onnx")
    ((name, value),), _ = Classifier(tmp_path / "one-onnx").classify("so so")
    assert name == "LABEL_0"
    assert value == pytest.approx(float(stock(one, ["so so"])[0, 0]), abs=1e-3)


def test_what_cannot_be_asked_is_named(dense, rows, tmp_path):
    def told(model, task, **more):
        with pytest.raises(GreenError) as e:
            bench([str(model)], tasks=[task], energy=False, effort=TINY, threads=1, **more)
        return str(e.value)

    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in ("ax", "by")))
    assert "has no class 'x'" in told(dense, other)
    assert "0 to 2; poor, mixed, great" in told(dense, other)
    choices = tmp_path / "choices.jsonl"
    choices.write_text(json.dumps({"context": "a", "choices": ["b", "c"], "label": 0}))
    assert "cannot be asked" in told(dense, choices)
    assert "cannot be asked" in told(make_bert(tmp_path / "bert"), rows)
    assert "has one output" in told(make_classifier(tmp_path / "one", labels=("LABEL_0",)), rows)
    twins = make_classifier(tmp_path / "twins", labels=("Great", "great", "poor"))
    edit(twins / "config.json", id2label={"0": "Great", "1": "GREAT", "2": "poor"})
    names = classes.names_of(twins)
    with pytest.raises(GreenError, match="no class 'gReat'"):
        classes.index_of("gReat", names, 3, who="twins", where="line 1")
    assert classes.index_of("Poor", names, 3, who="twins", where="line 1") == 2


def test_text_generators_are_asked_the_same_rows_as_before(rows, tmp_path):
    row = bench(
        [str(make_llama(tmp_path / "llama"))], tasks=[rows], energy=False, effort=TINY, threads=1, limit=5
    ).rows[0]
    (task,) = row.tasks.values()
    assert "acc_norm" in task.scores
