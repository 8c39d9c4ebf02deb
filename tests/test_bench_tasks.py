"""Tasks: what is read, how it is asked, and what two models' answers say of each other."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import make_llama

import greenllm
from greenllm.bench import Effort, answers, report
from greenllm.bench.process import Model
from greenllm.bench.tasks import answer, read, read_all, suite
from greenllm.bench.tasks.choice import chosen, requests
from greenllm.bench.tasks.items import Item, Question
from greenllm.bench.tasks.paired import against, share
from greenllm.bench.texts import Tokens
from greenllm.errors import GreenError

PLAIN = {"context": "The sky is", "choices": ["blue", "a fish"], "label": 0}


def write(path, *rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


@pytest.mark.parametrize(
    ("row", "want"),
    [
        (PLAIN, Item("The sky is", ("blue", "a fish"), 0)),
        (PLAIN | {"label": "a fish"}, Item("The sky is", ("blue", "a fish"), 1)),
        (PLAIN | {"label": "B"}, Item("The sky is", ("blue", "a fish"), 1)),
        (
            {"ctx": "Bake: [header] How to [title] bake", "endings": ["x [step] y", "z"], "label": "1"},
            Item("Bake:  How to.  bake".replace("  ", " "), ("x y", "z"), 1),
        ),
        (
            {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
            Item("Question: Why?\nAnswer:", ("a", "b"), 1),
        ),
        ({"question": "Why?", "choices": ["a", "b"], "label": 1}, Item("Question: Why?\nAnswer:", ("a", "b"), 1)),
        (
            {"question": "is it", "passage": "It is.", "answer": True},
            Item("It is.\nQuestion: is it?\nAnswer:", ("no", "yes"), 1),
        ),
    ],
)
def test_rows_in_the_spellings_of_public_sets(tmp_path, row, want):
    assert read(write(tmp_path / "t.jsonl", row)).items == [want]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: these are no keys"),
        ({"context": "a"}, "line 2: these are no keys"),
        (PLAIN | {"label": 2}, "line 2: its label 2 names none of its 2 choices"),
        (PLAIN | {"label": True}, "line 2: its label True"),
        (PLAIN | {"choices": ["one"]}, "line 2: its choices are no list of two"),
        (PLAIN | {"choices": ["one", 2]}, "line 2: 2 is no text"),
        (PLAIN | {"context": " "}, "line 2: an empty context"),
        ({"question": "q", "choices": {"label": ["A"]}, "answerKey": "A"}, "line 2: it has no 'text'"),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}, "line 2"),
        ({"question": "q", "passage": "p", "answer": "yes"}, "line 2: its answer is neither"),
    ],
)
def test_a_bad_row_is_told_with_its_line(tmp_path, row, says):
    with pytest.raises(GreenError, match=says):
        read(write(tmp_path / "t.jsonl", PLAIN, row))


def test_bad_files(tmp_path):
    for name, content, says in [
        ("a.txt", "x", "no .jsonl or .csv"),
        ("a.csv", "x", "no items"),
        ("b.jsonl", "\n \n", "no items"),
        ("c.jsonl", b"\xff", "UTF-8"),
    ]:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(GreenError, match=says):
            read(file)
    with pytest.raises(GreenError, match="no .jsonl"):
        read(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "says", "fix"),
    [
        ("a.csv", "sent_more,sent_less\na,b\n", "line 2: these are no keys", "it lacks bias_type"),
        ("a.csv", "id,prompt,type\n1,a,b\n", "line 2: these are no keys", "it lacks label"),
        ("a.csv", "prompt,label,label\na,safe,unsafe\n", "two columns are called 'label'", "Name each"),
        ("a.csv", 'prompt,label\na,safe\n"b,safe\n', "line 3: not CSV", "Quote"),
        ("a.csv", f"prompt,label\na,safe\n{'b' * 200_000},safe\n", "line 3: not CSV", "Quote"),
        ("a.jsonl", json.dumps(PLAIN | {"group": {"a": 1}}), "line 1: its group {'a': 1} is no name", "a text"),
        ("a.jsonl", '{"question": "q", "passage": "p", "answer": "y"}', "neither true", "question, passage, answer"),
        ("a.jsonl", '{"nothing": 1}', "line 1: these are no keys", "Known are"),
    ],
)
def test_what_is_wrong_is_told_where_and_how(tmp_path, name, content, says, fix):
    (tmp_path / name).write_text(content)
    with pytest.raises(GreenError, match=says) as told:
        read(tmp_path / name)
    assert fix in told.value.fix


def test_a_limit_takes_items_from_all_over_the_file(tmp_path):
    file = write(tmp_path / "t.jsonl", *(PLAIN | {"context": f"{i}"} for i in range(10)))
    found = read(file, 3)
    assert [i.context for i in found.items] == ["0", "3", "6"]
    assert (found.total, found.chance) == (10, 0.5)
    assert len(read(file, 99).items) == 10


def test_the_longer_choice_is_not_punished_for_its_length():
    assert chosen([-10.0, -12.0], ["ab", "abcdef"]) == (0, 1)


def test_flips_and_their_probability():
    found = against([1] * 10 + [0] * 10, [1] * 9 + [0] + [1] * 6 + [0] * 4)
    assert (found.won, found.lost) == (6, 1)
    assert found.p == pytest.approx(2 * (1 + 7) / 2**7)  # two tails of 0 or 1 in 7 tosses
    assert found.difference.value == pytest.approx(25)
    same = against([1, 0, 1], [1, 0, 1])
    assert (same.p, same.verdict, same.difference.value) == (1.0, "same", 0)
    half = 100 * 1.96 * math.sqrt(2 / 5 / 5)  # three items that agree say little of others
    assert same.difference.ci95 == pytest.approx((-half, half))


def test_the_interval_of_flips_by_hand():
    """Bonett and Price (2012): one is added to the items won, one to those lost."""
    found = against([1] * 20 + [0] * 30, [1] * 16 + [0] * 4 + [1] * 14 + [0] * 16)
    won, lost = 15 / 52, 5 / 52
    half = 1.96 * math.sqrt((won + lost - (won - lost) ** 2) / 52)
    assert found.difference.value == pytest.approx(20)
    assert found.difference.ci95 == pytest.approx((100 * (won - lost - half), 100 * (won - lost + half)))
    assert found.verdict == "better"
    assert against([0] * 30, [1] * 3 + [0] * 27).verdict == "undecided"  # as McNemar's p, 0.25, has it


def test_flips_without_a_difference_are_seldom_taken_for_one():
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(400):
        change = rng.choice([-1, 0, 1], 60, p=[0.05, 0.9, 0.05])
        before = np.where(change > 0, 0, 1)
        wrong += against(before.tolist(), (before + change).tolist()).verdict in ("better", "worse")
    assert wrong <= 20  # 5 %


def test_wilson_by_hand():
    n, k, z = 20, 15, 1.959964
    middle = (k / n + z * z / 2 / n) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(k / n * (1 - k / n) / n + z * z / 4 / n / n)
    assert share([1] * k + [0] * (n - k)).ci95 == pytest.approx(
        (100 * (middle - half), 100 * (middle + half)), rel=1e-6
    )


def by_transformers(path, item):
    """Log-likelihoods as lm-eval's Hugging Face model has them: the whole text, cut at the context's tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    found = []
    for choice in item.choices:
        context = tokenizer.encode(item.context, add_special_tokens=False)
        whole = tokenizer.encode(f"{item.context} {choice}", add_special_tokens=False)
        with torch.no_grad():
            logp = model(torch.tensor([whole[:-1]])).logits[0].float().log_softmax(-1)
        rest = whole[len(context) :]
        found.append(float(logp[len(context) - 1 :].gather(1, torch.tensor(rest)[:, None]).sum()))
    return found


