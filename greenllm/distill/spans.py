"""Teachers with another tokenizer: likelihoods of text spans on which both tokenizers agree.

Approximate Likelihood Matching, Minixhofer, Vulić and Ponti, 2025, arXiv:2503.20083, section 3: the text is cut
where a token of either ends at the same character; student and teacher then give likelihoods to the same pieces of
text, and the binary event "this piece, or any other" is compared between them at likelihoods to the power of 1/τ.
Without the paper's debiasing of pieces that another tokenization would continue, and without its hidden-state part.
The divergence is multiplied by τ, so that it is in nats and does not fade as τ grows.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from greenllm.distill.divergence import KINDS, Kind
from greenllm.distill.vocabulary import Tokenizer
from greenllm.errors import GreenError

_TAU = 100.0
Offsets = list[tuple[int, int]]


def align(a: Offsets, b: Offsets) -> tuple[list[int], list[int]]:
    """Number the pieces of text that two tokenizations share.

    Args:
        a: characters [begin, end) of each token; empty ones (special tokens) belong to no piece.
        b: the same of the other tokenization.

    Returns:
        For each token of a, and of b, the number of its piece from 0; -1 where there is none. The piece of the very
        first tokens is none: nothing predicts them.
    """
    cuts = sorted(_cuts(a) & _cuts(b))
    return _pieces(a, cuts), _pieces(b, cuts)


def _cuts(offsets: Offsets) -> set[int]:
    """Characters at which a token ends and the next one begins: none inside a character that is several tokens."""
    real = [(s, e) for s, e in offsets if e > s]
    return {e for (_, e), (s, _) in zip(real, [*real[1:], (real[-1][1], 0)], strict=True) if s >= e} if real else set()


def _pieces(offsets: Offsets, cuts: list[int]) -> list[int]:
    found = []
    ends = torch.tensor(cuts)
    for s, e in offsets:
        piece = int(torch.searchsorted(ends, e)) if e > s and cuts else len(cuts)
        # the piece with number 0 ends at the first cut: it has no prediction of its first token
        found.append(piece - 1 if piece < len(cuts) else -1)
    return found


def encode(texts: list[str], student: Tokenizer, teacher: Tokenizer, length: int) -> dict[str, Tensor]:
    """Both tokenizations of the same texts with their shared pieces.

    Args:
        texts: N of them.
        student: its tokenizer.
        teacher: the same.
        length: tokens of the student's at most; the teacher's at most four times as many.

    Returns:
        "input_ids", "attention_mask", "pieces", "their_ids", "their_mask", "their_pieces", each int64 [N, tokens].

    Raises:
        GreenError: a tokenizer that does not tell where its tokens lie in the text.
    """
    ours, theirs = _encode(texts, student, length), _encode(texts, teacher, 4 * length)
    both = [
        align(a, b) for a, b in zip(ours["offset_mapping"].tolist(), theirs["offset_mapping"].tolist(), strict=True)
    ]
    return {
        "input_ids": ours["input_ids"], "attention_mask": ours["attention_mask"],
        "pieces": torch.tensor([a for a, _ in both]),
        "their_ids": theirs["input_ids"], "their_mask": theirs["attention_mask"],
        "their_pieces": torch.tensor([b for _, b in both]),
    }  # fmt: skip


def _encode(texts: list[str], tokenizer: Tokenizer, length: int) -> dict[str, Tensor]:
    if not tokenizer.is_fast:
        raise GreenError(
            f"The tokenizer of {tokenizer.name_or_path} does not tell where its tokens lie in the text.",
            "Give it a tokenizer.json, or take a teacher with the student's tokenizer.",
        )
    tokenizer.padding_side = "right"
    return cast(
        "dict[str, Tensor]",
        tokenizer(
            texts, padding=True, truncation=True, max_length=length, return_offsets_mapping=True, return_tensors="pt"
        ),
    )


def likelihoods(logits: Tensor, ids: Tensor, pieces: Tensor, count: int) -> Tensor:
    """Log-likelihood of each piece.

    Args:
        logits: [B, T, V].
        ids: tokens, [B, T].
        pieces: the piece of each token, -1 for none, [B, T].
        count: S, more than the highest piece.

    Returns:
        float32 [B, S]; 0 for a piece that is not there.
    """
    logits = logits[:, :-1].float()
    token = logits.gather(-1, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
    target = pieces[:, 1:]
    sums = token.new_zeros(len(ids), count + 1)
    return sums.scatter_add(1, torch.where(target < 0, count, target), token)[:, :count]


def span_divergence(want: Tensor, got: Tensor, there: Tensor, kind: Kind) -> Tensor:
    """Divergence of "this piece, or any other", mean over the pieces of a text.

    Args:
        want: the teacher's log-likelihoods, [B, S].
        got: the student's, [B, S].
        there: which pieces there are, [B, S].
        kind: which divergence.

    Returns:
        Nats, [B].
    """
    found = _TAU * KINDS[kind](_binary(want), _binary(got)) * there
    return found.sum(-1) / there.sum(-1).clamp_min(1)


def _binary(log_p: Tensor) -> Tensor:
    log_p = (log_p / _TAU).clamp_max(-1e-7)
    return torch.stack([log_p, torch.log(-torch.expm1(log_p))], -1)
