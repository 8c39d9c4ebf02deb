"""Models with a tower for images and one for texts (CLIP, SigLIP): how texts are read, what cosines mean. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from greenllm import artifact
from greenllm.errors import GreenError
from greenllm.tokens import Tokenizer

TASK = "zero-shot-image-classification"
TEXT = "text.onnx"  # the graph that reads; the one that sees is model.onnx
TEMPLATE = "a photo of a {}."  # what is read for a label
Vectors = NDArray[np.float32]


class Facts(BaseModel):
    """What the graphs do not say; ``details["pairs"]`` of a manifest.

    Attributes:
        length: tokens of a text at most, special ones included.
        whole: whether every text is padded to that, and the padding read, as it was when the model was trained.
        pad: the token that pads.
        scale: what a cosine is multiplied with.
        bias: what is added then; each text stands for itself where there is one, all compete where there is none.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    length: int = Field(ge=2, le=1 << 16)
    whole: bool
    pad: int = Field(ge=0)
    scale: float
    bias: float | None = None


def facts_of(directory: Path) -> Facts:
    """Those in the manifest of an export.

    Raises:
        GreenError: it has none, or none that make sense.
    """
    try:
        return Facts.model_validate(artifact.read(directory).manifest.details.get("pairs"))
    except ValidationError as e:
        what = e.errors()[0]
        raise GreenError(
            f"{directory / artifact.MANIFEST} does not say how texts are read and compared: {what['msg']}.",
            "Export it again from its checkpoint.",
        ) from e


class Reader:
    """Texts to tokens.

    Raises:
        GreenError: the directory has no tokenizer.
    """

    def __init__(self, directory: Path, facts: Facts) -> None:
        self.facts = facts
        self._tokenizer = Tokenizer(directory)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, special ones included.

        Raises:
            GreenError: one is empty, or longer than the model reads.
        """
        found = [list(e.ids) for e in self._tokenizer.inner.encode_batch(list(texts))]
        for text, ids in zip(texts, found, strict=True):
            if not text.strip():
                raise GreenError("An empty text cannot be compared with an image.")
            if len(ids) > self.facts.length:
                shown = text if len(text) <= 60 else f"{text[:60]}…"  # noqa: PLR2004 - of a line
                raise GreenError(
                    f"The text {shown!r} has {len(ids)} tokens; this model reads {self.facts.length}.", "Shorten it."
                )
        return found

    def feed(self, batch: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int64]]:
        """Inputs of the tower, int64 [B, T]."""
        length = self.facts.length if self.facts.whole else max(map(len, batch))
        ids = np.full((len(batch), length), self.facts.pad, np.int64)
        mask = np.full_like(ids, self.facts.whole)
        for i, tokens in enumerate(batch):
            ids[i, : len(tokens)] = tokens
            mask[i, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def said_of(labels: Sequence[str], template: str = TEMPLATE) -> list[str]:
    """The text that is read for each label.

    Raises:
        GreenError: fewer than two labels, one twice, or a template without a place for them.
    """
    found = [label.strip() for label in labels]
    if len(found) < 2 or len(set(found)) < len(found) or not all(found):  # noqa: PLR2004 - one label is no choice
        raise GreenError(
            f"{', '.join(map(repr, found)) or 'Nothing'}: these are no labels to choose from.",
            "Give two or more, each once.",
        )
    if template.count("{}") != 1:
        raise GreenError(f"{template!r} has no place for a label.", "Put {} there, once: 'a photo of a {}.'.")
    return [template.replace("{}", label) for label in found]


def unit(vectors: Any) -> Vectors:
    """Rows [N, H] of length 1."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), np.float32)


def probabilities(cosines: Vectors, facts: Facts) -> NDArray[np.float64]:
    """Of each text [N] for an image; they add up to 1 where texts compete."""
    logits = cosines.astype(np.float64) * facts.scale + (facts.bias or 0.0)
    if facts.bias is not None:
        return np.asarray(1 / (1 + np.exp(-logits)))
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())
