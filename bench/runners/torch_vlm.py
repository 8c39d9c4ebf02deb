"""A model that answers about images in PyTorch, as transformers has it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch

from greenllm import images, merge, vlm
from greenllm.bench.runners.clock import DECODER, PROJECTOR, VISION, Clock
from greenllm.bench.runners.torch import TorchDecoder
from greenllm.checkpoint import Checkpoint
from greenllm.export.vision import processor_of
from greenllm.export.vlm import each
from greenllm.tokens import Tokenizer


class TorchSighted(TorchDecoder):
    """Images are prepared by transformers' own processor, texts by the checkpoint's ``tokenizer.json``."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        super().__init__(checkpoint, model)
        self._each = each(checkpoint)
        self.clock = Clock(VISION, PROJECTOR, DECODER)
        for part, module in zip((VISION, PROJECTOR, DECODER), merge.towers(model), strict=True):
            self.clock.watch(part, module)
        self.clock.watch(DECODER, model.get_output_embeddings())

    @cached_property
    def _reads(self) -> tuple[Tokenizer, Any]:
        return Tokenizer(self.info.directory), processor_of(self.info.directory)

    def see(self, file: str, said: str) -> vlm.Prompt:
        """A question about an image file, see :func:`greenllm.vlm.read`."""
        tokenizer, processor = self._reads
        return vlm.read(tokenizer, said, images.read([file], processor)[0], self._each)

    def _seen(self, batch: list[list[int]]) -> dict[str, torch.Tensor]:
        pixels = [p.pixels for p in batch if isinstance(p, vlm.Prompt) and p.pixels is not None]
        return {"pixel_values": torch.from_numpy(np.stack(pixels)).to(self.model.device)} if pixels else {}
