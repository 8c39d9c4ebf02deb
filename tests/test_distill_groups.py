"""Subgroups in distillation: rows weighted so that each counts alike, and what that does to the one that is few."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_bert
from hypothesis import given
from hypothesis import strategies as st
from test_distill_step import distill, result

from greenllm.distill import labelled
from greenllm.errors import GreenError


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60))
def test_each_group_counts_alike(groups):
    names = sorted(set("abcd"))
    found = labelled.group_columns(labelled.Table("t", groups, None, groups, groups), names)
    total = torch.zeros(len(names)).index_add_(0, found["group"], found["weight"])
    present = total[total > 0]
    assert [names[i] for i in found["group"]] == groups
    torch.testing.assert_close(present, torch.full_like(present, len(groups) / len(set(groups))))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A classifier to be, and rows of two groups: the few have words of their own."""
    path = tmp_path_factory.mktemp("groups")
    make_bert(path / "small", vocab=300, seed=4)
    rows = []
    for i in range(240):
        few, yes = i % 12 == 0, (i // 12 if i % 12 == 0 else i) % 2 == 0
        words = ("nnnn", "ssss") if few else ("good", "evil")
        rows.append({"text": words[not yes], "verdict": "yes" if yes else "no", "who": "few" if few else "many"})
    for name, keys in (("groups", 3), ("rows", 2)):
        lines = [json.dumps(dict(list(r.items())[:keys])) for r in rows]
        (path / f"{name}.jsonl").write_text("\n".join(lines))
    return path


def learn(home, out, **fields):
    given = {"steps": 18, "rows": 12, "rate": 3e-4, "keep": "last", "labels": "verdict", **fields}
    return distill(home, "small", out, held_out=given["data"], task=1.0, logits=0.0, **given)


def shares(path):
    """Right answers of the few and of the many."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = (k.from_pretrained(path) for k in (AutoModelForSequenceClassification, AutoTokenizer))
    yes = model.config.label2id["yes"]
    asked = [("nnnn", True), ("ssss", False), ("good", True), ("evil", False)]
    right = [(int(model(**tokenizer(t, return_tensors="pt")).logits.argmax()) == yes) == wanted for t, wanted in asked]
    return sum(right[:2]) / 2, sum(right[2:]) / 2


def test_weights_narrow_the_gap(home, tmp_path):
    plain = learn(home, tmp_path / "plain", data="rows.jsonl")
    even = learn(home, tmp_path / "even", data="groups.jsonl", groups="who")
    assert shares(plain.path) == (0.5, 1.0)  # the few get one answer, whatever they say
    assert shares(even.path) == (1.0, 1.0)
    told = result(even)
    assert (told["worst_group_after"], told["gap_after"], told["even_accuracy_after"]) == (1.0, 0.0, 1.0)
    assert "worst_group_after" not in result(plain)


def test_a_group_is_a_column(home, tmp_path):
    with pytest.raises(GreenError, match="no column 'age'"):
        learn(home, tmp_path / "out", data="groups.jsonl", groups="age")
    with pytest.raises(GreenError, match="--labels"):
        distill(home, "small", tmp_path / "out", data="groups.jsonl", groups="who")
