"""A decoder beside an encoder: what those in torch and in ONNX Runtime have in common, and the latter. No torch.

One graph hears a clip, or sees an image; another writes about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from greenllm import audio, captions, images, script
from greenllm.bench.runners import Decoder, Info
from greenllm.bench.runners.clock import DECODER, ENCODER, Clock
from greenllm.errors import GreenError
from greenllm.export.device import run

if TYPE_CHECKING:
    import onnxruntime as ort


class Scribe(run.Scribe, Decoder):
    """A prompt is a clip, float32 [samples], or an image, [C, H, W].

    A long clip is heard window by window, its first alone by ``prefill``.
    """

    def prefill(self, tokens: Any, answer: int) -> int:
        """Take in a window or an image and write the first token; see :class:`greenllm.bench.runners.Runner`."""
        del answer  # the cache grows
        return int(self.begin(tokens).argmax())

    def step(self, token: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`."""
        return int(self.follow(token).argmax())

    def stream(self, tokens: Any, answer: int) -> Iterator[int]:
        """See :class:`greenllm.bench.runners.Runner`."""
        return self.write(tokens, answer)

    def logits(self, tokens: list[int]) -> Any:
        """Nothing is predicted without a prompt."""
        raise NotImplementedError(f"it has no logits without a clip or an image ({len(tokens)} tokens)")


def finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same.

    Raises:
        GreenError: they hold NaN or infinity.
    """
    if not np.isfinite(logits).all():
        raise GreenError("Its logits hold NaN or infinity.")
    return logits


class OnnxWriter(run.Listener, Scribe):
    """Two graphs as :mod:`greenllm.export.speech` makes them.

    Args:
        encoder: a clip or an image to keys and values of each cross attention.
        decoder: ``input_ids``, own keys and values and those, to ``logits`` and own keys and values.
        info: of the model.
        task: what it does.
        asked: how it writes.
    """

    def __init__(self, encoder: Any, decoder: Any, info: Info, task: str, asked: run.Script) -> None:
        super().__init__(encoder, decoder, asked)
        vocabulary = next(o.shape[-1] for o in decoder.get_outputs() if o.name == "logits")
        self.info = replace(info, task=task, vocabulary=vocabulary if isinstance(vocabulary, int) else 0)
        self.clock = Clock(ENCODER, DECODER)

    def hear(self, sound: NDArray[np.float32]) -> None:
        """See :class:`greenllm.export.device.run.Scribe`."""
        with self.clock.of(ENCODER):
            super().hear(sound)

    def feed(self, ids: list[int]) -> NDArray[np.float32]:
        """See :class:`greenllm.export.device.run.Scribe`.

        Raises:
            GreenError: the logits hold NaN or infinity.
        """
        with self.clock.of(DECODER):
            return finite(super().feed(ids))

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._heard, self._own = {}, []
        del self._encoder, self._decoder


class OnnxListener(OnnxWriter):
    """A transcriber.

    Raises:
        GreenError: other inputs or outputs than greenllm's exports have, or a model of another rate.
    """

    def __init__(self, encoder: ort.InferenceSession, decoder: ort.InferenceSession, info: Info) -> None:
        audio.check_rate(info.directory)
        asked = script.of(info.directory)
        _check(encoder, decoder, info, (audio.WINDOW, asked.window) if asked.window else ("input_values", None))
        super().__init__(encoder, decoder, info, script.TASK, asked)


class OnnxCaptioner(OnnxWriter):
    """What writes what an image shows.

    Raises:
        GreenError: other inputs or outputs than greenllm's exports have.
    """

    def __init__(self, encoder: ort.InferenceSession, decoder: ort.InferenceSession, info: Info) -> None:
        _check(encoder, decoder, info, ("pixel_values", None))
        super().__init__(encoder, decoder, info, captions.TASK, captions.script(info.directory))

    def view(self, file: str) -> images.Pixels:
        """See :class:`greenllm.bench.runners.Runner`."""
        shape = tuple(self._encoder.get_inputs()[0].shape[1:])
        return images.fitting(images.read([file], self._processor), shape, self.info.directory)[0]

    @cached_property
    def _processor(self) -> images.Processor:
        return images.Processor(self.info.directory)


def _check(
    encoder: ort.InferenceSession, decoder: ort.InferenceSession, info: Info, takes: tuple[str, int | None]
) -> None:
    """Refuse graphs that do not fit together, or take another input than this name and width (None: any)."""
    prompts, inputs = encoder.get_inputs(), {i.name: i for i in decoder.get_inputs()}
    given = {o.name.replace("present", "past_key_values", 1) for o in encoder.get_outputs()}
    outputs = {o.name for o in decoder.get_outputs()}
    own = {n.replace("present", "past_key_values", 1) for n in outputs - {"logits"}}
    name, width = takes
    fits = [p.name for p in prompts] == [name] and width in (None, prompts[0].shape[-1])
    if not fits or set(inputs) != {"input_ids", *given, *own} or "logits" not in outputs:
        raise GreenError(f"{info.directory}: a model of {name} with the inputs {sorted(inputs)} is not known.")
    for cache in sorted(own):
        _, heads, _, width = inputs[cache].shape
        if not isinstance(heads, int) or not isinstance(width, int):
            raise GreenError(
                f"{info.directory}: the graph does not say how many heads {cache} has and how wide they are."
            )