def test_likelihoods_are_those_of_transformers_item_by_item(smollm2, data):
    items = read(data / "hellaswag" / "val_first3000.jsonl", 2).items + read(data / "arc_easy" / "test.jsonl", 2).items
    tokens = Tokens(smollm2)
    with Model(2) as model:
        model.call("load", "torch", str(smollm2), 2)
        for item in items:
            found = [total for total, _ in model.call("likelihoods", requests(item, tokens))]
            assert found == pytest.approx(by_transformers(smollm2, item), rel=1e-4)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A tiny Llama, and the same exported without compression: they must answer alike."""
    base = tmp_path_factory.mktemp("tasks")
    make_llama(base / "m", vocab=300)
    greenllm.export(base / "m", base / "x")
    file = write(base / "t.jsonl", *(PLAIN | {"context": f"Number {i} is", "label": i % 2} for i in range(30)))
    least = Effort(windows=2, sittings=2, width=0.9, seconds=0.1, turn=0.01)
    return greenllm.bench(
        [base / "m", base / "x"], tasks=[file], effort=least, energy=False, prompt_tokens=8, answer_tokens=4,
        window=64, report=base / "report",
    ), base  # fmt: skip


def test_runners_agree_on_an_uncompressed_model(results):
    (before, after), base = results[0].rows, results[1]
    (name,) = before.tasks
    assert name == f"{base.name}/t"
    assert before.tasks[name].main.values == after.tasks[name].main.values
    assert after.tasks[name].main.against.verdict == "same"
    assert before.tasks[name].main.against is None
    assert before.tasks[name].main.measured.n == 30


def test_they_are_in_every_report(results):
    base = results[1]
    again = type(results[0]).from_json((base / "report" / "report.json").read_text())
    assert again.rows[1].tasks == results[0].rows[1].tasks
    for file in ("report.html", "report.md"):
        text = (base / "report" / file).read_text()
        assert "/t (chance 50 %)" in text
        assert "+0.0 points (+0 −0, p 1)" in text
        assert "McNemar" in text
    assert any("normalized" in str(c) for c in report.table(results[0]).columns[0].cells)


def test_encoders_are_not_asked(tmp_path):
    from conftest import make_bert

    with pytest.raises(GreenError, match="cannot be asked"):
        greenllm.bench([make_bert(tmp_path / "b")], tasks=[write(tmp_path / "t.jsonl", PLAIN)], energy=False)


def test_free_answers_and_labels_are_read(tmp_path):
    rows = [{"question": "Who?", "answers": ["Ann", "Bo"]}, {"context": "c", "answer": "d"}]
    free = read(write(tmp_path / "a.jsonl", *rows))
    assert free.items == [Question("Question: Who?\nAnswer:", ("Ann", "Bo")), Question("c", ("d",))]
    assert free.chance is None
    labelled = read(write(tmp_path / "b.jsonl", {"text": "x", "label": "good"}, {"text": "y", "label": "bad"}))
    assert labelled.items == [Item("Text: x\nLabel:", ("bad", "good"), 1), Item("Text: y\nLabel:", ("bad", "good"), 0)]
    assert labelled.chance == 0.5


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"question": "q", "answers": []}], "line 1: its answers are no list"),
        ([{"question": "q", "answer": 3}], "line 1: 3 is no text"),
        ([{"question": "q", "answer": " "}], "line 1: an empty"),
        ([{"text": "t", "label": 1}], "line 1: its label 1 is no text"),
        ([{"text": "t", "label": "a"}] * 2, "every text has the label 'a'"),
        ([PLAIN, {"question": "q", "answer": "a"}], "mixes kinds"),
    ],
)
def test_bad_free_answers_and_labels(tmp_path, rows, says):
    with pytest.raises(GreenError, match=says):
        read(write(tmp_path / "t.jsonl", *rows))


def test_an_answer_is_normal_as_squads_evaluation_makes_it():
    assert answer.normal(" The  Cat,  a dog & an owl!") == "cat dog owl"
    assert answer.normal("Theatre") == "theatre"


def test_an_answer_ends_where_it_is_told():
    assert answers.cut("one. two\nthree", ["\n", "."]) == "one"
    assert answers.cut("one", ["\n"]) == "one"


@pytest.fixture(scope="module")
def exported_smollm2(smollm2, tmp_path_factory):
    """SmolLM2 in ONNX Runtime GenAI, uncompressed."""
    return greenllm.export(smollm2, tmp_path_factory.mktemp("smollm2") / "x").path


@pytest.mark.parametrize("runner", ["torch", "genai"])
def test_free_answers_are_those_of_transformers(smollm2, exported_smollm2, runner):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    text = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"  # it says Yes and a little more, and ends
    ids = tokenizer(text, return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    said = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :]
    want = tokenizer.decode(said, skip_special_tokens=True)
    assert len(said) < 40  # it ended by itself
    with Model(2) as one:
        one.call("load", runner, str(smollm2 if runner == "torch" else exported_smollm2), 2)
        assert one.call("answer", ids[0].tolist(), 40, []) == want
        assert one.call("answer", ids[0].tolist(), 40, [want[5:8]]) == want[:5]


def test_the_suite_is_balanced_and_the_same_everywhere():
    tasks = {t.name: t for t in suite.tasks()}
    assert list(tasks) == [f"suite/{n}" for n in ("grammar", "arithmetic", "copying", "retrieval", "languages")]
    for name, task in tasks.items():
        assert 90 <= len(task.items) <= 100
        assert task.total == len(task.items)
        assert len({(i.context, i.choices) for i in task.items}) == len(task.items), name
        assert all(len(set(i.choices)) == len(i.choices) for i in task.items)
        assert task.chance == (0.5 if name in {"suite/grammar", "suite/languages"} else 0.25)
        labels = [i.label for i in task.items]
        assert len(task.items) * 0.75 > max(map(labels.count, set(labels))), "one answer would do for most"
    assert [t.items for t in suite.tasks()] == [t.items for t in tasks.values()]


def test_the_suites_answers_are_right():
    for item in next(t for t in suite.tasks() if t.name == "suite/arithmetic").items:
        asked = item.context.splitlines()[-1].removesuffix(" =").split()
        a, b = int(asked[0]), int(asked[2])
        assert item.choices[item.label] == str(a + b if asked[1] == "+" else a - b)
    for item in next(t for t in suite.tasks() if t.name == "suite/retrieval").items:
        *told, asked = item.context.split("\n")
        assert f"{asked.partition(': ')[2]} {item.choices[item.label]}" in told


def test_tasks_of_the_suite_go_by_name():
    assert [len(t.items) for t in read_all(["suite"], 7)] == [7] * 5
    assert [t.name for t in read_all(["suite/copying"])] == ["suite/copying"]
    with pytest.raises(GreenError, match="no task suite/chess"):
        read_all(["suite/chess"])


def test_a_real_model_knows_more_than_chance(smollm2):
    from greenllm.bench.tasks.choice import chosen, requests

    tokens = Tokens(smollm2)
    with Model(2) as model:
        model.call("load", "torch", str(smollm2), 2)
        for task in read_all(["suite/grammar", "suite/copying"], 12):
            right = 0
            for item in task.items:
                found = [x for x, _ in model.call("likelihoods", requests(item, tokens))]
                right += chosen(found, item.choices)[0] == item.label
            assert right / 12 > task.chance + 0.2, task.name
