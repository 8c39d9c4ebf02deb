"""What is said in a clip, from an exported transcriber; no torch needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from greenllm import audio, captions
from greenllm.errors import GreenError
from greenllm.generate import Settings, onnx_runner
from greenllm.tokens import Tokenizer


class Writer(ABC):
    """A decoder beside an encoder, loaded; in :class:`greenllm.answer.Answer` it stands where a text generator does.

    Raises:
        GreenError: it cannot be loaded, or hears another rate.
    """

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        self.directory = directory
        self.tokenizer = Tokenizer(directory)
        self.context = self.tokenizer.context
        self.reused = 0
        self.runner = onnx_runner(directory, threads)

    def answer(self, ids: Any, settings: Settings) -> Iterator[int | None]:
        """Tokens about a clip, float32 [samples], or an image, [C, H, W]; the one that ends them included."""
        most = self.most(ids)
        for token in self.runner.stream(ids, min(most, settings.max_tokens or most)):
            yield token
            if token in self.tokenizer.ends:
                break

    @abstractmethod
    def most(self, prompt: Any) -> int:
        """Tokens that may be written about a prompt."""


class Transcriber(Writer):
    """What writes what is said in a clip."""

    def most(self, prompt: Any) -> int:
        """See :class:`Writer`."""
        return audio.most_tokens(prompt)


def hears(directory: Path) -> bool:
    """Whether an exported model writes what it hears."""
    return (directory / audio.ENCODER).is_file() and not captions.sees(directory)


def check_asked(model: str, *, able: bool, clip: Path | None, prompt: str | None, others: bool) -> None:
    """Refuse what a model is not asked.

    Args:
        model: its name, for people.
        able: whether it hears.
        clip: the audio file.
        prompt: what else it is asked.
        others: whether options of text generators were given.

    Raises:
        GreenError: a clip for a model of text, or text for one that hears; or nothing at all.
    """
    way = f"greenllm run {model} --audio clip.wav" if able else f'greenllm run {model} "text"'
    if able and (prompt is not None or others):
        raise GreenError(f"{model} writes what it hears; it takes a clip alone.", f"Give it one: {way}.")
    if not able and clip is not None:
        raise GreenError(f"{model} does not hear: there is nothing that it does with {clip}.", f"Ask it: {way}.")
    if clip is None and prompt is None:
        raise GreenError(f"There is nothing for {model} to do.", f"Give it {'a clip' if able else 'a prompt'}: {way}.")
