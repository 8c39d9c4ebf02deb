"""A model with a tower for images and one for texts in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from greenllm.bench.runners.clock import TEXT, VISION, Clock
from greenllm.bench.runners.torch import TorchVision
from greenllm.checkpoint import Checkpoint
from greenllm.export import dual
from greenllm.pairs import Reader


class TorchDual(TorchVision):
    """Images are prepared by transformers' own processor, texts by the checkpoint's ``tokenizer.json``."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        super().__init__(checkpoint, model)
        self.reader = Reader(checkpoint.path, dual.facts(checkpoint, model))
        self.clock = Clock(VISION, TEXT)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """See :meth:`greenllm.pairs.Reader.tokens`."""
        return self.reader.tokens(texts)

    @torch.no_grad()
    def encode(self, batch: Any) -> NDArray[np.float32]:
        """Vectors of images (pixels) or of texts (tokens); see :class:`greenllm.bench.runners.Runner`."""
        if isinstance(batch[0], np.ndarray):
            with self.clock.of(VISION):
                return dual.features(self.model, {"pixel_values": torch.from_numpy(np.stack(batch))}).numpy()
        with self.clock.of(TEXT):
            return dual.features(self.model, dual.tensors(self.reader.feed(batch))).numpy()
