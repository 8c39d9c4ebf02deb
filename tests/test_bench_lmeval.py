"""Tasks of lm-eval over our runners: the same log-likelihoods, answers and metrics as its own Hugging Face model."""

from __future__ import annotations

import json

import pytest
import yaml
from conftest import make_llama
from typer.testing import CliRunner

import greenllm
from greenllm.bench import Effort, report
from greenllm.cli import app
from greenllm.errors import GreenError

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
LEAST = Effort(windows=2, sittings=2, width=0.9, seconds=0.1, turn=0.01)
QUICK = {"effort": LEAST, "energy": False, "prompt_tokens": 8, "answer_tokens": 4, "window": 64}


def task(folder, name, rows, **config):
    """A task of lm-eval's own format with its data beside it."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    file = folder / f"{name}.yaml"
    whole = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
             "test_split": "test", "metadata": {"version": 1.0}} | config  # fmt: skip
    file.write_text(yaml.safe_dump(whole))
    return file


def three(folder, data):
    """Choices, a free answer, and a whole text."""
    arc = [json.loads(line) for line in (data / "arc_easy" / "test.jsonl").read_text().splitlines()[:6]]
    rows = [{"q": r["question"], "c": r["choices"], "y": r["label"]} for r in arc]
    text = (data / "wikitext2" / "test.txt").read_text()
    return [
        task(folder, "mine_choice", rows, output_type="multiple_choice", doc_to_text="Question: {{q}}\nAnswer:",
             doc_to_choice="{{c}}", doc_to_target="y",
             metric_list=[{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]),
        task(folder, "mine_answer", [{"q": q, "a": a} for q, a in (("The capital of France is", "Paris"),
                                                                  ("Two and two is", "four"))],
             output_type="generate_until", doc_to_text="{{q}}", doc_to_target=" {{a}}",
             generation_kwargs={"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False},
             metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]),
        task(folder, "mine_text", [{"t": text[:1500]}, {"t": text[5000:5600]}], output_type="loglikelihood_rolling",
             doc_to_text="", doc_to_target="{{t}}",
             metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}]),
    ]  # fmt: skip


def by_themselves(path, files):
    """lm-eval with its own model."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(path), device="cpu", dtype="float32", batch_size=1)
    configs = [yaml.safe_load(f.read_text()) for f in files]
    return lm_eval.simple_evaluate(model=model, tasks=configs, log_samples=True, bootstrap_iters=100)


def test_the_same_items_have_the_same_likelihoods_and_metrics_as_in_lm_eval(smollm2, data, tmp_path, monkeypatch):
    from greenllm.bench.tasks import lmeval

    kept = []
    evaluate = lmeval.simple_evaluate
    monkeypatch.setattr(lmeval, "simple_evaluate", lambda **how: kept.append(evaluate(**how)) or kept[-1])
    files = three(tmp_path, data)
    found = greenllm.bench([smollm2], lm_eval=[str(f) for f in files], limit=0, **QUICK)
    want = by_themselves(smollm2, files)
    for name in ("mine_choice", "mine_answer", "mine_text"):
        for ours, theirs in zip(kept[0]["samples"][name], want["samples"][name], strict=True):
            if name == "mine_answer":
                assert ours["resps"] == theirs["resps"]
                continue
            flat = [[float(x[0][0] if name == "mine_choice" else x[0]) for x in s["resps"]] for s in (ours, theirs)]
            assert flat[0] == pytest.approx(flat[1], rel=1e-4)
            greedy = [[x[0][1] for x in s["resps"]] for s in (ours, theirs) if name == "mine_choice"]
            assert not greedy or greedy[0] == greedy[1]
        scores = found.rows[0].tasks[f"lm-eval/{name}"].scores
        for metric, score in scores.items():
            factor = 100 if score.measured.unit == "%" else 1
            assert score.measured.value == pytest.approx(factor * want["results"][name][f"{metric},none"], rel=1e-4)
    assert found.rows[0].tasks["lm-eval/mine_choice"].main.measured.n == 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny Llama and its export, asked a task of choices and one of text."""
    base = tmp_path_factory.mktemp("lmeval")
    make_llama(base / "m", vocab=300)
    greenllm.export(base / "m", base / "x")
    rows = [{"q": f"Number {i} is", "c": ["odd", "an even one"], "y": i % 2} for i in range(12)]
    choice = task(base, "mine", rows, output_type="multiple_choice", doc_to_text="{{q}}", doc_to_choice="{{c}}",
                  doc_to_target="y", metric_list=[{"metric": "acc"}])  # fmt: skip
    text = task(base, "words", [{"t": f"The sky is {c}."} for c in ("blue", "red", "grey")],
                output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{t}}",
                metric_list=[{"metric": "bits_per_byte"}])  # fmt: skip
    return greenllm.bench(
        [base / "m", base / "x"], lm_eval=[str(choice), str(text)], limit=10, report=base / "report", **QUICK
    ), base


def test_an_export_is_compared_item_by_item(tiny):
    before, after = tiny[0].rows
    assert before.tasks["lm-eval/mine"].main.values == after.tasks["lm-eval/mine"].main.values
    assert len(before.tasks["lm-eval/mine"].main.values) == 10  # the limit
    assert before.tasks["lm-eval/mine"].total == 12
    assert after.tasks["lm-eval/mine"].main.against.verdict == "same"
    assert after.tasks["lm-eval/mine"].main.measured.method.startswith("lm-eval 0.")
    bits = [r.tasks["lm-eval/words"].main.measured.value for r in (before, after)]
    assert bits[0] == pytest.approx(bits[1], rel=1e-4)


def test_its_tasks_are_in_every_report(tiny):
    base = tiny[1] / "report"
    for file in ("report.html", "report.md"):
        assert "lm-eval/mine" in (base / file).read_text()
    assert "acc of lm-eval/mine" in (base / "report.csv").read_text()
    assert type(tiny[0]).from_json((base / "report.json").read_text()).rows[1].tasks == tiny[0].rows[1].tasks
    assert any("lm-eval/words, bits_per_byte" in str(c) for c in report.table(tiny[0]).columns[0].cells)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("task: x\ndoc_to_text: !function utils.evil\n", "functions are not run"),
        ("task: x\ninclude: other.yaml\n", "no whole task"),
        ("- a\n", "no whole task"),
        ("a: [", "no task of lm-eval"),
    ],
)
def test_a_task_file_runs_no_code(tmp_path, text, says):
    from greenllm.bench.tasks import lmeval

    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(GreenError, match=says):
        lmeval.read([str(tmp_path / "t.yaml")])


def test_an_unknown_task_is_refused_before_anything_is_loaded(tmp_path):
    make_llama(tmp_path / "m")
    told = CliRunner().invoke(app, ["bench", str(tmp_path / "m"), "--lm-eval", "no_such_task", "--intensity", "1"])
    assert told.exit_code != 0
    assert isinstance(told.exception, GreenError)
    assert "lm-eval has no task 'no_such_task'" in str(told.exception)


def test_data_that_cannot_be_had_are_told_before_anything_is_loaded(tmp_path):
    from greenllm.bench.tasks import lmeval

    file = task(
        tmp_path, "gone", [{"q": "a"}], output_type="loglikelihood_rolling", doc_to_target="{{q}}", doc_to_text=""
    )
    (tmp_path / "gone.jsonl").unlink()
    with pytest.raises(GreenError, match="lm-eval: "):
        lmeval.read([str(file)])
