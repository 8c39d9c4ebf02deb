"""Which heads, MLP channels and hidden channels a model needs least, by its activations.

Minitron: Muralidharan et al., 2024, arXiv:2407.14679, section 2.2 (width): a head counts as much as what it puts
out is large, an MLP channel as its activation, a hidden channel as the norms' outputs; mean over a sequence, then
the root of the sum of squares over sequences. Heads that share keys and values are one unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.progress import Progress
from greenllm.prune.axes import HEADS, HIDDEN, MLP, Anatomy, Kept
from greenllm.quantize.fold import channels
from greenllm.walk import Walk


def per_unit(x: Tensor, units: int) -> Tensor:
    """Importance of ``units`` equal parts of x [B, T, K], squared and summed over B, float32 [units]."""
    return x.float().unflatten(-1, (units, -1)).norm(dim=-1).mean(1).square().sum(0)


def importance(
    checkpoint: Checkpoint, anatomy: Anatomy, batches: list[Tensor], work: Path, progress: Progress
) -> dict[str, Tensor]:
    """Of each unit of the anatomy's kinds: by kind ("hidden"), or block and kind ("3.mlp").

    Args:
        checkpoint: dense.
        anatomy: its axes.
        batches: token ids, int64 [B, T] each.
        work: directory for committed work.
        progress: advanced by 1 a block.

    Raises:
        GreenError: no linear of a block reads the channels (as with experts that are one tensor).
    """
    walk = Walk(checkpoint, [{"input_ids": b} for b in batches], work)
    progress.stage("how active each part is", len(walk.blocks))

    def visit(name: str, block: nn.Module, _: Callable[[], None]) -> dict[str, Tensor]:
        found = {}
        for kind in anatomy.kinds:
            modules = _watched(anatomy, block, int(name.rpartition(".")[2]), kind)
            if not modules:
                raise GreenError(f"{checkpoint.path}: nothing in {name} reads its {kind} channels one by one.")
            total = torch.zeros(anatomy.sizes[kind])  # filled while the walk moves on
            for module in modules:
                _add(module, total, reads=kind != HIDDEN)
            found[f"{name.rpartition('.')[2]}.{kind}"] = total
        return found

    walk.run(visit, progress)
    sums = dict(walk.tensors())
    found = {k: t.sqrt() for k, t in sums.items() if not k.endswith(HIDDEN)}
    if HIDDEN in anatomy.kinds:
        found[HIDDEN] = torch.stack([t.sqrt() for k, t in sums.items() if k.endswith(HIDDEN)]).sum(0)
    return found


def choose(scores: dict[str, Tensor], sizes: dict[str, int]) -> Kept:
    """The most important units of every kind in ``sizes``, in the order in which they lie."""
    return {k: s.topk(n).indices.sort().values for k, s in scores.items() if (n := sizes.get(k.rpartition(".")[2]))}


def fit(anatomy: Anatomy, target: float, fixed: dict[str, int], multiple: int) -> dict[str, int]:
    """Sizes with at most ``target`` weights: MLP channels and heads lose the same share, hidden channels none.

    Args:
        anatomy: what there is.
        target: number of weights.
        fixed: sizes that are given.
        multiple: of MLP channels.

    Raises:
        GreenError: the smallest sizes are not small enough.
    """
    free = [k for k in (HEADS, MLP) if k in anatomy.kinds and k not in fixed]
    for percent in range(1, 100):
        sizes = fixed | {k: _shrunk(anatomy.sizes[k], 1 - percent / 100, multiple if k == MLP else 1) for k in free}
        if anatomy.parameters(sizes) <= target and _possible(anatomy, sizes):
            while MLP in free and anatomy.parameters(sizes | {MLP: sizes[MLP] + multiple}) <= target:
                sizes[MLP] += multiple
            return sizes
    least = anatomy.parameters(fixed | {k: _shrunk(anatomy.sizes[k], 0, multiple if k == MLP else 1) for k in free})
    raise GreenError(
        f"Cutting {' and '.join(free) or 'nothing else'} alone leaves {least / 1e6:.1f}M weights at the least; "
        f"{target / 1e6:.1f}M are wanted.",
        "Ask for less (--ratio, --to), give --hidden, or cut blocks or tokens too.",
    )


def _shrunk(size: int, share: float, multiple: int) -> int:
    """A share of a size, a multiple (the next above), at least one."""
    return min(size, max(1, math.ceil(size * share / multiple)) * multiple)


def _possible(anatomy: Anatomy, sizes: dict[str, int]) -> bool:
    try:
        anatomy.configure(sizes)
    except GreenError:
        return False
    return True


def _watched(anatomy: Anatomy, block: nn.Module, i: int, kind: str) -> list[nn.Module]:
    if kind != HIDDEN:
        return list(anatomy.readers(block, i, kind).values())
    return [m for m in block.modules() if channels(m) == anatomy.sizes[HIDDEN]]


def _add(module: nn.Module, total: Tensor, *, reads: bool) -> None:
    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        total.add_(per_unit(args[0], len(total)))

    def after(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> None:
        total.add_(per_unit(out, len(total)))

    if reads:
        module.register_forward_pre_hook(before)
    else:
        module.register_forward_hook(after)
