"""A vision encoder in ONNX Runtime: pixels in, logits or a pooled state out. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from greenllm import images
from greenllm.bench.runners import Encoder, Info
from greenllm.errors import GreenError

TASKS = ("image-classification", "image-feature-extraction")


class OnnxVision(Encoder):
    """A graph with the one input ``pixel_values``.

    Args:
        session: the graph, loaded.
        info: of the model; its task is found here.

    Raises:
        GreenError: other inputs or outputs than greenllm's exports have.
    """

    def __init__(self, session: Any, info: Info) -> None:
        self.session = session
        inputs, outputs = session.get_inputs(), session.get_outputs()
        shape = inputs[0].shape[1:]
        if len(inputs) != 1 or len(shape) != 3 or not all(isinstance(n, int) for n in shape):  # noqa: PLR2004 - C, H, W
            names = [f"{i.name} {i.shape}" for i in inputs]
            raise GreenError(f"{info.directory}: a vision encoder with the inputs {names} is not known.")
        self._output = outputs[0].name
        classes = outputs[0].shape[-1] if self._output == "logits" else 0
        self.info = replace(info, task=TASKS[not classes], vocabulary=classes, image=tuple(shape))

    @cached_property
    def _processor(self) -> images.Processor:
        return images.Processor(self.info.directory)

    def encode(self, batch: Any) -> NDArray[np.float32]:
        """See :class:`greenllm.bench.runners.Runner`."""
        states = self.session.run([self._output], {"pixel_values": np.stack(batch)})[0]
        found: NDArray[np.float32] = images.vector(states)
        return found

    def pixels(self, files: Sequence[str]) -> images.Pixels:
        """See :class:`greenllm.bench.runners.Runner`."""
        return images.read(files, self._processor)

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        del self.session
