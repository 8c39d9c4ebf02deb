"""One block at a time through a model that need not fit in memory.

Weights of a block are read when the walk reaches it and dropped when it leaves. What the walk has done is
committed to disk block by block, so that a killed run goes on at the next block, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from greenllm.blocks import forward, stacks_of
from greenllm.checkpoint import Checkpoint
from greenllm.progress import Progress, Silent

Batch = dict[str, Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]  # all that a block is called with after its hidden states
# (block's name, block with its weights in place, a function that runs it over all batches) -> tensors to keep
Visit = Callable[[str, nn.Module, Callable[[], None]], dict[str, Tensor]]


class Walk:
    """Hidden states of calibration batches on their way through the blocks of a checkpoint.

    Blocks may be of several lists, one after the other: a decoder's are called with what the encoder's last one gave;
    towers for images and texts know nothing of each other.

    Args:
        checkpoint: where weights come from.
        batches: model inputs, every one of the same shape; of an encoder-decoder they may differ.
        state: directory for committed work; what lies there is gone on with.
    """

    def __init__(self, checkpoint: Checkpoint, batches: list[Batch], state: Path) -> None:
        self.checkpoint = checkpoint
        self.batches = batches
        self.state = state
        self.model = checkpoint.skeleton()
        self.stacks = stacks_of(self.model)
        self.blocks = nn.ModuleList(block for _, stack in self.stacks for block in stack)
        self.names = [f"{prefix}.{i}" for prefix, stack in self.stacks for i in range(len(stack))]
        inside = tuple(f"{prefix}." for prefix, _ in self.stacks)
        every = (name for name, _ in self.model.named_parameters() if not name.startswith(inside))
        self.around = [name for name in every if name != f"{checkpoint.head}.weight"]  # no walk goes through the head
        for part in self.model.modules():
            if hasattr(part, "config"):  # a decoder beside an encoder may have its own
                part.config.use_cache = False
        self.calls: list[list[Call]] = []  # of each block of the list that is walked, batch by batch
        self.hidden: list[Tensor] = []
        self.ends: list[list[Tensor]] = []  # of each list that was walked: its last hidden states

    @torch.no_grad()
    def run(self, visit: Visit, progress: Progress | None = None) -> None:
        """Bring each block to ``visit``; commit what it returns; move the hidden states on.

        ``visit`` may change the block's weights in place: the next block sees what it left. Tensors that it
        returns may go on filling, by hooks it leaves on the block, until the hidden states have moved on.
        """
        progress = progress or Silent()
        done = self._resume()
        if done:
            progress.advance(done)
        first = 0
        for _, stack in self.stacks:
            last = first + len(stack)
            if done < last:
                self._record(stack)
            if done > first:
                self.hidden = self._stored(min(done, last))
            for i in range(max(done, first), last):
                self._visit(i, self.calls[i - first], visit)
                progress.advance()
            self.ends.append(self.hidden)
            first = last

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that was committed, block by block."""
        for i in range(len(self.blocks)):
            yield from load_file(self.state / f"block-{i}.safetensors").items()

    def written(self, notes: str) -> Iterator[tuple[str, Tensor]]:
        """The checkpoint's tensors, with those committed in their places; what ends in ``notes`` is no tensor of it."""
        done = set[str]()
        for name, tensor in self.tensors():
            if not name.endswith(notes):
                done.add(name)
                yield name, tensor
        for name in self.checkpoint.names():
            if name not in done:
                yield name, self.checkpoint.tensor(name)

    def forget(self) -> None:
        """Drop hidden states and weights; :meth:`tensors` needs neither."""
        self.hidden.clear()
        self.ends.clear()
        self.model.to("meta")

    @torch.no_grad()
    def head_inputs(self, head: nn.Module) -> Iterator[Tensor]:
        """Inputs of ``head`` (a module after the blocks) for each batch, [tokens, K]; after :meth:`run`."""
        caught: list[Tensor] = []

        def catch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            caught.append(args[0].flatten(0, -2))
            raise _StopForward

        handle = head.register_forward_pre_hook(catch)
        try:
            with self._awake():
                for j, batch in enumerate(self.batches):
                    with self._replaced(self._ended(j)), _until_stopped():
                        forward(self.model, batch)
                    yield caught.pop()
        finally:
            handle.remove()

    def _record(self, stack: nn.ModuleList) -> None:
        """Run the model with pass-through blocks to learn what each block of a list is called with."""
        self.hidden, self.calls = [], [[] for _ in stack]
        with self._awake():
            for j, batch in enumerate(self.batches):
                recorders = [PassThrough(b, stop=i == len(stack) - 1) for i, b in enumerate(stack)]
                with self._replaced([*self._ended(j), recorders]), _until_stopped():
                    forward(self.model, batch)
                self.hidden.append(recorders[0].hidden)
                for calls, recorder in zip(self.calls, recorders, strict=True):
                    # Texts have one shape and no padding: masks and positions are the same for every batch.
                    calls.append(calls[0] if calls and len(self.stacks) == 1 else recorder.call)

    def _ended(self, batch: int) -> list[list[PassThrough]]:
        """Stand-ins for the lists that were walked, which give what their last block gave."""
        return [
            [PassThrough(b, ends[batch]) for b in stack]
            for (_, stack), ends in zip(self.stacks, self.ends, strict=False)
        ]

    def _visit(self, i: int, calls: list[Call], visit: Visit) -> None:
        block = self.blocks[i]
        self._load(self.names[i])
        kept = visit(self.names[i], block, lambda: self._forward(block, calls, keep=False))
        self._forward(block, calls, keep=True)
        self._commit(i, kept)
        block.to("meta")

    def _load(self, name: str) -> None:
        for parameter, _ in list(self.model.named_parameters()):
            if parameter.startswith(name + "."):
                self.checkpoint.materialize(self.model, parameter)

    def _forward(self, block: nn.Module, calls: list[Call], *, keep: bool) -> None:
        for j, (hidden, (args, kwargs)) in enumerate(zip(self.hidden, calls, strict=True)):
            out = block(hidden, *args, **kwargs)
            if keep:
                self.hidden[j] = out[0] if isinstance(out, tuple) else out

    def _commit(self, i: int, kept: dict[str, Tensor]) -> None:
        """Block first, then hidden states: either file alone is no progress, both together are."""
        _save({k: v.contiguous() for k, v in kept.items()}, self.state / f"block-{i}.safetensors")
        _save(
            {f"{j:05d}": h.contiguous() for j, h in enumerate(self.hidden)}, self.state / f"hidden-{i + 1}.safetensors"
        )
        if self.names[i].endswith(".0") and i:
            return  # what the list before ended with is called for again when this one goes on
        (self.state / f"hidden-{i}.safetensors").unlink(missing_ok=True)

    def _stored(self, done: int) -> list[Tensor]:
        stored = load_file(self.state / f"hidden-{done}.safetensors")
        return [stored[name] for name in sorted(stored)]

    def _resume(self) -> int:
        """The number of blocks that lie committed and whole."""
        self.state.mkdir(parents=True, exist_ok=True)
        for i in range(len(self.blocks), 0, -1):
            blocks = (self.state / f"block-{j}.safetensors" for j in range(i))
            if (self.state / f"hidden-{i}.safetensors").exists() and all(b.exists() for b in blocks):
                return i
        return 0

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """With the weights around the blocks, embeddings and norms, in memory; between blocks they are not needed."""
        for name in self.around:
            self.checkpoint.materialize(self.model, name)
        try:
            yield
        finally:
            for name in self.around:
                module, _, leaf = name.rpartition(".")
                owner = self.model.get_submodule(module)
                setattr(owner, leaf, nn.Parameter(getattr(owner, leaf).to("meta"), requires_grad=False))

    @contextmanager
    def _replaced(self, stand_ins: list[list[PassThrough]]) -> Iterator[None]:
        """Put stand-ins into the first lists, as many as there are given."""
        places = [(stack, i, s) for (_, stack), row in zip(self.stacks, stand_ins, strict=False)
                  for i, s in enumerate(row)]  # fmt: skip
        real = [stack[i] for stack, i, _ in places]
        for stack, i, stand_in in places:
            stack[i] = stand_in
        try:
            yield
        finally:
            for (stack, i, _), block in zip(places, real, strict=True):
                stack[i] = block


class PassThrough(nn.Module):
    """Stands in for a block: notes what it was called with, returns its input or a given one."""

    def __init__(self, real: nn.Module, give: Tensor | None = None, *, stop: bool = False) -> None:
        super().__init__()
        object.__setattr__(self, "real", real)  # not a submodule: only its attributes are wanted
        self.give = give
        self.stop = stop
        self.hidden = torch.empty(0)
        self.call: Call = ((), {})

    def __getattr__(self, name: str) -> Any:
        """Some models ask a block for its attention type before they call it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "real"), name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What a block would be called with goes in, hidden states come out."""
        self.hidden = hidden
        self.call = (args, kwargs)
        if self.stop:
            raise _StopForward
        return hidden if self.give is None else self.give


class _StopForward(Exception):  # noqa: N818 - control flow, not an error
    """Raised when what was wanted has been seen."""


@contextmanager
def _until_stopped() -> Iterator[None]:
    try:
        yield
    except _StopForward:
        return


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    part = path.with_suffix(".part")
    save_file(tensors, part)
    part.replace(path)
