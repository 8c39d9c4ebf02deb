"""Clips and what is said in them, to learn from: of a transcriber only what writes learns, what hears is as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from greenllm import audio, script
from greenllm.adapt.shots import Choice, Heard, Shot
from greenllm.adapt.upper import Upper
from greenllm.bench.tasks.items import Utterance
from greenllm.checkpoint import Checkpoint
from greenllm.errors import GreenError
from greenllm.export.device.run import Script
from greenllm.features import Features
from greenllm.tokens import Tokenizer


def encode(items: Sequence[Any], checkpoint: Checkpoint) -> list[Shot]:
    """Clips as a transcriber hears them, and their texts in its tokens.

    Raises:
        GreenError: these are no clips, one is longer than is heard at once, or a text longer than is written.
    """
    if not all(isinstance(i, Utterance) for i in items):
        raise GreenError(
            f"{checkpoint.path} writes what it hears; these samples are no clips.",
            'Give rows {"audio": "clip.wav", "text": "…"}.',
        )
    hear, words, asked = Features(checkpoint), Tokenizer(checkpoint.path), script.of(checkpoint.path)
    return [_encode(i, hear, words, asked) for i in items]


def _encode(item: Utterance, hear: Features, words: Tokenizer, asked: Script) -> Shot:
    clip = audio.read(item.file)
    if asked.window and len(clip) > asked.window:
        raise GreenError(
            f"{item.where}: {item.file.name} lasts {len(clip) / audio.RATE:.0f} s; the model hears "
            f"{asked.window // audio.RATE} s at once.",
            "Cut it.",
        )
    begun = [*asked.start, *asked.languages[:1], *asked.after]
    said = [*_written(words, item.text), *asked.ends[:1]]
    most = (asked.room or words.context) - len(begun)
    if len(said) > most:
        raise GreenError(f"{item.where}: the text has {len(said)} tokens; the model writes {most}.", "Shorten it.")
    heard = Heard(hear(clip), asked.languages, len(asked.start))
    return Shot(((*begun, *said[:-1]),), (Choice(0, len(begun), tuple(said)),), 0, heard)


def _written(words: Tokenizer, text: str) -> list[int]:
    """A text as it stands among others: some vocabularies have the blank in the word, some add it themselves."""
    return min((words.plain(t) for t in (" " + text.strip(), text.strip())), key=len)


class Spoken(Upper):
    """A transcriber and its shots; what its encoder says of each clip is computed once and kept."""

    def __init__(self, model: Any, first: int, shots: Sequence[Shot]) -> None:
        with torch.no_grad():
            self._states = [model.get_encoder()(**s.heard.features) for s in shots if s.heard]
        self.model = model
        super().__init__(model, first, [self._named(i, s) for i, s in enumerate(shots)])

    @torch.no_grad()
    def _named(self, index: int, shot: Shot) -> Shot:
        """The same with the language that the model hears, where it knows several."""
        if not (shot.heard and shot.heard.languages):
            return shot
        (text,), at = shot.texts, shot.heard.at
        logits = self.model(**self._given([index], torch.tensor([text[:at]]))).logits[0, -1]
        language = max(shot.heard.languages, key=lambda t: float(logits[t]))
        return replace(shot, texts=((*text[:at], language, *text[at + 1 :]),))

    def _given(self, chosen: Sequence[int], ids: Tensor) -> dict[str, Any]:
        (one,) = chosen
        return {"encoder_outputs": self._states[one], "decoder_input_ids": ids}

    def portions(self, chosen: Sequence[int]) -> Iterator[list[int]]:
        """One at a time: clips have lengths of their own."""
        return ([i] for i in chosen)


def positions(heard: Heard) -> int:
    """Of the encoder, about: fifty a second."""
    (found,) = heard.features.values()
    return int(found.shape[-1] // (2 if found.dim() > 2 else audio.RATE // 50))  # noqa: PLR2004 - a spectrum
