"""Which inputs of linears can go at the least cost, when what stays is fitted to do their work.

The structured form of the Optimal Brain Surgeon: ZipLM, Kurtic, Frantar and Alistarh, 2023, arXiv:2302.04089, section
3.1. A unit costs ``tr(W_S ((H^-1)_SS)^-1 W_S^T)``; when it goes, weights and inverse are brought up to date, so two
units of which either can stand for the other do not both go. Here the cheapest few go in a turn, as H is large, and
fewer towards the end, where the turns decide more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from greenllm.quantize.gptq import factored

_TURNS = 48


def removal_costs(readers: list[tuple[Tensor, Tensor]], units: int, stay: int, damp: float) -> Tensor:
    """What each of ``units`` equal parts of the inputs costs, in the order in which they go.

    Args:
        readers: of each linear that reads these inputs its weights, float32 [N, K], and X^T X of the inputs, [K, K].
        units: K is a multiple of it.
        stay: how many are to be left.
        damp: added to the diagonal of H, as a part of its mean; raised tenfold until H can be factored.

    Returns:
        float32 [units]: of those that go, the squared error of the turn they go in, never less than of one before;
        of those that stay, more than any of these. So the ``stay`` largest are the units to keep.
    """
    each = [Reader(W, H, units, damp) for W, H in readers]
    costs, left = torch.zeros(units), torch.ones(units, dtype=torch.bool)
    worst = 0.0
    while True:
        now = torch.stack([r.costs() for r in each]).sum(0)
        going = int(left.sum()) - stay
        if going <= 0:
            costs[left] = now[left] + worst * (1 + 1e-4)
            return costs
        count = min(going, max(1, going // 4), max(1, (units - stay) // _TURNS))
        gone = now.masked_fill(~left, torch.inf).topk(count, largest=False).indices
        worst = max(worst, float(now[gone].max()))
        costs[gone], left[gone] = worst, False
        for reader in each:
            reader.remove(gone)


class Reader:
    """One linear while its inputs go; arguments as of :func:`removal_costs`."""

    def __init__(self, W: Tensor, H: Tensor, units: int, damp: float) -> None:
        _, U = factored(H, torch.arange(len(H)), damp)
        self.W, self.Hi, self.units, self.width = W.clone(), U.T @ U, units, len(H) // units

    def costs(self) -> Tensor:
        """Squared error of taking out each unit alone, [units]; 0 of those that are gone."""
        if self.width == 1:
            return self.W.square().sum(0) / self.Hi.diagonal()
        u, w = self.units, self.width
        inside = self.Hi.view(u, w, u, w).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        parts = self.W.T.reshape(u, w, -1)
        return (parts * torch.linalg.solve(inside, parts)).sum((1, 2))

    def remove(self, gone: Tensor) -> None:
        """Take units out, and let the others do their work as well as they can."""
        at = (gone[:, None] * self.width + torch.arange(self.width)).flatten()
        rest = torch.linalg.solve(self.Hi[at][:, at], self.Hi[at])  # [removed, K]
        self.W -= self.W[:, at] @ rest
        self.Hi -= self.Hi[:, at] @ rest
        self.W[:, at] = 0
        self.Hi[at], self.Hi[:, at] = 0, 0
        self.Hi[at, at] = 1  # so that nothing divides by zero
