"""Which blocks a model needs least.

Block influence: ShortGPT, Men et al., 2024, arXiv:2403.03853, section 3.1 (equation 1): how far a block turns the
hidden states that go through it. Perplexity: Shortened LLaMA, Kim et al., 2024, arXiv:2402.02834, section 3.1
("PPL"): how much worse the model predicts text without the block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from greenllm.blocks import blocks_of
from greenllm.checkpoint import Checkpoint
from greenllm.progress import Progress
from greenllm.walk import PassThrough, Walk

_TOKENS = 512  # at a time, with the hidden states between all blocks


def turned(before: Tensor, after: Tensor) -> Tensor:
    """Block influence of each token: 1 - cosine of its states [..., d] before and after a block."""
    return 1 - nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)


def influence(checkpoint: Checkpoint, batches: list[Tensor], work: Path, progress: Progress) -> list[float]:
    """Block influence of each block, from 0 (changes nothing) to 2.

    Args:
        checkpoint: dense.
        batches: token ids, int64 [B, T] each.
        work: directory for committed work.
        progress: advanced by 1 a block.
    """
    walk = Walk(checkpoint, [{"input_ids": b} for b in batches], work)
    progress.stage("how far each block turns its states", len(walk.blocks))

    def visit(name: str, block: nn.Module, __: Callable[[], None]) -> dict[str, Tensor]:
        total = torch.zeros(2, dtype=torch.float64)  # sum and count; filled while the walk moves on

        def add(_: nn.Module, args: tuple[Any, ...], ___: dict[str, Any], out: Any) -> None:
            found = turned(args[0], out[0] if isinstance(out, tuple) else out)
            total.add_(torch.tensor([float(found.double().sum()), found.numel()], dtype=torch.float64))

        block.register_forward_hook(add, with_kwargs=True)
        return {name: total}

    walk.run(visit, progress)
    return [float(t[0] / t[1]) for _, t in walk.tensors()]


@torch.no_grad()
def perplexity_drop(checkpoint: Checkpoint, batches: list[Tensor], work: Path, progress: Progress) -> list[float]:
    """By how much log perplexity (nats a token) rises without each block; the arguments are those above.

    What came before a block is the same with and without it, and computed once.
    """
    parts = [p for b in batches for p in b.split(max(1, _TOKENS // b.shape[1]))]
    model: Any = checkpoint.load_model()
    model.config.use_cache = False
    _, blocks = blocks_of(model)
    progress.stage("perplexity without each block", len(parts))
    work.mkdir(parents=True, exist_ok=True)
    file = work / "perplexity.json"
    done: list[list[float]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    progress.advance(len(done))
    for ids in parts[len(done) :]:
        with _inputs(blocks) as inputs:
            whole = _nats(model, ids)
        done.append([])
        for i in range(len(blocks)):
            with _without(blocks, i, inputs[i]):
                done[-1].append(_nats(model, ids) - whole)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(done), encoding="utf-8")
        part.replace(file)
        progress.advance()
    tokens = [p.numel() for p in parts]
    return [sum(d[i] * n for d, n in zip(done, tokens, strict=True)) / sum(tokens) for i in range(len(blocks))]


def _nats(model: Any, ids: Tensor) -> float:
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1).float()
    return float(nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))


@contextmanager
def _inputs(blocks: nn.ModuleList) -> Iterator[list[Tensor]]:
    """Note the hidden states that each block is called with."""
    found: list[Tensor] = []
    handles = [b.register_forward_pre_hook(lambda _, args: found.append(args[0])) for b in blocks]
    try:
        yield found
    finally:
        for h in handles:
            h.remove()


@contextmanager
def _without(blocks: nn.ModuleList, i: int, hidden: Tensor) -> Iterator[None]:
    """Leave out block ``i``, given the states that reach it."""
    real = list(blocks)[: i + 1]
    for j, block in enumerate(real):
        blocks[j] = PassThrough(block, hidden)
    try:
        yield
    finally:
        for j, block in enumerate(real):
            blocks[j] = block
