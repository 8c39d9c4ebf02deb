"""Which adapter is meant: by the options, or as the start that a meta-training learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from greenllm.adapt import adapters
from greenllm.adapt.methods import KINDS, Adapter, Method, lowest
from greenllm.blocks import stacks_of
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.kinds import GENERATION, SPEECH

META = "meta-train"  # the step in a start's manifest


@dataclass(frozen=True)
class Wanted:
    """What a user said of an adapter; None is the usual."""

    method: Method | None = None
    blocks: int | None = None
    rank: int | None = None


def choose(checkpoint: Checkpoint, wanted: Wanted, meta: Path | None = None) -> tuple[Adapter, int]:
    """The adapter, and of how many blocks it has the uppermost.

    Raises:
        GreenError: the model writes no text; or ``meta`` is no start, one of another model, or not as wanted.
    """
    if checkpoint.task not in (GENERATION, SPEECH):
        raise GreenError(f"{checkpoint.path} does {checkpoint.task}; adapters are for models that write texts.")
    count = len(stacks_of(checkpoint.skeleton())[-1][1])
    known = None if meta is None else _start(meta)
    method = wanted.method or (known.method if known else "lora")
    rank = wanted.rank or (known.rank if known else KINDS[method].rank)
    if checkpoint.task == SPEECH and method == "prefix":
        raise GreenError("A prefix stands before what is read; a transcriber hears.", "Take another --method.")
    first = lowest(method, wanted.blocks, count) if not known or wanted.blocks else known.first
    made = Adapter(
        method=method, first=first, rank=rank, base=str(checkpoint.path.resolve()),
        sha256=adapters.fingerprint(checkpoint.path),
    )  # fmt: skip
    if known and known.sha256 != made.sha256:
        raise GreenError(
            f"{meta} was learned on another model than {checkpoint.path}: their hashes differ.",
            "Learn a start on this one: greenllm meta-train.",
        )
    if known and (known.method, known.first, known.rank) != (made.method, made.first, made.rank):
        raise GreenError(
            f"{meta} starts {known.method} of rank {known.rank} from block {known.first} on, not {made.method} of rank "
            f"{made.rank} from block {made.first} on.",
            "Leave out --method, --blocks and --rank.",
        )
    return made, count - first


def _start(path: Path) -> Adapter:
    adapter, found = adapters.read(path)
    if not found.manifest.steps or found.manifest.steps[-1].step != META:
        raise GreenError(f"{path} is an adapter of one task, no start of several.", "Make one: greenllm meta-train.")
    return adapter
