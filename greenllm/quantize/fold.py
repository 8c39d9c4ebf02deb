"""Scales per channel folded into a block: its weights become easier to round, what it computes stays the same.

What writes a channel is divided by a scale, what reads it is multiplied. Nothing here knows architectures: a
norm is what gave out the very tensor that linears read, a neighbouring linear is any that ran before and has as
many outputs as they have inputs; and each pair is tried out on real inputs before it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from greenllm.quantize.linear import linears, set_weight, weight_of

_OF_OUTPUT = 1e-4  # most that a fold may change a block's output, as a part of it
_OF_EFFECT = 1e-2  # and as a part of what the readers' scales alone do to it: a weak branch must hold too


@dataclass(frozen=True)
class Fold:
    """``readers`` (linears that share an input) read a tensor whose channels scale with ``writer``'s outputs."""

    writer: str
    readers: tuple[str, ...]


@dataclass
class Call:
    """What a block was first called with."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def run(self, block: nn.Module) -> Tensor:
        """The block's hidden states for it."""
        out = block(*self.args, **self.kwargs)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found


@contextmanager
def first_call(block: nn.Module) -> Iterator[Call]:
    """Note what the block is first called with inside."""
    call = Call()

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not call.args and not call.kwargs:
            call.args, call.kwargs = args, kwargs

    handle = block.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield call
    finally:
        handle.remove()


def find_folds(block: nn.Module, call: Call) -> list[Fold]:
    """Every group of linears whose input can be scaled, with what takes the scales; tried out on ``call``."""
    trace = _Trace(block)
    want = trace.run(call)
    found = []
    for readers, writers in trace.candidates():
        folds = (Fold(w, readers) for w in writers)
        found += [f for f in folds if _holds(block, f, call, want)][:1]
    return found


def fold_in(block: nn.Module, fold: Fold, s: Tensor) -> dict[str, Tensor]:
    """Multiply the readers' inputs by ``s`` [K] and divide the writer's outputs, in place.

    Returns:
        The changed parameters that are no linear's weight (a norm's, a bias), by their names in the block.
    """
    for reader in fold.readers:
        layer = block.get_submodule(reader)
        set_weight(layer, weight_of(layer) * s)
    return _divide(block, fold.writer, s)


def _divide(block: nn.Module, name: str, s: Tensor) -> dict[str, Tensor]:
    writer = block.get_submodule(name)
    own = dict(writer.named_parameters(recurse=False))
    if name in linears(block):
        set_weight(writer, weight_of(writer) / s[:, None])
        own.pop("weight")
    for parameter in own.values():
        parameter.data = parameter.data / s
    return {f"{name}.{k}": p.data for k, p in own.items()}


class _Trace:
    """Which tensor each linear of a block read and each norm wrote, in the order in which they ran."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.layers = linears(block)
        self.ran: list[tuple[str, Tensor]] = []  # linears and their inputs
        self.wrote: list[tuple[str, Tensor]] = []  # norms and their outputs

    def run(self, call: Call) -> Tensor:
        handles = [m.register_forward_pre_hook(self._read(n)) for n, m in self.layers.items()]
        norms = {n: m for n, m in self.block.named_modules() if n not in self.layers and channels(m)}
        handles += [m.register_forward_hook(self._write(n)) for n, m in norms.items()]
        try:
            return call.run(self.block)
        finally:
            for h in handles:
                h.remove()

    def candidates(self) -> list[tuple[tuple[str, ...], list[str]]]:
        """(linears that share an input, what may write it): its norm, else any fitting linear that ran before."""
        found: dict[int, list[str]] = {}
        for name, x in self.ran:
            found.setdefault(id(x), []).append(name)
        inputs = dict(self.ran)
        order = list(inputs)
        pairs = []
        for readers in found.values():
            x = inputs[readers[0]]
            norms = [n for n, y in self.wrote if y is x and channels(self.block.get_submodule(n)) == x.shape[-1]]
            before = reversed(order[: order.index(readers[0])])
            fitting = [n for n in before if weight_of(self.layers[n]).shape[0] == x.shape[-1]]
            pairs.append((tuple(readers), norms or fitting))
        return pairs

    def _read(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: self.ran.append((name, args[0]))

    def _write(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, __, out: self.wrote.append((name, out))


def channels(module: nn.Module) -> int:
    """Channels of a module that ends in a factor for each (and perhaps a bias), 0 for any other."""
    own = dict(module.named_parameters(recurse=False))
    shapes = {p.shape for p in own.values()}
    fits = "weight" in own and own.keys() <= {"weight", "bias"} and len(shapes) == 1
    return len(own["weight"]) if fits and own["weight"].dim() == 1 else 0


def _holds(block: nn.Module, fold: Fold, call: Call, want: Tensor) -> bool:
    """Whether random positive scales, folded, leave the block's output as it was."""
    touched = [p for n in (fold.writer, *fold.readers) for p in block.get_submodule(n).parameters()]
    kept = [p.data for p in touched]
    inputs = weight_of(block.get_submodule(fold.readers[0])).shape[1]
    s = 2.0 ** torch.empty(inputs).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    try:
        for reader in fold.readers:
            set_weight(block.get_submodule(reader), weight_of(block.get_submodule(reader)) * s)
        effect = (call.run(block) - want).norm()
        _divide(block, fold.writer, s)
        error = (call.run(block) - want).norm()
    finally:
        for parameter, data in zip(touched, kept, strict=True):
            parameter.data = data
    return bool(error < _OF_OUTPUT * want.norm() and error < _OF_EFFECT * effect)
