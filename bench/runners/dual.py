"""A model with a tower for images and one for texts in ONNX Runtime, a graph for each. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from greenllm.bench.runners import Info
from greenllm.bench.runners.clock import TEXT, VISION, Clock
from greenllm.bench.runners.vision import OnnxVision
from greenllm.errors import GreenError
from greenllm.pairs import TASK, Reader, facts_of


class OnnxDual(OnnxVision):
    """Two graphs as :mod:`greenllm.export.dual` makes them.

    Args:
        sight: ``pixel_values`` to ``image_embeds``.
        text: ``input_ids`` and ``attention_mask`` to ``text_embeds``.
        info: of the model; its task is found here.

    Raises:
        GreenError: other inputs or outputs than greenllm's exports have, or a manifest that says nothing of texts.
    """

    def __init__(self, sight: Any, text: Any, info: Info) -> None:
        super().__init__(sight, info)
        self.text = text
        inputs, outputs = {i.name for i in text.get_inputs()}, [o.name for o in text.get_outputs()]
        if inputs != {"input_ids", "attention_mask"} or [self._output, *outputs] != ["image_embeds", "text_embeds"]:
            raise GreenError(
                f"{info.directory}: a model of images and texts with the inputs {sorted(inputs)} and the outputs "
                f"{[self._output, *outputs]} is not known."
            )
        self.reader = Reader(info.directory, facts_of(info.directory))
        self.info = replace(self.info, task=TASK)
        self.clock = Clock(VISION, TEXT)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """See :meth:`greenllm.pairs.Reader.tokens`."""
        return self.reader.tokens(texts)

    def encode(self, batch: Any) -> NDArray[np.float32]:
        """Vectors of images (pixels) or of texts (tokens); see :class:`greenllm.bench.runners.Runner`."""
        if isinstance(batch[0], np.ndarray):
            with self.clock.of(VISION):
                return super().encode(batch)
        with self.clock.of(TEXT):
            found: NDArray[np.float32] = self.text.run(None, self.reader.feed(batch))[0]
        return found

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        super().close()
        del self.text
