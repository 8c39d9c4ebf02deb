"""What is learned from: mixes of text, labelled tables, and what is held out."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import make_tokenizer

from greenllm.distill import data, labelled
from greenllm.distill.samples import Samples, _classes, kept
from greenllm.distill.vocabulary import tokenizer_of
from greenllm.errors import GreenError
from greenllm.progress import Silent


@pytest.fixture
def tokens(tmp_path):
    make_tokenizer(tmp_path / "tok", 300)
    return tokenizer_of(tmp_path / "tok")


def texts(tokens, mix, held_out="", count=0, length=8, seed=0):
    return data.text_samples(tokens, None, mix, held_out, count, length, seed, Silent())


def share(windows, tokens, letter):
    number = tokens.convert_tokens_to_ids(letter)
    return float((windows == number).all(1).float().mean())


def test_a_mix_is_names_with_weights():
    assert data.mix_of("a.txt=2, b.txt", "data") == {"a.txt": 2.0, "b.txt": 1.0}
    assert data.mix_of("org/name=0.5", "data") == {"org/name": 0.5}
    assert data.mix_of("odd=name.txt", "data") == {"odd=name.txt": 1.0}
    for wrong in ("", "a=0", "a=-1", "a,a", "a=1e999"):
        with pytest.raises(GreenError, match="data"):
            data.mix_of(wrong, "data")


def test_windows_are_mixed_by_weight_and_none_is_both_learned_and_judged(tmp_path, tokens):
    (tmp_path / "a.txt").write_text("a" * 8 * 64)
    (tmp_path / "b.txt").write_text("b" * 8 * 32)
    mix = {str(tmp_path / "a.txt"): 1.0, str(tmp_path / "b.txt"): 3.0}
    learn, judge = texts(tokens, mix, count=80)
    assert share(learn, tokens, "b") == pytest.approx(0.75, abs=0.02)
    assert {share(judge, tokens, x) > 0 for x in "ab"} == {True}
    (tmp_path / "c.txt").write_text("".join(chr(65 + i % 26) + chr(97 + i // 26 % 26) for i in range(400)))
    learn, judge = texts(tokens, {str(tmp_path / "c.txt"): 1.0})
    assert not {tuple(r) for r in learn.tolist()} & {tuple(r) for r in judge.tolist()}
    assert len(learn) + len(judge) == 100
    assert torch.equal(learn, texts(tokens, {str(tmp_path / "c.txt"): 1.0})[0])
    assert not torch.equal(learn, texts(tokens, {str(tmp_path / "c.txt"): 1.0}, seed=1)[0])


def test_other_text_can_be_held_out(tmp_path, tokens):
    (tmp_path / "a.txt").write_text("a" * 8 * 64)
    (tmp_path / "b.txt").write_text("b" * 8 * 32)
    learn, judge = texts(tokens, {str(tmp_path / "a.txt"): 1.0}, str(tmp_path / "b.txt"))
    assert len(learn) == 64
    assert share(judge, tokens, "b") == 1


def test_one_window_is_none_to_be_judged_on(tmp_path, tokens):
    (tmp_path / "a.txt").write_text("a" * 8)
    with pytest.raises(GreenError, match="none to be judged on"):
        texts(tokens, {str(tmp_path / "a.txt"): 1.0})


def test_samples_are_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        one = {"input_ids": torch.ones(3, 2, dtype=torch.int64), "attention_mask": torch.ones(3, 2, dtype=torch.int64)}
        return Samples(dict(one), dict(one), ["no", "yes"])

    kept(tmp_path / "w", make)
    (tmp_path / "w" / "classes.json").unlink()  # a kill before all of it was there
    kept(tmp_path / "w", make)
    found = kept(tmp_path / "w", make)
    assert len(made) == 2
    assert found.classes == ["no", "yes"]
    assert found.learn["row"].tolist() + found.judge["row"].tolist() == [0, 1, 2, 3, 4, 5]


def test_tables_of_every_kind(tmp_path, tokens):
    rows = [("one, two", "x", 1), ('"quoted', "y", 0)]
    (tmp_path / "a.tsv").write_text("".join(f"{a}\t{b}\t{n}\n" for a, b, n in rows))
    (tmp_path / "a.csv").write_text('text,other,label\n"one, two",x,1\n"""quoted",y,0\n')
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": a, "other": b, "label": n}) + "\n" for a, b, n in rows)
    )
    for name, column in (("a.tsv", "2"), ("a.csv", "label"), ("a.jsonl", "label")):
        table = labelled.read(str(tmp_path / name), column)
        assert table.texts == ["one, two", '"quoted'], name
        assert table.pairs == ["x", "y"]
        assert table.labels == ["1", "0"]
    encoded = labelled.encode(table, tokens, ["0", "1"], 64)
    assert encoded["labels"].tolist() == [1, 0]
    assert encoded["input_ids"].shape == encoded["attention_mask"].shape
    assert labelled.encode(table, tokens, ["0", "1"], 4)["input_ids"].shape[1] == 4


def test_classes_are_in_the_order_of_numbers():
    table = labelled.Table("t", ["x"] * 3, None, ["10", "9", "-1"])
    assert labelled.classes([table]) == ["-1", "9", "10"]
    with pytest.raises(GreenError, match="the label '10'; known: 9"):
        labelled.encode(table, None, ["9"], 8)


def test_classes_keep_the_order_of_who_knows_them():
    def owner(*names, task="text-classification"):
        config = SimpleNamespace(id2label=dict(enumerate(names)), num_labels=len(names))
        return SimpleNamespace(config=config, task=task, path="there")

    fresh = owner("LABEL_0", "LABEL_1", task="feature-extraction")
    assert _classes(["neg", "pos"], [owner("pos", "neg")], fresh) == ["pos", "neg"]
    assert _classes(["0", "1"], [owner("NEGATIVE", "POSITIVE")], fresh) == ["0", "1"]
    assert _classes(["no", "yes"], [owner("LABEL_0", "LABEL_1")], fresh) == ["no", "yes"]
    assert _classes(["a", "b", "c"], [], owner("LABEL_0", "LABEL_1")) == ["a", "b", "c"]
    for labels in (["bad", "good"], ["0", "1", "2"]):
        with pytest.raises(GreenError, match="there calls its classes POSITIVE, NEGATIVE"):
            _classes(labels, [owner("POSITIVE", "NEGATIVE")], fresh)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "y"}\n', "row 2: no text or no label"),
        ("a.jsonl", '{"label": 1}\n', "no rows with text"),
        ("a.jsonl", "not json\n", "cannot be read as jsonl"),
        ("a.csv", "text,kind\nx,1\n", "it has text, kind"),
        ("a.csv", "", "cannot be read as csv"),
        ("a.parquet", "", ".tsv, .csv or .jsonl"),
    ],
)
def test_strange_tables_are_told(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(GreenError, match=says):
        labelled.read(str(tmp_path / name), "label")


def test_rows_are_held_out_of_a_table():
    table = labelled.Table("t", [str(i) for i in range(20)], None, ["0", "1"] * 10)
    learn, judge = labelled.split(table, None, 0)
    assert len(judge.texts) == 2
    assert sorted(learn.texts + judge.texts, key=int) == table.texts
    assert labelled.split(table, judge, 0) == (table, judge)
