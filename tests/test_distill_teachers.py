"""Several teachers, and teachers whose tokenizer is another."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import make_tokenizer
from transformers import AutoTokenizer

from greenllm.distill.spans import align, encode, likelihoods, span_divergence
from greenllm.distill.teachers import Teacher, Teachers, mixture, own_loss
from greenllm.distill.vocabulary import numbers


def says(logits):
    """A stand-in for a model that always says the same."""
    return lambda **_: (logits,)


def batch_of(ids):
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_the_average_is_what_a_hand_computes():
    a, b = torch.tensor([[[0.9, 0.1], [0.5, 0.5]]]), torch.tensor([[[0.3, 0.7], [0.2, 0.8]]])
    teachers = Teachers([Teacher("a", None, 0.25, model=says(a.log())), Teacher("b", None, 0.75, model=says(b.log()))])
    answer = teachers.answer(batch_of(torch.tensor([[0, 1]])), 1.0)
    torch.testing.assert_close(answer.log_p.exp(), torch.tensor([[[0.45, 0.55], [0.275, 0.725]]]))
    torch.testing.assert_close(answer.part, torch.tensor([1.0]))


def test_a_temperature_is_applied_to_each_before_the_average():
    a, b = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]])
    found = mixture([a, b], torch.tensor([[0.5], [0.5]]), 2.0).exp()
    one, two = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))
    torch.testing.assert_close(found[0, 0, 0], torch.tensor((one + two) / 2))


def test_the_best_teacher_is_chosen_for_each_sample():
    torch.manual_seed(0)
    ids = torch.randint(5, (2, 4))
    right = torch.nn.functional.one_hot(ids.roll(-1, 1), 5).float() * 5
    a, b = right.clone(), right.clone()
    a[1], b[0] = 0, 0  # a knows the first row alone, b the second
    teachers = Teachers([Teacher("a", None, model=says(a)), Teacher("b", None, model=says(b))], "best")
    answer = teachers.answer(batch_of(ids), 1.0)
    torch.testing.assert_close(answer.log_p, torch.log_softmax(right, -1), rtol=1e-4, atol=1e-4)


def test_own_loss_is_the_next_tokens_or_the_labels():
    torch.manual_seed(0)
    ids, logits = torch.randint(5, (2, 4)), torch.randn(2, 4, 5)
    want = -torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0].mean(1)
    torch.testing.assert_close(own_loss(logits, batch_of(ids)), want)
    labels = torch.tensor([1, 3])
    torch.testing.assert_close(
        own_loss(logits[:, 0], batch_of(ids) | {"labels": labels}),
        -torch.log_softmax(logits[:, 0], -1)[torch.arange(2), labels],
    )


def tokenizer(path, vocab, merges=()):
    """The byte-level tokenizer of the tests, with merges."""
    import json

    make_tokenizer(path, vocab)
    file = path / "tokenizer.json"
    data = json.loads(file.read_text())
    for a, b in merges:
        data["model"]["vocab"][a + b] = len(data["model"]["vocab"])
        data["model"]["merges"].append([a, b])
    file.write_text(json.dumps(data))
    return AutoTokenizer.from_pretrained(path)


def test_a_smaller_vocabulary_is_found_in_the_larger(tmp_path):
    small, large = tokenizer(tmp_path / "s", 120), tokenizer(tmp_path / "l", 300, [("t", "h")])
    found = numbers(small, large)
    assert large.convert_ids_to_tokens(found.tolist()) == small.convert_ids_to_tokens(list(range(len(found))))
    assert numbers(large, small) is None


def test_a_teacher_reads_its_own_numbers_and_is_asked_about_the_students_tokens_alone():
    seen = {}

    def model(input_ids, attention_mask):
        seen["ids"] = input_ids
        return (torch.arange(6.0).expand(1, 2, 6),)

    teacher = Teacher("t", None, numbers=torch.tensor([4, 0, 5]), model=model)
    answer = Teachers([teacher]).answer(batch_of(torch.tensor([[2, 1]])), 1.0)
    assert seen["ids"].tolist() == [[5, 0]]
    torch.testing.assert_close(answer.log_p[0, 0], torch.log_softmax(torch.tensor([4.0, 0.0, 5.0]), -1))


def test_alignment_by_hand():
    # "the cat": the|_cat against th|e|_c|at, and a special token before
    a, b = [(0, 3), (3, 7)], [(0, 0), (0, 2), (2, 3), (3, 5), (5, 7)]
    assert align(a, b) == ([-1, 0], [-1, -1, -1, 0, 0])
    assert align(b, b)[0] == [-1, -1, 0, 1, 2]
    # a character of several tokens is never cut
    assert align([(0, 1), (1, 2), (1, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]) == ([-1, 0, 0, 1], [-1, 0, 1])
    assert align([], a) == ([], [-1, -1])


def test_pieces_hold_the_same_text(tmp_path):
    a = tokenizer(tmp_path / "a", 300, [("t", "h"), ("th", "e"), ("a", "n"), ("o", "u")])
    b = tokenizer(tmp_path / "b", 300, [("h", "e"), ("n", "d"), ("o", "u"), ("ou", "t")])
    texts = ["the hand and the other one, about naïve 日本 text", "out there, or within"]
    found = encode(texts, a, b, 64)
    for row in range(len(texts)):
        ours, theirs = ({}, {})
        for into, ids, pieces, tok in (
            (ours, found["input_ids"], found["pieces"], a), (theirs, found["their_ids"], found["their_pieces"], b),
        ):  # fmt: skip
            for token, piece in zip(ids[row].tolist(), pieces[row].tolist(), strict=True):
                if piece >= 0:
                    into.setdefault(piece, []).append(token)
            for piece, tokens in into.items():
                into[piece] = tok.decode(tokens)
        assert ours == theirs
        assert "".join(ours.values()) in texts[row]
        assert len(ours) > len(texts[row]) // 3


def test_likelihoods_of_pieces_are_sums_over_their_tokens():
    torch.manual_seed(0)
    logits, ids = torch.randn(1, 4, 7), torch.randint(7, (1, 4))
    log_p = torch.log_softmax(logits[0, :-1], -1)[torch.arange(3), ids[0, 1:]]
    found = likelihoods(logits, ids, torch.tensor([[-1, 0, 0, 1]]), 2)
    torch.testing.assert_close(found, torch.stack([log_p[0] + log_p[1], log_p[2]])[None])


@pytest.mark.parametrize("kind", ["forward", "reverse", "js"])
def test_spans_diverge_unless_they_are_as_likely(kind):
    want, there = torch.tensor([[-1.0, -3.0, 0.0]]), torch.tensor([[True, True, False]])
    assert float(span_divergence(want, want, there, kind)) == pytest.approx(0, abs=1e-5)
    near, far = want - 0.1, want - 2
    assert 0 < float(span_divergence(want, near, there, kind)) < float(span_divergence(want, far, there, kind))


def test_spans_by_hand():
    want, got = torch.tensor([[-2.0]]), torch.tensor([[-5.0]])
    p, q = math.exp(-0.02), math.exp(-0.05)
    kl = 100 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert float(span_divergence(want, got, torch.tensor([[True]]), "forward")) == pytest.approx(kl, rel=1e-3)


def test_the_best_of_two_tokenizers_is_seen_a_token_of_the_students():
    said = SimpleNamespace(own=torch.full((1, 3, 4), 0.0), spans=torch.tensor([[-0.1, -0.1]]))
    teachers = Teachers([Teacher("own", None), Teacher("other", None, reads=0)], "best")
    shares = teachers.shares([said.own, said.spans], batch_of(torch.tensor([[0, 1, 2]])))
    assert shares.tolist() == [[0], [1]]  # 0.1 nats a token against ln 4
