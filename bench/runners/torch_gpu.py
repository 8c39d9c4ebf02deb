"""PyTorch on an NVIDIA GPU: a text generator in a type of choice, its steps compiled or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import StaticCache

from greenllm.bench.runners import Runner, Where
from greenllm.bench.runners.torch import TorchDecoder
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.kinds import GENERATION

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_ROOM = 256  # tokens: a fixed cache has a multiple of them


def on_gpu(checkpoint: Checkpoint, model: Any, where: Where) -> Runner:
    """A text generator on the GPU.

    Raises:
        GreenError: no GPU that torch uses, or another kind of model.
    """
    if not torch.cuda.is_available():
        raise GreenError(f"torch {torch.__version__} finds no NVIDIA GPU here.", "Leave gpu: away for the CPU.")
    if checkpoint.task != GENERATION:
        raise GreenError(f"{checkpoint.path}: on a GPU this bench runs text generators in torch, no {checkpoint.task}.")
    own = getattr(checkpoint.config, "dtype", None) or torch.float32
    model = model.to("cuda", _TYPES.get(where.dtype, own))
    made = (CompiledDecoder if where.compiled else TorchDecoder)(checkpoint, model)
    made.info = replace(made.info, gpu=True, notes=[*made.info.notes, f"on {torch.cuda.get_device_name()}"])
    return made


class CompiledDecoder(TorchDecoder):
    """The same with a cache of fixed size, whose steps are compiled into one graph of the GPU; prompts are not."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        super().__init__(checkpoint, model)
        self.info = replace(self.info, notes=[*self.info.notes, "torch.compile, reduce-overhead, static cache"])
        self._made = (0, 0)
        self._step = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)

    def prefill_all(self, batch: list[list[int]], answer: int) -> list[int]:
        """See :class:`greenllm.bench.runners.Batched`."""
        need = len(batch[0]) + answer
        rows, room = self._made
        if rows != len(batch) or room < need:
            self._made = rows, room = len(batch), -(-need // _ROOM) * _ROOM
            self._cache = StaticCache(config=self.model.config, max_cache_len=room)
        self._cache.reset()
        return self._run(self.model, batch)

    def step_all(self, tokens: list[int]) -> list[int]:
        """See :class:`greenllm.bench.runners.Batched`."""
        return self._run(self._step, [[t] for t in tokens])

    @torch.no_grad()
    def _run(self, forward: Any, batch: list[list[int]]) -> list[int]:
        ids = torch.tensor(batch, device=self.model.device)
        out = forward(input_ids=ids, past_key_values=self._cache, use_cache=True, **self._last)
        found: list[int] = out.logits[:, -1].argmax(-1).tolist()
        return found

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """See :class:`greenllm.bench.runners.Runner`; what is compiled keeps its cache."""
        kept, found = self._cache, super().logits(tokens)
        self._cache = kept
        return found
