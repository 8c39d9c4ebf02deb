"""How far a student's predictions are from its teacher's: forward, reverse and Jensen-Shannon divergence.

Soft targets at a temperature: Hinton, Vinyals and Dean, 2015, arXiv:1503.02531, section 2; the loss is multiplied
by T² so that its gradients keep their size. Reverse KL seeks the teacher's modes: MiniLLM, Gu et al., 2023,
arXiv:2306.08543, section 2.1 (here token by token on given text, without its policy gradient). The
Jensen-Shannon divergence between both: GKD, Agarwal et al., 2023, arXiv:2306.13649, section 2 (beta = 1/2).

All functions take log-probabilities [..., V] whose last axis sums to one, and all of them are finite: an outcome of
no mass has ``NOTHING``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["forward", "reverse", "js"]
NOTHING = -1e4  # logarithm of no mass: its exponential is 0, and 0 times it is 0 where infinity makes NaN


def forward(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) in nats, [...]: what the teacher p says, the student q must say too."""
    return (p.exp() * (p - q)).sum(-1)


def reverse(p: Tensor, q: Tensor) -> Tensor:
    """KL(q ‖ p) in nats, [...]: what the student q says, the teacher p must say too."""
    return forward(q, p)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Mean KL of p and q from their mixture in nats, [...]; between 0 and ln 2."""
    m = torch.logaddexp(p, q) - math.log(2)
    return (forward(p, m) + forward(q, m)) / 2


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"forward": forward, "reverse": reverse, "js": jensen_shannon}


def divergence(want: Tensor, got: Tensor, kind: Kind, temperature: float = 1.0) -> Tensor:
    """Divergence of predictions at a temperature, times T².

    Args:
        want: the teacher's log-probabilities at this temperature, [..., V] (see :func:`log_probabilities`).
        got: the student's logits, [..., V].
        kind: which.
        temperature: T.

    Returns:
        Nats times T², [...].
    """
    return temperature**2 * KINDS[kind](want, log_probabilities(got, temperature))


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Logarithm of the softmax at a temperature, float32."""
    logits = logits.float()
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, -1)


def state_distance(want: Tensor, got: Tensor, mask: Tensor) -> Tensor:
    """Squared error of an encoder's states, relative to the teacher's size.

    Args:
        want: the teacher's, [B, T, D].
        got: the student's.
        mask: 1 for a token that counts, [B, T].
    """
    want, got, mask = want.float(), got.float(), mask[..., None]
    return ((got - want).square() * mask).sum() / (want.square() * mask).sum()


def keep_top(log_p: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k likeliest outcomes, and all others as one.

    Args:
        log_p: log-probabilities, [..., V].
        k: at most V.

    Returns:
        Log-probabilities of the k outcomes and last of "any other" (``NOTHING`` where k = V), float32 [..., k + 1];
        and the k outcomes, int64 [..., k].
    """
    values, indices = log_p.topk(k, -1)
    return torch.cat([values, _rest(log_p, indices)], -1), indices


def divergence_of_top(want: Tensor, indices: Tensor, got: Tensor, kind: Kind, temperature: float = 1.0) -> Tensor:
    """:func:`divergence` where only the teacher's k likeliest outcomes are known.

    The student is judged on k + 1 outcomes: those k, and "any other" with the mass of all the rest on both sides.
    Joining outcomes never raises an f-divergence (data processing), so this is at most the exact one, and equal to
    it at k = V. How the student spreads the mass of the rest is left to it.

    Args:
        want: what :func:`keep_top` gave at this temperature, [..., k + 1].
        indices: the same, [..., k].
        got: the student's logits, [..., V].
        kind: which.
        temperature: T.

    Returns:
        Nats times T², [...].
    """
    q = log_probabilities(got, temperature)
    joined = torch.cat([q.gather(-1, indices), _rest(q, indices)], -1)
    return temperature**2 * KINDS[kind](want, joined)


def _rest(log_p: Tensor, indices: Tensor) -> Tensor:
    """Logarithm of the mass outside ``indices``, [..., 1]."""
    if indices.shape[-1] == log_p.shape[-1]:
        return torch.full_like(log_p[..., :1], NOTHING)
    return log_p.scatter(-1, indices, -math.inf).logsumexp(-1, keepdim=True).clamp_min(NOTHING)
