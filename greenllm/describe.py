"""What an image shows, in words, from an exported model that writes; no torch needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from greenllm import captions
from greenllm.errors import GreenError
from greenllm.transcribe import Writer


def check_asked(model: str, image: Path | None, *, others: bool) -> Path:
    """The image that a model is to write about.

    Args:
        model: its name, for people.
        image: the file.
        others: whether something else was asked or set.

    Raises:
        GreenError: there is none, or more was asked.
    """
    way = f"greenllm run {model} --image photo.jpg"
    if others:
        raise GreenError(f"{model} writes what an image shows; it takes an image alone.", f"Give it one: {way}.")
    if image is None:
        raise GreenError(f"There is nothing for {model} to do.", f"Give it an image: {way}.")
    return image


class Describer(Writer):
    """A model that writes about images; prompted with what :meth:`seen` gives.

    Raises:
        GreenError: it cannot be loaded.
    """

    def seen(self, image: Path) -> Any:
        """An image file as the model takes it, float32 [C, H, W].

        Raises:
            GreenError: it is damaged, or the model's files do not say how to make it pixels.
        """
        return self.runner.prompt(str(image))

    def most(self, prompt: Any) -> int:
        """See :class:`greenllm.transcribe.Writer`."""
        del prompt  # an image is as long as any other
        return captions.most_tokens(self.directory)
