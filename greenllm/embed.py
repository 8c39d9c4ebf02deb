"""Embeddings from an exported encoder; no torch needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from greenllm.errors import GreenError
from greenllm.generate import onnx_runner
from greenllm.tokens import Tokenizer, read_json

_UNKNOWN = 10**9  # tokenizers say that their model reads 10^30 tokens when they do not know


class Reader:
    """An encoder of texts that is loaded."""

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        self.directory = directory
        self._runner = onnx_runner(directory, threads)
        self.tokenizer = Tokenizer(directory)
        told = read_json(directory / "tokenizer_config.json").get("model_max_length")
        most = told if isinstance(told, int) and 0 < told < _UNKNOWN else self.tokenizer.context
        self.context = min(most, self.tokenizer.context)

    def vector(self, text: str | Sequence[int]) -> tuple[NDArray[np.float32], int]:
        """What it gives for a text, float32 [H], and the tokens that were read.

        Args:
            text: or its token ids, special ones included.

        Raises:
            GreenError: it is longer than the model reads, or gives NaN or infinity.
        """
        ids = list(self.tokenizer.inner.encode(text).ids) if isinstance(text, str) else list(text)
        if len(ids) > self.context or not ids:
            raise GreenError(f"The text has {len(ids)} tokens; this model reads 1 to {self.context}.", "Cut it.")
        found: NDArray[np.float32] = self._runner.encode([ids])[0]
        if not np.isfinite(found).all():
            raise GreenError("The model gives NaN or infinity for this text.", "Export it again from its checkpoint.")
        return found, len(ids)


class Embedder(Reader):
    """A sentence encoder that is loaded."""

    def embed(self, text: str | Sequence[int]) -> tuple[list[float], int]:
        """An embedding of length 1, and the tokens that were read.

        Raises:
            GreenError: see :meth:`Reader.vector`; or it has no direction.
        """
        found, read = self.vector(text)
        length = float(np.linalg.norm(found.astype(np.float64)))
        if length == 0:
            raise GreenError("The model gives no embedding of this text.")
        return (found.astype(np.float64) / length).astype(np.float32).tolist(), read
