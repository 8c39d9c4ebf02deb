"""Noise in what is learned from: copies beside the rows, and a student that stays right where texts are disturbed."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import make_bert, make_llama
from hypothesis import given
from hypothesis import strategies as st
from test_distill_step import Told, distill, result
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from greenllm.bench.tasks.robust.texts import TEXTS, disturbed
from greenllm.distill import augment
from greenllm.distill.labelled import Table
from greenllm.errors import GreenError

KINDS = st.dictionaries(st.sampled_from(list(TEXTS)), st.floats(1, 100), min_size=1)


@given(st.lists(st.text(), min_size=1), KINDS)
def test_rows_stay_and_their_copies_follow(texts, noise):
    labels = [str(i) for i in range(len(texts))]
    found = augment.rows(Table("t", texts, list(texts), labels, labels), noise)
    n = len(texts)
    assert (found.texts[:n], found.labels, found.groups) == (texts, labels * 2, labels * 2)
    kinds = list(noise.items())
    assert found.texts[n:] == [disturbed(t, *kinds[i % len(kinds)]) for i, t in enumerate(texts)] == found.pairs[n:]


@pytest.mark.parametrize("text", ["typo", "typos=0", "typos=101", "typos=x", "typos,typos=5", "noise", "typos=nan"])
def test_what_is_no_noise(text):
    with pytest.raises(GreenError, match="--augment takes typos"):
        augment.strengths(text)


def test_strengths():
    assert augment.strengths("typos=5, casing") == {"typos": 5, "casing": 10}
    assert augment.strengths("") == {}


def test_windows_keep_their_length(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(make_llama(tmp_path / "m", vocab=300))
    ids = torch.tensor(tokenizer("the quick brown fox jumps over " * 40)["input_ids"])[:160].view(5, 32)
    found = augment.windows(ids, tokenizer, {"typos": 20.0})
    assert torch.equal(found[:5], ids)
    assert 5 < len(found) <= 10
    assert not any(torch.equal(copy, row) for copy in found[5:] for row in ids)


def test_text_is_learned_from_twice(tmp_path):
    for name, seed in (("teacher", 0), ("student", 1)):
        make_llama(tmp_path / name, vocab=300, seed=seed)
    (tmp_path / "fox.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    told = Told()
    made = distill(tmp_path, "student", tmp_path / "out", told, teacher="teacher", data="fox.txt", augment="typos=20")
    (note,) = [n for n in told.notes if "disturbed copy" in n]
    copies, windows = int(note.split()[0]), int(note.split()[2])
    assert 0 < copies <= windows
    assert result(made)["rows"] == windows + copies


def test_it_helps_where_letters_change(tmp_path):
    make_bert(tmp_path / "small", vocab=300, seed=4)
    rows = [{"text": ("good", "evil")[i % 2], "verdict": ("yes", "no")[i % 2]} for i in range(80)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"data": "rows.jsonl", "labels": "verdict", "task": 1.0, "logits": 0.0, "steps": 30, "rows": 12}
    plain, noisy = (
        distill(tmp_path, "small", tmp_path / f"out{noise}", augment=noise, **options) for noise in ("", "casing=100")
    )
    assert (result(plain)["rows"], result(noisy)["rows"]) == (72, 144)
    assert [_right(each.path, "good", "evil") for each in (plain, noisy)] == [2, 2]
    assert [_right(each.path, "GOOD", "EVIL") for each in (plain, noisy)] == [1, 2]


def _right(path, yes, no):
    model, tokenizer = (k.from_pretrained(path) for k in (AutoModelForSequenceClassification, AutoTokenizer))
    said = model(**tokenizer([yes, no], return_tensors="pt", padding=True)).logits.argmax(-1).tolist()
    return sum(model.config.id2label[s] == wanted for s, wanted in zip(said, ("yes", "no"), strict=True))
