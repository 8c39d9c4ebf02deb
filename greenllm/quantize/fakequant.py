"""A packed weight that learns: its codes and its scales, by the straight-through estimator.

Codes are round(u) of a real-valued u in steps of the grid. The gradient passes the rounding as if it were not
there (Bengio et al., 2013, arXiv:1308.3432), scales have theirs as in LSQ (Esser et al., 2020, arXiv:1902.08153,
section 2). What is learned is a :class:`Packed` at every moment, so nothing is lost when it is saved.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from greenllm.quantize.packed import Packed

_EDGE = 0.49  # u starts this near to its code at most, so that it begins as what was packed


@dataclass
class FakeQuant:
    """Codes and scales on their way.

    Attributes:
        packed: where they began; its zero points, bits and group stay.
        u: float32 [N, K], codes that are not rounded yet.
        change: float32 [N, G], of the scales, relative.
    """

    packed: Packed
    u: Tensor
    change: Tensor

    @classmethod
    def of(cls, W: Tensor, packed: Packed) -> FakeQuant:
        """Begin at ``packed``, each u leaning towards the dense weight ``W`` [N, K] that was rounded."""
        p = packed
        codes = _grouped(p.codes.float(), p)
        lean = _grouped(W, p) / p.scales.float()[..., None] + p.zeros.float()[..., None] - codes
        u = codes + torch.nan_to_num(lean).clamp_(-_EDGE, _EDGE)
        return cls(packed, u.view(p.shape).contiguous(), torch.zeros(p.scales.shape))

    def weight(self) -> Tensor:
        """The weight it stands for now, float32 [N, K]."""
        return self._steps().mul_(self._scales().float()[..., None]).view(self.u.shape)

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of u and change, given that of the weight [N, K]."""
        p = self.packed
        steps, grouped = self._steps(), _grouped(grad.float(), p)
        of_change = steps.mul_(grouped).sum(-1).mul_(p.scales.float())
        # in steps of its own scale, whatever that is: u of all weights learn at one rate
        of_u = torch.mul(grouped, self._scales().float()[..., None], out=steps)
        return of_u.view(self.u.shape), of_change

    def learned(self) -> Packed:
        """The packed weight as it is now."""
        codes = self.u.round().clamp_(0, self._top).to(torch.uint8)
        return dataclasses.replace(self.packed, codes=codes, scales=self._scales())

    @property
    def _top(self) -> int:
        return int(2**self.packed.bits - 1)

    def _scales(self) -> Tensor:
        return (self.packed.scales.float() * (1 + self.change)).half()

    def _steps(self) -> Tensor:
        """round(u) minus the zero point, [N, G, group]."""
        steps = _grouped(self.u.round().clamp_(0, self._top), self.packed)
        return steps.sub_(self.packed.zeros.float()[..., None])


def _grouped(values: Tensor, packed: Packed) -> Tensor:
    return values.reshape(len(values), -1, packed.group)
