"""A model's own words, as samples for calibration or to learn from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from greenllm import gpu
from greenllm.checkpoint import Checkpoint
from greenllm.kinds import GENERATION
from greenllm.progress import Progress
from greenllm.step import BASE_BYTES, Estimate, flops_per_second

_CACHE = 200 << 20  # bytes of keys and values while the model speaks


@torch.no_grad()
def samples(checkpoint: Checkpoint, count: int, length: int, seed: int, progress: Progress) -> Tensor:
    """What the model says by itself, sampled at temperature 1 after its first token.

    Data-free calibration of LLM-QAT (Liu et al., 2023, arXiv:2305.17888, section 3.1). An encoder says nothing:
    it gets random tokens of its vocabulary.

    Returns:
        int64 [count, length].
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = int(checkpoint.config.vocab_size)
    if checkpoint.task != GENERATION:
        return torch.randint(vocabulary, (count, length), generator=generator)
    model = gpu.place(checkpoint.load_model())
    first = getattr(checkpoint.config, "bos_token_id", None)
    start = (
        torch.randint(vocabulary, (count, 1), generator=generator) if first is None else torch.full((count, 1), first)
    )
    rows = start.split(_rows_at_a_time(checkpoint, length))
    progress.stage("sampling calibration text", len(rows) * length)
    return torch.cat([_continue(model, r, length, generator, progress) for r in rows])


def _continue(model: Any, ids: Tensor, length: int, generator: torch.Generator, progress: Progress) -> Tensor:
    past = None
    for _ in range(length - 1):
        out = model(input_ids=gpu.place(ids[:, -1:]), past_key_values=past, use_cache=True)
        past = out.past_key_values
        ids = torch.cat([ids, _draw(out.logits[:, -1].float(), generator).to(ids.device)], 1)
        progress.advance()
    progress.advance()
    return ids


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token of each row's distribution, int64 [B, 1], by inverting its cumulative sum (multinomial is slow)."""
    sums = torch.softmax(logits, -1).cumsum(-1)
    u = torch.rand(len(logits), 1, generator=generator).to(sums.device) * sums[:, -1:]
    return torch.searchsorted(sums, u, right=True).clamp_max(logits.shape[1] - 1)


def _cache_bytes(checkpoint: Checkpoint, length: int) -> int:
    """Keys and values of one sample, float32."""
    c = checkpoint.config
    heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
    width = heads * (getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    return int(4 * 2 * c.num_hidden_layers * width * length)


def _rows_at_a_time(checkpoint: Checkpoint, length: int) -> int:
    room = torch.cuda.mem_get_info()[0] // 4 if gpu.kind() == "cuda" else _CACHE
    return max(1, room // _cache_bytes(checkpoint, length))


def estimate(checkpoint: Checkpoint, count: int, length: int) -> Estimate:
    """Time and memory of :func:`samples`: every token reads all weights and computes ``count`` rows."""
    if checkpoint.task != GENERATION:
        return Estimate(1, 0)
    rows = min(count, _rows_at_a_time(checkpoint, length))
    cache = _cache_bytes(checkpoint, length) * rows
    peak = BASE_BYTES + 4 * checkpoint.parameters + 1.2 * cache + 12 * rows * int(checkpoint.config.vocab_size)
    if gpu.kind() == "cuda":  # 0.13 s on an H200 with 2900 rows, see bench/gpu.md
        step = 0.03 + 2 * checkpoint.parameters * rows / 2e13 + 4 * cache / 3e12
    else:
        step = 4 * checkpoint.parameters / 6e9 + 2 * checkpoint.parameters * rows / flops_per_second() + 2 * cache / 6e9
    return Estimate(2 + length * -(-count // rows) * step, peak)
