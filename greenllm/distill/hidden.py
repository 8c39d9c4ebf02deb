"""What happens inside: hidden states and attention maps of a student beside its teacher's.

Hidden states through learned projections, and layers of a deeper teacher mapped evenly: TinyBERT, Jiao et al., 2020,
arXiv:1909.10351, section 3.1, equation 8 and "layer mapping function". Attention maps by KL divergence: MiniLM, Wang
et al., 2020, arXiv:2002.10957, section 3.1, equation 6 (there of the last layer alone: ``layers="last"``). States
are brought to unit root mean square first, as the norm that reads them does: a few huge features of a language
model would be all the loss otherwise (Minitron, Muralidharan et al., 2024, arXiv:2407.14679, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from greenllm.errors import GreenError

Pairs = list[tuple[int, int]]  # (layer of the student, layer of the teacher), from 1


def layer_map(how: str, student: int, teacher: int) -> Pairs:
    """Which layer of the teacher each layer of the student looks at, numbered from 1.

    Args:
        how: "even" (layer i looks at i · teacher / student, rounded), "last" (only the last looks at the last), or
            one number a layer of the student, with commas; 0 for a layer that looks at none.
        student: its number of layers.
        teacher: the same.

    Raises:
        GreenError: not such a list, not one number a layer, or a layer that the teacher does not have.
    """
    if how == "even":
        return [(i, max(1, round(i * teacher / student))) for i in range(1, student + 1)]
    if how == "last":
        return [(student, teacher)]
    try:
        found = [int(n) for n in how.split(",")]
    except ValueError as e:
        raise GreenError(f"layers = {how!r} is neither even, last nor numbers with commas.", "See --layers.") from e
    if len(found) != student or not all(0 <= n <= teacher for n in found) or not any(found):
        raise GreenError(
            f"layers = {how!r}: {student} numbers from 0 to {teacher} are needed, one a layer of the student.",
            "See --layers.",
        )
    return [(i, n) for i, n in enumerate(found, 1) if n]


class Projections(nn.Module):
    """A learned matrix a pair of layers from the student's width to the teacher's; none where both are equal."""

    def __init__(self, pairs: Pairs, student: int, teacher: int) -> None:
        super().__init__()
        self.pairs = pairs
        same = student == teacher
        self.of = nn.ModuleList(nn.Identity() if same else nn.Linear(student, teacher, bias=False) for _ in pairs)
        for module in self.of:
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight)

    def forward(self, got: tuple[Tensor, ...], want: tuple[Tensor, ...], mask: Tensor) -> Tensor:
        """:func:`state_loss`, mean over the pairs; see there."""
        losses = [
            state_loss(project(got[s]), want[t], mask) for project, (s, t) in zip(self.of, self.pairs, strict=True)
        ]
        return torch.stack(losses).mean()


def state_loss(got: Tensor, want: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of states that were brought to unit root mean square.

    Args:
        got: the student's, [B, T, D].
        want: the teacher's, [B, T, D].
        mask: 1 for a token that counts, [B, T].
    """
    squares = (_unit(got) - _unit(want)).square().mean(-1)
    return (squares * mask).sum() / mask.sum()


def attention_loss(got: Tensor, want: Tensor, mask: Tensor) -> Tensor:
    """KL divergence of the student's attention from the teacher's in nats, mean over heads and tokens.

    Args:
        got: the student's maps, [B, H, T, T], rows sum to one.
        want: the teacher's, [B, H', T, T]; where H' is not H, the mean over heads is compared.
        mask: 1 for a token that counts, [B, T].
    """
    if got.shape[1] != want.shape[1]:
        got, want = got.mean(1, keepdim=True), want.mean(1, keepdim=True)
    p, q = want.float().clamp_min(1e-9), got.float().clamp_min(1e-9)
    rows = (p * (p.log() - q.log())).sum(-1).mean(1)
    return (rows * mask).sum() / mask.sum()


def _unit(states: Tensor) -> Tensor:
    states = states.float()
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6)
