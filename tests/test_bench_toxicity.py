"""Toxicity of continuations: what a model writes after prompts, judged by a list of words."""

from __future__ import annotations

import pytest
from conftest import make_llama
from test_bench_fairness import QUICK, TEMPLATE, write_csv, write_lines, xstest

import greenllm
from greenllm.bench import answers
from greenllm.bench.runners import loader
from greenllm.bench.tasks import read, toxicity
from greenllm.bench.tasks.items import Opening
from greenllm.bench.tasks.public import files
from greenllm.bench.texts import Tokens
from greenllm.clean.grams import words
from greenllm.errors import GreenError


def rtp(n):
    """A row as RealToxicityPrompts has it."""
    return {"filename": f"{n}.txt", "challenging": False, "prompt": {"text": f"Number {n} said that", "toxicity": 0.1},
            "continuation": {"text": " it was late", "toxicity": 0.1}}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("toxic")
    for name, seed in (("m", 0), ("x", 1)):
        make_llama(path / name, vocab=300, seed=seed, initializer_range=0.5)
        (path / name / "chat_template.jinja").write_text(TEMPLATE)
    write_lines(path / "sets" / "r.jsonl", [rtp(n) for n in range(6)])
    write_csv(path / "sets" / "x.csv", [xstest(n, ("safe", "unsafe")[n % 2]) for n in range(4)])
    return path


def test_a_row_as_it_is_published(base):
    assert read(base / "sets" / "r.jsonl").items[1] == Opening("Number 1 said that")
    for row, says in [
        (rtp(0) | {"prompt": "a"}, "read for its keys prompt"),
        (rtp(0) | {"prompt": {"text": ""}}, "''"),
    ]:
        with pytest.raises(GreenError, match=says):
            read(write_lines(base / "bad" / "r.jsonl", [row]))


def test_what_holds_a_listed_word_is_counted(base):
    runner, tokens = loader("torch").load(str(base / "m"), 1), Tokens(base / "m")
    said = [answers.write(runner, tokens, tokens.text(f"Number {n} said that"), 20, []) for n in range(6)]
    word = next(w for s in said for w in words(s))
    listed = base / "words.txt"
    listed.write_text(f"# a comment\n{word.upper()}\n")
    found = greenllm.bench(
        [base / "m", base / "x"], suites=["safety"], data=base / "sets", words=listed, require=["toxicity<=+1pt"],
        report=base / "report", **QUICK,
    )  # fmt: skip
    before, after = (row.tasks["sets/r"].scores["toxic"] for row in found.rows)
    assert before.values == [int(word in words(s)) for s in said]
    assert after.against.better == "lower"
    assert set(found.rows[0].tasks["sets/x"].scores) == {"refusal_unsafe", "refusal_safe", "toxic"}
    assert {r.found.split(": ")[0].partition(",")[0] for r in found.requirements} == {"sets/r", "sets/x"}
    assert "sets/r, writes listed words" in (base / "report" / "report.html").read_text()
    assert "Toxicity: how many answers" in found.methods["Tasks"]


def test_a_list_and_what_it_judges_come_together(base, tmp_path):
    tasks = files(["safety"], base / "sets", 0)
    assert [t.name for t in tasks] == ["sets/x", "sets/r"]
    with pytest.raises(GreenError, match=r"sets/r: continuations are judged by a list"):
        toxicity.listed(tasks, None)
    assert toxicity.listed(tasks[:1], None) == tasks[:1]
    (tmp_path / "w.txt").write_text("rude\n")
    with pytest.raises(GreenError, match="--words judges what is written"):
        toxicity.listed([], tmp_path / "w.txt")
    (tmp_path / "empty.txt").write_text("# rude\n")
    with pytest.raises(GreenError, match="has no word in it"):
        toxicity.listed(tasks, tmp_path / "empty.txt")
