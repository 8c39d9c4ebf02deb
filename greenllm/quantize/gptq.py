"""GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers.

Frantar et al., 2022, arXiv:2210.17323, section 3 (algorithm 1), with activation order and static groups
(the authors' later options ``act-order`` and ``static-groups``): inputs with the largest second moment are
rounded first, but the groups stay neighbours in memory, so that no kernel needs an index.
"""

from __future__ import annotations

import torch
from torch import Tensor

from greenllm.errors import GreenError
from greenllm.quantize.grid import Grid, as_packed, expand, fit
from greenllm.quantize.packed import Packed, concatenate
from greenllm.quantize.quantease import descend
from greenllm.quantize.rtn import round_onto

_BLOCK = 64
_ROWS = 2048
_SOLVED = 1 << 24  # numbers of the systems that are solved for scales at a time, [rows, G, G]


def gptq(W: Tensor, H: Tensor, grid: Grid, *, damp: float = 0.01, act_order: bool = True, polish: int = 1) -> Packed:
    """Round a weight column by column, spreading each column's error over those still to come.

    Afterwards scales are solved for with the codes held, and codes improved with the scales held, in turns.

    Args:
        W: float32 [N, K].
        H: float32 [K, K], X^T X of the layer's inputs (any positive multiple).
        grid: bits, group, symmetry.
        damp: added to the diagonal of H, as a part of its mean; raised tenfold until H can be factored.
        act_order: round inputs in the order of falling H[i, i].
        polish: how many such turns; 0 leaves GPTQ's own result.

    Returns:
        The packed weight; in the norm of the damped H never worse than rounding to nearest on the same grid.

    Raises:
        GreenError: H is not finite.
    """
    if not torch.isfinite(H).all():
        raise GreenError("The calibration inputs of a layer hold NaN or infinity; it cannot be quantized on them.")
    order = torch.argsort(H.diagonal(), descending=True) if act_order else torch.arange(len(H))
    H, U = factored(H, order, damp)
    # Rows do not know of each other, so a tall weight (a head) is done in slices to save memory.
    groups = W.shape[1] // grid.size(W.shape[1])
    rows = max(1, min(_ROWS, _SOLVED // groups**2))
    return concatenate([_rows(w, H, U, order, grid, polish) for w in W.split(rows)])


def _rows(W: Tensor, H: Tensor, U: Tensor, order: Tensor, grid: Grid, polish: int) -> Packed:
    scales, zeros = fit(W, grid, H.diagonal())
    nearest = round_onto(W, scales, zeros, grid)
    S, Z = (t[:, order] for t in expand(scales, zeros, grid.size(W.shape[1])))
    codes = torch.empty_like(nearest.codes)
    codes[:, order] = _sweep(W[:, order], U, S, Z, grid.top)
    found = as_packed(codes, scales, zeros, grid)
    for _ in range(polish):
        found = descend(W, H, refit_scales(W, H, found))
    if polish:
        found = refit_scales(W, H, found)
    worse = error_in(H, W, found) > error_in(H, W, nearest)
    return _take_rows(nearest, found, worse)


def factored(H: Tensor, order: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    """H with its diagonal raised until it can be factored, and in ``order`` the factor of its inverse.

    Returns:
        The damped H [K, K], and the upper Cholesky factor (the paper's step 3) of the inverse of
        ``H[order][:, order]``. An input that was never on gets a curvature of its own, which spreads nothing.
    """
    mean = H.diagonal().mean()
    eye = torch.eye(len(H)) * (mean if mean > 0 else 1.0)
    while True:
        raised = H + damp * eye
        L, info = torch.linalg.cholesky_ex(raised[order][:, order])
        if info == 0:
            upper, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(L), upper=True)
            if info == 0:
                return raised, upper
        damp *= 10


def _sweep(W: Tensor, U: Tensor, S: Tensor, Z: Tensor, top: int) -> Tensor:
    """Algorithm 1: codes uint8 [N, K]; S and Z are each weight's scale and zero point, [N, K]."""
    # Columns are the unit of work: with the transpose each is one contiguous row.
    W, S, Z = W.T.contiguous(), S.T.contiguous(), Z.T.contiguous()
    Q = torch.empty(W.shape, dtype=torch.uint8)
    for a in range(0, len(W), _BLOCK):
        b = min(a + _BLOCK, len(W))
        Err = torch.empty(b - a, W.shape[1])
        for j in range(a, b):
            code = (W[j] / S[j]).round_().add_(Z[j]).clamp_(0, top)
            Q[j] = code.to(torch.uint8)
            err = code.sub_(Z[j]).mul_(S[j]).sub_(W[j]).neg_().div_(U[j, j])
            W[j + 1 : b].addr_(U[j, j + 1 : b], err, alpha=-1)
            Err[j - a] = err
        W[b:].addmm_(U[a:b, b:].T, Err, alpha=-1)
    return Q.T.contiguous()


def refit_scales(W: Tensor, H: Tensor, packed: Packed) -> Packed:
    """Best scales for given codes: each row's least squares in the norm of H, over its G groups.

    With C [G, K] holding each group's codes (minus zero point) in its own columns, the optimum solves
    (C H C^T) s = C H w.
    """
    n, k = packed.shape
    g = packed.group
    G = k // g
    signed = packed.codes.float() - packed.zeros.float().repeat_interleave(g, 1)
    blocks = H.view(G, g, k)
    A = torch.empty(n, G, G)
    for i in range(G):
        A[:, i] = ((signed[:, i * g : (i + 1) * g] @ blocks[i]) * signed).view(n, G, g).sum(-1)
    rhs = ((W @ H) * signed).view(n, G, g).sum(-1)
    # A little pull towards the old scales keeps groups that saw no input where they were.
    ridge = 1e-4 * A.diagonal(dim1=1, dim2=2).mean(-1, keepdim=True) + 1e-12
    old = packed.scales.float()
    A += torch.diag_embed(ridge.expand(n, G))
    solved, info = torch.linalg.solve_ex(A, (rhs + ridge * old)[..., None])
    new = solved[..., 0]
    ok = (info == 0)[:, None] & torch.isfinite(new) & (new.abs() > 2.0**-24) & (new.abs() < 65504.0)  # noqa: PLR2004 - fp16
    scales = torch.where(ok, new, old).half()
    return Packed(packed.codes, scales, packed.zeros, packed.bits, packed.group, packed.symmetric)


def error_in(H: Tensor, W: Tensor, packed: Packed) -> Tensor:
    """Squared error of each output in the norm of H: (w - q) H (w - q)^T, float32 [N]."""
    D = packed.dequantize() - W
    return ((D @ H) * D).sum(1)


def _take_rows(a: Packed, b: Packed, from_a: Tensor) -> Packed:
    pick = from_a[:, None]
    return Packed(
        torch.where(pick, a.codes, b.codes),
        torch.where(pick, a.scales, b.scales),
        torch.where(pick, a.zeros, b.zeros),
        b.bits, b.group, b.symmetric,
    )  # fmt: skip
