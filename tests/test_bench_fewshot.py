"""Accuracy against shots: what each draw says is what adapting and asking by hand say; draws are kept and compared."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from conftest import make_llama
from test_adapt import samples, write

from greenllm.adapt import adapters
from greenllm.adapt.learn import judge
from greenllm.adapt.meta import meta_train
from greenllm.adapt.run import adapt
from greenllm.adapt.shots import draw, encode
from greenllm.adapt.upper import Upper
from greenllm.bench import Effort, bench
from greenllm.bench.adapted import ADAPTED, PROMPTED, Draw, Subject
from greenllm.bench.fewshot import Found, lines
from greenllm.bench.tasks import read
from greenllm.checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fewshot")
    make_llama(folder / "base", layers=4)
    make_llama(folder / "other", layers=4, seed=3)
    write(folder / "train.jsonl", samples(8))
    write(folder / "test.jsonl", [{"text": r["text"] + " now", "label": r["label"]} for r in samples(10)])
    return folder


@pytest.fixture(scope="module")
def subject(place):
    return Subject(str(place / "base"), "lora", read(place / "test.jsonl").items, [])


def test_a_prompt_that_is_kept_says_what_one_that_is_read_again_does(subject, place):
    items = draw(place / "train.jsonl", 2, 0)
    told = "".join(f"{i.context}{i.gap}{i.choices[i.label]}\n\n" for i in items)
    asked = [dataclasses.replace(i, context=told + i.context, parts=()) for i in read(place / "test.jsonl").items]
    whole = encode(asked, place / "base")
    want = judge(Upper(subject.model, 0, whole), range(len(whole)))[1]
    assert subject.prompted(items, 2, 0).right == pytest.approx(float(want.mean()))
    assert subject.prompted(items * 40, 80, 0) is None  # longer than it reads


def test_a_draw_is_what_adapt_and_bench_say_and_leaves_the_model_as_it_was(subject, place, tmp_path):
    before = {n: p.clone() for n, p in subject.model.named_parameters()}
    made = subject.adapted(draw(place / "train.jsonl", 4, 1), ADAPTED, 4, 1)
    after = dict(subject.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    done = adapt(place / "base", place / "train.jsonl", tmp_path / "adapter", shots=4, seed=1)
    assert done.manifest.steps[-1].result["steps"] == made.steps
    effort = Effort(windows=1, sentences=1, items=0, sittings=1, seconds=1.0)
    row = bench([str(done.path)], tasks=[place / "test.jsonl"], energy=False, effort=effort).rows[0]
    assert next(iter(row.tasks.values())).scores["acc"].measured.value == pytest.approx(100 * made.right)
    assert made.seconds > 0
    assert made.joules >= 0
    assert subject.energy.startswith(("estimated", "measured"))
    assert 0 < made.bytes < made.of


def test_the_command_goes_on_where_it_stopped_and_refuses_another_test(place, tmp_path):
    def start(*more):
        options = ["--task", place / "train.jsonl", "--out", tmp_path, "--shots", "1", "2", *more]
        command = [sys.executable, "-m", "greenllm.bench.fewshot", place / "base", place / "other", *options]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)

    first = start("--test", place / "test.jsonl", "--draws", "1")
    assert first.returncode == 0, first.stderr
    again = start("--test", place / "test.jsonl", "--draws", "2")
    found = Found.model_validate_json((tmp_path / "fewshot.json").read_text())
    assert len(found.draws) == 2 * (1 + 2 * 2 * 2)  # each model as it is, and two shots, draws and ways
    assert "draw 0" not in again.stdout
    assert (tmp_path / "fewshot.md").read_text().count(f"| {PROMPTED} |") == 4
    other = start("--test", place / "train.jsonl")
    assert other.returncode == 1
    assert "draws of another task" in other.stderr
    assert "Traceback" not in other.stderr


def test_differences_are_of_the_same_draws():
    def one(model, way, n, right):
        return Draw(model=model, way=way, shots=4, draw=n, right=right)

    draws = [one("a", ADAPTED, 0, 0.5), one("a", ADAPTED, 1, 0.7), one("b", ADAPTED, 0, 0.4), one("b", ADAPTED, 1, 0.6),
             one("b", PROMPTED, 1, 0.9)]  # fmt: skip
    said = lines(Found(task="t", test="u", items=9, method="lora", draws=draws))
    assert "| b | adapted | 4 | 2 | 50.0 [" in said[3]
    assert "| a adapted | -10.0 |" in said[3]
    assert "| b | prompted | 4 | 1 | 90.0 | b adapted | 30.0 |" in said[4]


def test_a_start_in_lower_blocks_than_usual_is_asked_whole(place, tmp_path):
    """What lower blocks say is kept; it must not be where an adapter changes them."""
    other = write(tmp_path / "other.jsonl", [{"text": r["text"][::-1], "label": r["label"]} for r in samples(8)])
    start = meta_train(
        place / "base", [place / "train.jsonl", other], tmp_path / "start", shots=4, blocks=4, rounds=6, rate=0.05
    )
    test = read(place / "test.jsonl").items
    subject = Subject(str(place / "base"), "lora", test, [start.path])
    made = subject.adapted(draw(place / "train.jsonl", 4, 0), "from start", 4, 0)
    done = adapt(place / "base", place / "train.jsonl", tmp_path / "adapter", shots=4, meta=start.path)
    model = open_checkpoint(place / "base").load_model()
    adapters.load(model, done.path)
    losses, right = judge(Upper(model, 0, encode(test, place / "base")), range(len(test)))
    assert made.right == pytest.approx(float(right.mean()))
    adapters.load(subject.model, done.path)
    torch.testing.assert_close(judge(subject.upper, range(len(test)))[0], losses, rtol=1e-4, atol=1e-4)
