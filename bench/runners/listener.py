"""A transcriber in ONNX Runtime: one graph hears a clip, another writes its words. No torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from greenllm import audio
from greenllm.bench.runners import Decoder, Info
from greenllm.errors import GreenError
from greenllm.tokens import read_json

_TASK = "automatic-speech-recognition"


class OnnxListener(Decoder):
    """Two graphs as :mod:`greenllm.export.speech` makes them.

    Args:
        encoder: ``input_values`` to keys and values of each cross attention.
        decoder: ``input_ids``, own keys and values and those, to ``logits`` and own keys and values.
        info: of the model; its task is found here.

    Raises:
        GreenError: other inputs or outputs than greenllm's exports have, or a model of another rate.
    """

    def __init__(self, encoder: ort.InferenceSession, decoder: ort.InferenceSession, info: Info) -> None:
        audio.check_rate(info.directory)
        self.encoder, self.decoder = encoder, decoder
        self._given = [o.name.replace("present", "past_key_values", 1) for o in encoder.get_outputs()]
        inputs = {i.name: i for i in decoder.get_inputs()}
        outputs = {o.name: o for o in decoder.get_outputs()}
        self._presents = [n for n in outputs if n != "logits"]
        self._pasts = [n.replace("present", "past_key_values", 1) for n in self._presents]
        known = {"input_ids", *self._given, *self._pasts}
        if (
            [i.name for i in encoder.get_inputs()] != ["input_values"]
            or set(inputs) != known
            or "logits" not in outputs
        ):
            raise GreenError(f"{info.directory}: a transcriber with the inputs {sorted(inputs)} is not known.")
        self._empty = [_empty(inputs[n], info.directory) for n in self._pasts]
        vocabulary = outputs["logits"].shape[-1]
        self.info = replace(info, task=_TASK, vocabulary=vocabulary if isinstance(vocabulary, int) else 0)
        self._start = _start(info.directory)
        self._heard: dict[str, Any] = {}
        self._own: list[Any] = []

    def prefill(self, tokens: Any, answer: int) -> int:
        """Hear a clip, float32 [samples], and write the first token; see :class:`greenllm.bench.runners.Runner`."""
        del answer  # the cache grows
        clip = {"input_values": ort.OrtValue.ortvalue_from_numpy(tokens[None])}
        self._heard = dict(zip(self._given, self.encoder.run_with_ort_values(None, clip), strict=True))
        self._own = self._empty
        return self.step(self._start)

    def step(self, token: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`.

        Raises:
            GreenError: the logits hold NaN or infinity.
        """
        ids = {"input_ids": ort.OrtValue.ortvalue_from_numpy(np.array([[token]]))}
        feed = ids | self._heard | dict(zip(self._pasts, self._own, strict=True))
        logits, *self._own = self.decoder.run_with_ort_values(["logits", *self._presents], feed)
        found = logits.numpy()
        if not np.isfinite(found).all():
            raise GreenError("Its logits hold NaN or infinity.")
        return int(found[0, -1].argmax())

    def logits(self, tokens: list[int]) -> Any:
        """Nothing is predicted without a clip."""
        raise NotImplementedError(f"a transcriber has no logits without a clip ({len(tokens)} tokens)")

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._heard, self._own = {}, []
        del self.encoder, self.decoder


def _empty(cache: Any, directory: Path) -> ort.OrtValue:
    """No keys or values yet: [1, heads, 0, width]."""
    _, heads, _, width = cache.shape
    if not isinstance(heads, int) or not isinstance(width, int):
        raise GreenError(f"{directory}: the graph does not say how many heads {cache.name} has and how wide they are.")
    return ort.OrtValue.ortvalue_from_numpy(np.zeros((1, heads, 0, width), np.float32))


def _start(directory: Path) -> int:
    """The token that a transcript begins with."""
    for file in ("config.json", "generation_config.json"):
        if isinstance(told := read_json(directory / file).get("decoder_start_token_id"), int):
            return told
    raise GreenError(f"{directory}: no decoder_start_token_id in config.json: where does a transcript begin?")
