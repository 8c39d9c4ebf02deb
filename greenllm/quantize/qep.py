"""Weights that make up for what quantizing the blocks before them did, before they are rounded themselves.

Quantization Error Propagation: Arai and Ichikawa, 2025, arXiv:2504.09629, section 4; the same target as GPTAQ's
asymmetric calibration, Li et al., 2025, arXiv:2504.02692, section 3. A layer should give what it gave in the model
as it was, on inputs that are no longer what they were: ``min |X W^T - X' W'^T|`` is solved by
``W' = W + W (X - X')^T X' (X'^T X')^-1``, of which a part, alpha, is taken, lest little text be learned by heart.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from greenllm.quantize.linear import Moments


class Drift(Moments):
    """Moments of each layer's inputs X', and of their drift, D = (X - X')^T X', from the inputs X that it had.

    :meth:`turn` says whose inputs come; of each batch X comes first.
    """

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__(layers)
        self.D: dict[str, Tensor] = {}
        self._source: dict[str, Tensor] = {}
        self._of_source = False

    def turn(self, source: bool) -> None:  # noqa: FBT001 - a callback
        """What comes next is X, or X'."""
        self._of_source = source

    def drift(self, name: str) -> Tensor:
        """D of a layer, float32 [K, K]."""
        return self.D[self.leader[name]]

    def add(self, name: str, x: Tensor) -> None:
        """Take a layer's inputs."""
        if self._of_source:
            self._source[name] = x.detach()
            return
        super().add(name, x)
        was = self._source.pop(name)
        if self.leader[name] == name:
            rows = x.detach().reshape(-1, x.shape[-1]).float()
            D = self.D.setdefault(name, torch.zeros(x.shape[-1], x.shape[-1]))
            D.addmm_((was.reshape(rows.shape).float() - rows).T, rows)


def corrected(W: Tensor, H: Tensor, D: Tensor, alpha: float, damp: float) -> Tensor:
    """The weights that give on X' what W gave on X, alpha of the way there.

    Args:
        W: float32 [N, K].
        H: X'^T X', [K, K].
        D: (X - X')^T X', [K, K].
        alpha: from 0 (W itself) to 1.
        damp: added to the diagonal of H, as a part of its mean; raised tenfold until H can be factored.
    """
    if not alpha or not D.any():
        return W
    mean = H.diagonal().mean()
    while True:
        L, info = torch.linalg.cholesky_ex(H + damp * mean * torch.eye(len(H)))
        if info == 0:
            return W + alpha * torch.cholesky_solve((W @ D).T, L).T
        damp = max(10 * damp, 1e-6)
