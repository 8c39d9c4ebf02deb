"""A student with a part of its teacher's tokens: the teacher reads its own, and speaks in the student's."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import make_llama, make_tokenizer
from transformers import AutoTokenizer

from greenllm import pipeline
from greenllm.distill.divergence import KINDS, log_probabilities
from greenllm.distill.subset import encode, first_pieces, over_students, places_of
from greenllm.distill.teachers import Teacher, Teachers
from greenllm.distill.vocabulary import numbers
from greenllm.prune.tokens import FastTokenizer
from greenllm.recipe import Recipe, make_step

MERGES = [("t", "h"), ("th", "e"), ("a", "n"), ("an", "d"), ("Ġ", "the"), ("o", "u"), ("ou", "t")]


@pytest.fixture
def both(tmp_path):
    """A teacher's tokenizer, a student's that lacks "out", "Ġthe" and "and", and the numbers."""
    make_tokenizer(tmp_path / "t", 300)
    file = tmp_path / "t" / "tokenizer.json"
    data = json.loads(file.read_text())
    for a, b in MERGES:
        data["model"]["vocab"][a + b] = len(data["model"]["vocab"])
        data["model"]["merges"].append([a, b])
    file.write_text(json.dumps(data))
    large = AutoTokenizer.from_pretrained(tmp_path / "t")
    cut = FastTokenizer(tmp_path / "t")
    gone = {cut.ids[t] for t in ("out", "Ġthe", "and")}
    stay = [i for i in sorted(cut.ids.values()) if i not in gone]
    (tmp_path / "s").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "s" / name).write_bytes((tmp_path / "t" / name).read_bytes())
    cut.write(tmp_path / "s", {old: new for new, old in enumerate(stay)})
    small = AutoTokenizer.from_pretrained(tmp_path / "s")
    return SimpleNamespace(large=large, small=small, numbers=numbers(small, large))


def test_places_by_hand():
    # th|e_|c|at against the|_c|at
    assert places_of(["th", "e", "Ġc", "at"], ["the", "Ġc", "at"]) == [-1, 0, 1, 2]
    assert places_of(["a", "b"], ["Ġa", "b"]) == [0, 1]  # a tokenizer that begins each text with a space
    assert places_of(["ab", "cd"], ["abc", "d"]) == [-1, 1]


def test_a_token_that_is_gone_begins_with_its_first_piece(both):
    firsts = first_pieces(both.small, both.large, both.numbers)
    large, small = both.large.get_vocab(), both.small.get_vocab()
    said = {t: firsts[large[t]].item() for t in large}
    assert (said["out"], said["and"], said["Ġthe"]) == (small["ou"], small["an"], small["Ġ"])
    assert all(said[t] == small[t] for t in small)


def test_the_teacher_reads_its_own_tokens_of_the_same_text(both):
    texts = ["and out the other hand", "the land about it", "日本 and the naïve"]
    rows = [both.small(t, add_special_tokens=False)["input_ids"] for t in texts]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(r), dtype=torch.int64) for r in rows], batch_first=True)
    found = encode(ids, mask, both.small, both.large, both.numbers)
    for i, text in enumerate(texts):
        theirs = found["their_ids"][i][found["their_mask"][i] == 1].tolist()
        assert theirs == both.large(text, add_special_tokens=False)["input_ids"]
        for at, place in enumerate(found["places"][i, : len(rows[i])].tolist()):
            if place >= 0:  # the same text was read
                assert both.large.decode(theirs[: place + 1]) == both.small.decode(rows[i][: at + 1])
        assert (found["places"][i] < 0).any()
        assert found["places"][i, len(rows[i]) - 1] == len(theirs) - 1


def test_a_window_cut_within_a_character_is_read_as_it_is(both):
    ids = torch.tensor(both.small("本 and", add_special_tokens=False)["input_ids"])[None, 1:]
    found = encode(ids, torch.ones_like(ids), both.small, both.large, both.numbers)
    assert found["their_ids"].tolist() == both.numbers[ids].tolist()
    assert found["places"][0].tolist() == list(range(ids.shape[1]))


def test_the_mass_of_what_begins_with_a_token_by_brute_force(both):
    torch.manual_seed(0)
    firsts = first_pieces(both.small, both.large, both.numbers)
    ids = torch.tensor([both.small("and out the", add_special_tokens=False)["input_ids"]])
    made = encode(ids, torch.ones_like(ids), both.small, both.large, both.numbers)
    logits = torch.randn(1, made["their_ids"].shape[1], len(firsts) + 5)  # as with rows of no token
    got = over_students(logits, both.numbers, firsts, made["places"], ids)
    assert got.shape == (1, ids.shape[1], len(both.numbers))
    p = torch.softmax(logits, -1)
    for i, place in enumerate(made["places"][0].tolist()):
        if place < 0:
            assert got[0, i].argmax() == ids[0, i + 1]
            assert 0.99 < got[0, i].exp().max() < 1
            continue
        for token in range(len(both.numbers)):
            want = sum(p[0, place, t] for t in range(len(firsts)) if firsts[t] == token)
            torch.testing.assert_close(got[0, i, token].exp(), want)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_divergence_of_it_is_finite(both, kind):
    torch.manual_seed(0)
    firsts = first_pieces(both.small, both.large, both.numbers)
    ids = torch.tensor([both.small("and out the", add_special_tokens=False)["input_ids"]])
    made = encode(ids, torch.ones_like(ids), both.small, both.large, both.numbers)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **{f"{k}.0": v for k, v in made.items()}}
    said = torch.randn(1, made["their_ids"].shape[1], len(firsts))
    teacher = Teacher("t", None, numbers=both.numbers, reads=0, firsts=firsts, model=lambda **_: (said,))
    answer = Teachers([teacher]).answer(batch, 1.0)
    mine = torch.randn(1, ids.shape[1], len(both.numbers), requires_grad=True)
    loss = KINDS[kind](answer.log_p, log_probabilities(mine)).mean()
    loss.backward()
    assert loss < 20
    assert mine.grad.abs().max() < 20


def test_a_student_with_fewer_tokens_learns(both, tmp_path):
    """Its teacher says the words in its own tokens; with a cache of its predictions the same."""
    make_llama(tmp_path / "m", vocab=310)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "m" / name).write_bytes((tmp_path / "t" / name).read_bytes())
    (tmp_path / "few.txt").write_text("hours bent a tan band with math. " * 50)
    (tmp_path / "a.txt").write_text("".join(f"the land and the hand of {i} others, out there. " for i in range(90)))
    fields = {"method": "vocabulary", "corpus": str(tmp_path / "few.txt"), "multiple": 1}
    cut = Recipe(name="r", steps=[make_step("prune", fields, "prune")])
    small = pipeline.run_steps(tmp_path / "m", tmp_path / "small", cut).path
    assert set(both.large.get_vocab()) - set(AutoTokenizer.from_pretrained(small).get_vocab()) >= {"out", "Ġthe"}
    learn = {
        "teacher": str(tmp_path / "m"), "data": str(tmp_path / "a.txt"), "length": 16, "rows": 4, "accumulate": 1,
        "steps": 20, "rate": 1e-2, "compute": "float32",
    }  # fmt: skip
    found = []
    for i, more in enumerate(({}, {"cache": str(tmp_path / "c"), "top": 400})):
        taught = Recipe(name="r", steps=[make_step("distill", learn | more, "distill")])
        found.append(pipeline.run_steps(small, tmp_path / f"o{i}", taught).manifest.steps[-1].result)
    assert found[0]["loss_after"] < 0.9 * found[0]["loss_before"]
    assert found[0]["loss_after"] == pytest.approx(found[1]["loss_after"], rel=1e-3)
