"""A teacher for a student that has but a part of its tokens: it reads the text as it learned to, in its own tokens.

Phan, Khisti and Ullrich, 2025, arXiv:2512.14954, the case of a vocabulary that is a part of the teacher's: where a
token of both ends, the student's next token has the mass of all the teacher's tokens whose pieces begin with it. Inside
a token that the student lacks the paper asks the teacher again; here the text itself is the target, as in the task's
own loss: over many texts it teaches the same mixture of "that word goes on" and "it ended".
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from greenllm.distill.divergence import NOTHING

Tokenizer = Any  # transformers' fast tokenizers
_INSIDE = -1
_DOUBT = 1e-3  # mass that a target of text leaves to all other tokens: reverse KL stays small then


def first_pieces(student: Tokenizer, teacher: Tokenizer, numbers: Tensor) -> Tensor:
    """The student's first piece of each of the teacher's tokens, int64 [teacher's]; -1 where it has none.

    Args:
        student: its tokenizer.
        teacher: the same; knows all the student's tokens.
        numbers: the teacher's number of each of the student's tokens.
    """
    vocabulary, model = teacher.get_vocab(), student.backend_tokenizer.model
    found = torch.full((max(vocabulary.values()) + 1,), -1)
    found[numbers] = torch.arange(len(numbers))
    for token, number in vocabulary.items():
        if found[number] < 0 and (pieces := model.tokenize(token)):
            found[number] = pieces[0].id
    return found


def encode(ids: Tensor, mask: Tensor, student: Tokenizer, teacher: Tokenizer, numbers: Tensor) -> dict[str, Tensor]:
    """The teacher's tokenization of the student's windows.

    A window whose text is not that of its tokens (it was cut within a character) is read in the student's tokens.

    Args:
        ids: the student's tokens, [N, T].
        mask: 1 where there is one, at the left, [N, T].
        student: its tokenizer.
        teacher: the same.
        numbers: the teacher's number of each of the student's tokens.

    Returns:
        "their_ids" and "their_mask" [N, T'], and "places" [N, T]: which of the teacher's places each of the student's
        is, -1 inside a token that the student lacks.
    """
    windows = [row[: int(n)] for row, n in zip(ids, mask.sum(1), strict=True)]
    texts = [student.decode(w, skip_special_tokens=False, clean_up_tokenization_spaces=False) for w in windows]
    read, places = [], torch.full_like(ids, _INSIDE)
    for row, (window, theirs) in enumerate(zip(windows, _read(teacher, texts), strict=True)):
        ours, names = (t.convert_ids_to_tokens(i) for t, i in ((student, window.tolist()), (teacher, theirs)))
        if not "".join(names).endswith("".join(ours)):
            theirs, names = numbers[window].tolist(), ours  # noqa: PLW2901 - what is read instead
        read.append(torch.tensor(theirs))
        places[row, : len(window)] = torch.tensor(places_of(ours, names))
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "their_ids": pad(read, batch_first=True),
        "their_mask": pad([torch.ones_like(r) for r in read], batch_first=True),
        "places": places,
    }


def places_of(ours: list[str], theirs: list[str]) -> list[int]:
    """For each token, which of the others ends where it ends, -1 for none; both say the same text, to its end."""
    left = _left(theirs)
    there = {n: i for i, n in enumerate(left)}
    return [there.get(n, _INSIDE) for n in _left(ours)]


def over_students(logits: Tensor, numbers: Tensor, firsts: Tensor, places: Tensor, ids: Tensor) -> Tensor:
    """What a teacher says of the student's tokens.

    Args:
        logits: its own, [B, T', V'].
        numbers: its number of each of the student's tokens, [V].
        firsts: see :func:`first_pieces`.
        places: see :func:`encode`, [B, T].
        ids: the student's tokens, [B, T].

    Returns:
        Log-probabilities, float32 [B, T, V].
    """
    p = torch.softmax(logits.float(), -1)
    q = p[..., numbers]
    gone = firsts >= 0
    gone[numbers] = False
    q.index_add_(-1, firsts[gone], p[..., : len(firsts)][..., gone])
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    found = q.log_().clamp_min_(NOTHING)[rows, places.clamp_min(0)]
    row, column = torch.nonzero(places < 0, as_tuple=True)
    follows = ids.roll(-1, 1)[row, column]
    found[row, column] = torch.tensor(_DOUBT / found.shape[-1], device=found.device).log()
    found[row, column, follows] = torch.tensor(1 - _DOUBT, device=found.device).log()
    return found


def _read(teacher: Tokenizer, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = teacher(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _left(tokens: list[str]) -> list[int]:
    """How many characters come after each."""
    ends = list(itertools.accumulate(map(len, tokens)))
    return [ends[-1] - end for end in ends]
