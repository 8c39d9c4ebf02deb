"""The best values of the weights that stay: least squares on the layer's inputs, mask held.

What SparseGPT's section 3.1 (Frantar & Alistarh, 2023, arXiv:2301.00774) calls exact reconstruction, which takes a
factorization a row; conjugate gradients (Hestenes & Stiefel, 1952) come near it in a few products with H for all
rows at once, and no turn makes it worse.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reconstruct(W: Tensor, Q: Tensor, H: Tensor, turns: int) -> Tensor:
    """Weights with Q's zeros, nearer to W in the norm of H.

    Args:
        W: dense, float32 [N, K].
        Q: sparse, [N, K]; where the turns begin.
        H: [K, K], X^T X of the inputs.
        turns: products with H.
    """
    mask = Q != 0
    R = ((W - Q) @ H) * mask  # minus half the gradient of (W - Q) H (W - Q)^T
    P, rr = R.clone(), R.square().sum(1)
    for _ in range(turns):
        PH = (P @ H) * mask
        alpha = rr / (P * PH).sum(1).clamp_min(1e-30)
        Q = Q + alpha[:, None] * P
        R = R - alpha[:, None] * PH
        new = R.square().sum(1)
        P = R + (new / rr.clamp_min(1e-30))[:, None] * P
        rr = new
    return torch.where(mask, Q, 0.0)


def refit(W: Tensor, H: Tensor, stay: Tensor, damp: float) -> Tensor:
    """The same where every output keeps the same inputs: exact, by one factorization.

    Args:
        W: dense, float32 [N, K].
        H: [K, K], X^T X of the inputs.
        stay: bool [K]; the other columns become zero.
        damp: pull towards W's own values, as a part of the mean diagonal of H; raised until H can be factored.
    """
    raised = H + (1e-12 if H.diagonal().mean() > 0 else 1.0) * torch.eye(len(H))
    while True:
        inside = raised[stay][:, stay] + damp * raised.diagonal().mean() * torch.eye(int(stay.sum()))
        L, info = torch.linalg.cholesky_ex(inside)
        if info == 0:
            break
        damp = max(10 * damp, 1e-6)
    Q = torch.zeros_like(W)
    Q[:, stay] = W[:, stay] + torch.cholesky_solve(H[stay][:, ~stay] @ W[:, ~stay].T, L).T
    return Q


def error(W: Tensor, Q: Tensor, H: Tensor) -> Tensor:
    """Squared error of each output in the norm of H: (w - q) H (w - q)^T, float32 [N]."""
    D = W - Q
    return ((D @ H) * D).sum(1)
