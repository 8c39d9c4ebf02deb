"""How the tokens of a student and of a teacher meet: the same, a part of the teacher's, or through aligned text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greenllm.errors import GreenError

Tokenizer = Any  # transformers' fast tokenizers


def tokenizer_of(path: Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory.

    Raises:
        GreenError: it has none.
    """
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise GreenError(f"{path} has no tokenizer that can be read.", "Copy the teacher's beside it.") from e
    if found.pad_token is None:
        found.pad_token = found.eos_token or found.unk_token or found.convert_ids_to_tokens(0)
    return found


def has_tokenizer(path: Path) -> bool:
    """Whether there is a tokenizer beside the weights."""
    return any((path / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json"))


def numbers(student: Tokenizer, teacher: Tokenizer) -> Tensor | None:
    """The teacher's number of each of the student's tokens, int64 [tokens]; None where it lacks any.

    A student with fewer tokens (a pruned vocabulary) can be taught token by token all the same: the teacher reads
    the student's tokens under its own numbers, and its predictions are taken over the student's tokens alone.
    """
    theirs = teacher.get_vocab()
    ours = student.get_vocab()
    found = torch.full((max(ours.values()) + 1,), -1)
    for token, number in ours.items():
        if token not in theirs:
            return None
        found[number] = theirs[token]
    return found if (found >= 0).all() else None


def differences(student: Tokenizer, teacher: Tokenizer) -> str:
    """In a few words, how two vocabularies differ."""
    ours, theirs = set(student.get_vocab()), set(teacher.get_vocab())
    example = sorted(ours - theirs)[:1]
    return f"{len(ours)} tokens against {len(theirs)}, {len(ours & theirs)} in common" + (
        f" ({example[0]!r} is not the teacher's)" if example else ""
    )
