"""A model that answers about images in PyTorch, as transformers has it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from greenllm import images, merge, tiles, vlm
from greenllm.bench.runners.clock import DECODER, PROJECTOR, VISION, Clock
from greenllm.bench.runners.torch import TorchDecoder
from greenllm.checkpoint import Checkpoint
from greenllm.export.vision import their_eye
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
    def _reads(self) -> tuple[Tokenizer, tiles.Eye]:
        return Tokenizer(self.info.directory), their_eye(self.info.directory)

    def see(self, file: str, said: str) -> vlm.Prompt:
        """A question about an image file, see :func:`greenllm.vlm.read`."""
        tokenizer, eye = self._reads
        return vlm.read(tokenizer, said, eye(images.opened(Path(file))), self._each)

    def _seen(self, batch: list[list[int]]) -> dict[str, torch.Tensor]:
        pixels = [p.pixels for p in batch if isinstance(p, vlm.Prompt) and p.pixels is not None]
        if not pixels:
            return {}
        return {"pixel_values": merge.fed(self.model, torch.from_numpy(np.stack(pixels))).to(self.model.device)}
