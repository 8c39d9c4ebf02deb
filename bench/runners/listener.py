"""Encoder and decoder in ONNX Runtime: one graph hears a clip, or sees an image; another writes about it. No torch."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort

from greenllm import audio, captions, images
from greenllm.bench.runners import Decoder, Info
from greenllm.errors import GreenError
from greenllm.tokens import start_of


class OnnxWriter(Decoder):
    """Two graphs as :mod:`greenllm.export.speech` makes them.

    Args:
        encoder: its one input to keys and values of each cross attention.
        decoder: ``input_ids``, own keys and values and those, to ``logits`` and own keys and values.
        info: of the model; its task is found here.

    Raises:
        GreenError: other inputs or outputs than greenllm's exports have.
    """

    task: ClassVar[str]
    takes: ClassVar[str]  # the encoder's input

    def __init__(self, encoder: ort.InferenceSession, decoder: ort.InferenceSession, info: Info) -> None:
        self.encoder, self.decoder = encoder, decoder
        self._given = [o.name.replace("present", "past_key_values", 1) for o in encoder.get_outputs()]
        inputs = {i.name: i for i in decoder.get_inputs()}
        outputs = {o.name: o for o in decoder.get_outputs()}
        self._presents = [n for n in outputs if n != "logits"]
        self._pasts = [n.replace("present", "past_key_values", 1) for n in self._presents]
        known = {"input_ids", *self._given, *self._pasts}
        if [i.name for i in encoder.get_inputs()] != [self.takes] or set(inputs) != known or "logits" not in outputs:
            raise GreenError(f"{info.directory}: a model of {self.task} with the inputs {sorted(inputs)} is not known.")
        self._empty = [_empty(inputs[n], info.directory) for n in self._pasts]
        vocabulary = outputs["logits"].shape[-1]
        self.info = replace(info, task=self.task, vocabulary=vocabulary if isinstance(vocabulary, int) else 0)
        self._start = start_of(info.directory)
        self._seen: dict[str, Any] = {}
        self._own: list[Any] = []

    def prefill(self, tokens: Any, answer: int) -> int:
        """Take in a prompt and write the first token; see :class:`greenllm.bench.runners.Runner`."""
        del answer  # the cache grows
        prompt = {self.takes: ort.OrtValue.ortvalue_from_numpy(tokens[None])}
        self._seen = dict(zip(self._given, self.encoder.run_with_ort_values(None, prompt), strict=True))
        self._own = self._empty
        return self.step(self._start)

    def step(self, token: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`.

        Raises:
            GreenError: the logits hold NaN or infinity.
        """
        ids = {"input_ids": ort.OrtValue.ortvalue_from_numpy(np.array([[token]]))}
        feed = ids | self._seen | dict(zip(self._pasts, self._own, strict=True))
        logits, *self._own = self.decoder.run_with_ort_values(["logits", *self._presents], feed)
        found = logits.numpy()
        if not np.isfinite(found).all():
            raise GreenError("Its logits hold NaN or infinity.")
        return int(found[0, -1].argmax())

    def logits(self, tokens: list[int]) -> Any:
        """Nothing is predicted without a prompt."""
        raise NotImplementedError(f"it has no logits without a clip or an image ({len(tokens)} tokens)")

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._seen, self._own = {}, []
        del self.encoder, self.decoder


class OnnxListener(OnnxWriter):
    """A transcriber.

    Raises:
        GreenError: see :class:`OnnxWriter`; or a model of another rate.
    """

    task = "automatic-speech-recognition"
    takes = "input_values"

    def __init__(self, encoder: ort.InferenceSession, decoder: ort.InferenceSession, info: Info) -> None:
        audio.check_rate(info.directory)
        super().__init__(encoder, decoder, info)


class OnnxCaptioner(OnnxWriter):
    """What writes what an image shows."""

    task = captions.TASK
    takes = "pixel_values"

    def prompt(self, file: str) -> images.Pixels:
        """See :class:`greenllm.bench.runners.Runner`."""
        shape = tuple(self.encoder.get_inputs()[0].shape[1:])
        return images.fitting(images.read([file], self._processor), shape, self.info.directory)[0]

    @cached_property
    def _processor(self) -> images.Processor:
        return images.Processor(self.info.directory)


def _empty(cache: Any, directory: Path) -> ort.OrtValue:
    """No keys or values yet: [1, heads, 0, width]."""
    _, heads, _, width = cache.shape
    if not isinstance(heads, int) or not isinstance(width, int):
        raise GreenError(f"{directory}: the graph does not say how many heads {cache.name} has and how wide they are.")
    return ort.OrtValue.ortvalue_from_numpy(np.zeros((1, heads, 0, width), np.float32))
