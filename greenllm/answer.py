"""From tokens to text: an answer comes in pieces that are whole characters, and ends at a stop string."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from greenllm import template
from greenllm.generate import Model, Settings, load, prompt_of


class Answer:
    """An answer on its way: iterate over it once; what is known about it grows meanwhile.

    Iterating gives pieces of text; an empty one is a moment to stop at, while the prompt is read or a character is
    not whole.

    Attributes:
        prompt_tokens: length of the prompt.
        reused: how many of them were in the cache.
        tokens: the answer's tokens so far, the one that ends it included.
        text: its text so far.
        finish: "stop" (it ended by itself or at a stop string), "length" (it was cut), None before that.
        reading, writing: seconds that the prompt and the answer took.
    """

    def __init__(self, model: Model, ids: Sequence[int], settings: Settings, stops: Sequence[str] = ()) -> None:
        self._model, self._ids, self._settings, self._stops = model, ids, settings, stops
        self.prompt_tokens = len(ids)
        self.reused = 0
        self.tokens: list[int] = []
        self.text = ""
        self.finish: Literal["stop", "length"] | None = None
        self.reading = self.writing = 0.0

    def __iter__(self) -> Iterator[str]:
        """Pieces of text."""
        held = ""
        for piece in self._pieces():
            if not piece:
                yield ""
                continue
            whole, held, stopped = hold(held + piece, self._stops)
            self.text += whole
            if stopped:
                self.finish, held = "stop", ""
            yield whole
            if stopped:
                break
        if held:
            self.text += held
            yield held
        self.finish = self.finish or ("stop" if self.tokens and self.tokens[-1] in self._ends else "length")

    @property
    def _ends(self) -> set[int]:
        return self._model.tokenizer.ends

    def _pieces(self) -> Iterator[str]:
        from tokenizers.decoders import DecodeStream

        tokenizer = self._model.tokenizer
        decoder = DecodeStream(skip_special_tokens=True)
        begin = time.perf_counter()
        given = 0  # characters
        for token in self._model.answer(self._ids, self._settings):
            self.reused = self._model.reused
            now = time.perf_counter()
            if token is None:
                self.reading = now - begin
                yield ""
                continue
            if not self.tokens:
                self.reading = now - begin  # the first token comes of the prompt
            self.writing = now - begin - self.reading
            self.tokens.append(token)
            piece = decoder.step(tokenizer.inner, token) or ""
            given += len(piece)
            yield piece
        yield tokenizer.words(self.tokens)[given:]  # a character that never became whole


def stream(
    model: str | Path,
    prompt: str,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    raw: bool = False,
    threads: int | None = None,
) -> Iterator[str]:
    """Yield the answer piece by piece.

    Args:
        model: an artifact, or an ORT-GenAI or ONNX directory.
        prompt: the question, put into the model's chat template where it has one, unless ``raw``.
        max_tokens: length of the answer at most, in tokens.
        temperature: 0 takes the likeliest token; above, tokens are sampled.
        raw: give the prompt as it is.
        threads: CPU threads; None leaves it to the runtime.

    Raises:
        GreenError: no such model, one that cannot generate, or a prompt longer than its context.
    """
    loaded = load(model, threads=threads)
    plain = raw or template.template(loaded.directory) is None
    ids = loaded.tokenizer.text(prompt) if plain else prompt_of(loaded, [{"role": "user", "content": prompt}])
    yield from filter(None, Answer(loaded, ids, Settings(max_tokens, temperature)))


def hold(text: str, stops: Sequence[str]) -> tuple[str, str, bool]:
    """What of a text may be shown, what must wait because a stop string may begin in it, and whether one was there."""
    found = [at for at in (text.find(s) for s in stops) if at >= 0]
    if found:
        return text[: min(found)], "", True
    waits = max((n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - waits], text[len(text) - waits :], False
