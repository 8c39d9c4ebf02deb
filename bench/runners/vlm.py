"""A model that answers about images in ONNX Runtime: one graph sees, another reads and writes. No torch."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from greenllm import images, tiles, vlm
from greenllm.bench.runners.clock import DECODER, SIGHT, Clock
from greenllm.bench.runners.onnxruntime import OnnxDecoder
from greenllm.errors import GreenError
from greenllm.tokens import Tokenizer

SEEN = "image_embeds"


class OnnxSighted(OnnxDecoder):
    """Two graphs as :mod:`greenllm.export.vlm` makes them.

    Args:
        sight: ``pixel_values`` to ``image_embeds`` [B, N, H].
        session: a decoder that takes these, for N tokens or for none.
        directory: of both.

    Raises:
        GreenError: other inputs or outputs than greenllm's exports have.
    """

    known = OnnxDecoder.known | {SEEN}

    def __init__(self, sight: ort.InferenceSession, session: ort.InferenceSession, directory: Path) -> None:
        super().__init__(session, directory)
        self.sight = sight
        self.clock = Clock(SIGHT, DECODER)
        (given, *more), (found, *others) = sight.get_inputs(), sight.get_outputs()
        _, self._each, self._width = found.shape
        taken = self._inputs[SEEN].shape if SEEN in self._inputs else []
        named = (given.name, found.name) == ("pixel_values", SEEN) and not more and not others
        if not named or not isinstance(self._each, int) or taken[2:] != [self._width]:
            raise GreenError(
                f"{directory}: {vlm.SIGHT} gives {found.name} {found.shape}, model.onnx takes {SEEN} {taken}: they do "
                "not belong together."
            )
        read = sum(f.stat().st_size for f in directory.glob("model.onnx*"))  # by a token: nothing of what sees
        self.info = replace(self.info, task=vlm.TASK, weights=read)
        self._pixels = tuple(given.shape[1:])

    @cached_property
    def _reads(self) -> tuple[Tokenizer, tiles.Eye]:
        return Tokenizer(self.info.directory), tiles.eye(self.info.directory)

    def see(self, file: str, said: str) -> vlm.Prompt:
        """A question about an image file, see :func:`greenllm.vlm.read`."""
        tokenizer, eye = self._reads
        seen = eye(images.opened(Path(file)))
        images.fitting(seen.pixels, self._pixels, self.info.directory)
        return vlm.read(tokenizer, said, seen, self._each)

    def _feed(self, batch: list[list[int]], *, every: bool) -> dict[str, ort.OrtValue]:
        return super()._feed(batch, every=every) | {SEEN: ort.OrtValue.ortvalue_from_numpy(self._seen(batch))}

    def _compute(self, feed: dict[str, ort.OrtValue]) -> list[ort.OrtValue]:
        with self.clock.of(DECODER):
            return super()._compute(feed)

    def _seen(self, batch: list[list[int]]) -> NDArray[np.float32]:
        """Vectors of the images of prompts, all parts of each [B, P N, H]; none where they have none.

        One part at a time: of 13 tiles in SmolVLM-256M's shape the peak is 0.5 GB, together 1.2, and they take no less
        time so (1.9 s of one core a tile against 2.0, ONNX Runtime 1.32, 4 bits).
        """
        pixels = [p.pixels for p in batch if isinstance(p, vlm.Prompt) and p.pixels is not None]
        if not pixels:
            return np.zeros((len(batch), 0, self._width), np.float32)
        with self.clock.of(SIGHT):
            found = [[self.sight.run([SEEN], {"pixel_values": part[None]})[0] for part in parts] for parts in pixels]
        return np.concatenate([np.concatenate(vectors, 1) for vectors in found])

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        super().close()
        del self.sight
