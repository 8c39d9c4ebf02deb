"""Which heads, MLP channels and hidden channels a model needs least.

Heads and MLP channels by what their going costs the linears that read them, these fitted (:mod:`.structured_obs`);
or, where nothing is fitted, and hidden channels always, by their activations, as Minitron: Muralidharan et al., 2024,
arXiv:2407.14679, section 2.2 (width): a head counts as much as what it puts out is large, an MLP channel as its
activation, a hidden channel as the norms' outputs; mean over a sequence, then the root of the sum of squares over
sequences. Heads that share keys and values are one unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.progress import Progress
from greenllm.prune.axes import HEADS, HIDDEN, MLP, PER_BLOCK, Anatomy, Kept
from greenllm.prune.reconstruct import refit
from greenllm.prune.structured_obs import removal_costs
from greenllm.quantize.fold import channels
from greenllm.quantize.linear import Moments, set_weight, weight_of
from greenllm.walk import Walk

_WEIGHT = ".weight"


def per_unit(x: Tensor, units: int) -> Tensor:
    """Importance of ``units`` equal parts of x [B, T, K], squared and summed over B, float32 [units]."""
    return x.float().unflatten(-1, (units, -1)).norm(dim=-1).mean(1).square().sum(0)


class Narrowing:
    """One walk through a checkpoint: what each part is worth is found, and what goes is made up for.

    Heads and MLP channels are chosen as the walk passes their block, whose readers (the linears that read them) are
    then fitted to give what they gave: the blocks after it see the states that they will see.

    Args:
        checkpoint: dense.
        anatomy: its axes.
        sizes: how many units of each kind stay.
        damp: of fitting, see :func:`refit`; None leaves the readers' weights as they are.
    """

    def __init__(self, checkpoint: Checkpoint, anatomy: Anatomy, sizes: dict[str, int], damp: float | None) -> None:
        self.checkpoint, self.anatomy, self.sizes, self.damp = checkpoint, anatomy, sizes, damp

    def run(self, batches: list[Tensor], work: Path, progress: Progress) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Walk.

        Args:
            batches: token ids, int64 [B, T] each.
            work: directory for committed work.
            progress: advanced by 1 a block.

        Returns:
            The importance of each unit, by kind ("hidden") or block and kind ("3.mlp"); and the weights that were
            fitted, by name, whole, with zeros where nothing is read any more.

        Raises:
            GreenError: no linear of a block reads the channels (as with experts that are one tensor).
        """
        walk = Walk(self.checkpoint, [{"input_ids": b} for b in batches], work)
        progress.stage("what each part is worth", len(walk.blocks))
        walk.run(self._visit, progress)
        sums = {k: t for k, t in walk.tensors() if not k.endswith(_WEIGHT)}
        found = {k: t.sqrt() for k, t in sums.items() if not k.endswith(HIDDEN)}
        if HIDDEN in self.anatomy.kinds:
            found[HIDDEN] = torch.stack([t.sqrt() for k, t in sums.items() if k.endswith(HIDDEN)]).sum(0)
        return found, {k: t for k, t in walk.tensors() if k.endswith(_WEIGHT)}

    def _visit(self, name: str, block: nn.Module, forward: Callable[[], None]) -> dict[str, Tensor]:
        i = int(name.rpartition(".")[2])
        found = {f"{i}.{kind}": torch.zeros(self.anatomy.sizes[kind]) for kind in self.anatomy.kinds}
        readers = {kind: self.anatomy.readers(block, i, kind) for kind in PER_BLOCK if kind in self.anatomy.kinds}
        moments = Moments({n: m for layers in readers.values() for n, m in layers.items()})
        with ExitStack() as stack:
            for kind in self.anatomy.kinds:
                modules = self._norms(block) if kind == HIDDEN else list(readers[kind].values())
                if not modules:
                    raise GreenError(f"{self.checkpoint.path}: nothing in {name} reads its {kind} channels one by one.")
                for module in modules if kind == HIDDEN or self.damp is None else ():
                    stack.callback(_watch(module, found[f"{i}.{kind}"], reads=kind != HIDDEN).remove)
            if self.damp is not None:
                stack.enter_context(moments.watching())
            forward()
        if self.damp is not None:
            for kind, layers in readers.items():
                found[f"{i}.{kind}"] = self._costs(kind, layers, moments, self.damp)
                (kept,) = choose({f"{i}.{kind}": found[f"{i}.{kind}"]}, self.sizes).values()
                for short, layer in layers.items():
                    _fit(layer, moments.of(short), kept, self.anatomy.sizes[kind], self.damp)
                    found[f"{name}.{short}{_WEIGHT}"] = layer.get_parameter("weight").data
        return found

    def _costs(self, kind: str, layers: dict[str, nn.Module], moments: Moments, damp: float) -> Tensor:
        """What the going of each unit of a kind costs all that reads it."""
        pairs = [(weight_of(m), moments.of(n)) for n, m in layers.items()]
        units = self.anatomy.sizes[kind]
        return removal_costs(pairs, units, self.sizes.get(kind, units), damp)

    def _norms(self, block: nn.Module) -> list[nn.Module]:
        return [m for m in block.modules() if channels(m) == self.anatomy.sizes[HIDDEN]]


def choose(scores: dict[str, Tensor], sizes: dict[str, int]) -> Kept:
    """The most important units of every kind in ``sizes``, in the order in which they lie."""
    return {k: s.topk(n).indices.sort().values for k, s in scores.items() if (n := sizes.get(k.rpartition(".")[2]))}


def fit(anatomy: Anatomy, target: float, fixed: dict[str, int], multiple: int) -> dict[str, int]:
    """Sizes with at most ``target`` weights: MLP channels go; heads too when half of these are gone; hidden stay.

    Args:
        anatomy: what there is.
        target: number of weights.
        fixed: sizes that are given.
        multiple: of MLP channels.

    Raises:
        GreenError: the smallest sizes are not small enough.
    """
    free = [k for k in (HEADS, MLP) if k in anatomy.kinds and k not in fixed]
    whole = anatomy.sizes
    least = fixed | {k: _shrunk(whole[k], 0, multiple if k == MLP else 1) for k in free}
    for percent in range(1, 101):
        share = {MLP: 1 - percent / 100, HEADS: 2 * (1 - percent / 100)}
        sizes = fixed | {k: _shrunk(whole[k], share[k], multiple if k == MLP else 1) for k in free}
        if anatomy.parameters(sizes) <= target and _possible(anatomy, sizes):
            while MLP in free and sizes[MLP] + multiple <= whole[MLP]:
                if anatomy.parameters(sizes | {MLP: sizes[MLP] + multiple}) > target:
                    break
                sizes[MLP] += multiple
            return sizes
    raise GreenError(
        f"Cutting {' and '.join(free) or 'nothing else'} alone leaves {anatomy.parameters(least) / 1e6:.1f}M weights "
        f"at the least; {target / 1e6:.1f}M are wanted.",
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


def _fit(layer: nn.Module, H: Tensor, kept: Tensor, units: int, damp: float) -> None:
    """Let a reader make do with the units that stay."""
    W = weight_of(layer).contiguous()
    stay = torch.zeros(units, dtype=torch.bool).index_fill(0, kept, value=True).repeat_interleave(W.shape[1] // units)
    set_weight(layer, refit(W, H, stay, damp))


def _watch(module: nn.Module, total: Tensor, *, reads: bool) -> RemovableHandle:
    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        total.add_(per_unit(args[0], len(total)))

    def after(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> None:
        total.add_(per_unit(out, len(total)))

    return module.register_forward_pre_hook(before) if reads else module.register_forward_hook(after)
