"""Runners: one small protocol over the engines that run a model. Each lives in a process of its own.

To add an engine, write a module here with a ``load`` and name it in :data:`RUNNERS`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from greenllm.bench.runners.clock import Clock
from greenllm.classes import TASK
from greenllm.errors import GreenError

RUNNERS = ("torch", "onnxruntime", "genai", "llamacpp", "openvino", "tensorrt")
GPU_RUNNERS = ("torch", "onnxruntime")  # that run on the CPU unless they are asked for the GPU
_TYPES = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Where:
    """What computes: the CPU, or an NVIDIA GPU.

    Attributes:
        gpu: whether it is the GPU.
        dtype: that torch computes in there, "fp32", "fp16" or "bf16"; "" for the checkpoint's own.
        compiled: whether decoding goes through ``torch.compile``.
    """

    gpu: bool = False
    dtype: str = ""
    compiled: bool = False

    @classmethod
    def parse(cls, words: str) -> Where:
        """Of ``gpu[-fp16][-compiled]``.

        Raises:
            GreenError: another word, or one twice.
        """
        first, *more = words.split("-")
        types = [w for w in more if w in _TYPES]
        if first != "gpu" or len(types) > 1 or sorted(more) != sorted([*types, *(["compiled"] * ("compiled" in more))]):
            raise GreenError(f"{words!r} says no place to compute.", "Write gpu, gpu-fp16 or gpu-bf16-compiled.")
        return cls(True, types[0] if types else "", "compiled" in more)


CPU = Where()
ENCODERS = ("feature-extraction", TASK)  # of texts: what they do


@dataclass(frozen=True)
class Info:
    """What a loaded model says of itself.

    Attributes:
        task: what it does, by its name on the hub: "text-generation", "feature-extraction", "image-classification", …
        directory: where its tokenizer and files lie.
        vocabulary: size of the logits' last dimension (of a classifier the classes); 0 for an encoder.
        parameters: number of weights, where the engine can count them.
        notes: what a reader of the report must know of this run.
        weights: bytes that a decoded token reads, where they are others than those of its files.
        image: channels, height and width of what a vision encoder takes; empty for others.
        gpu: whether its weights lie in a GPU's memory.
    """

    task: str
    directory: Path
    vocabulary: int = 0
    parameters: int | None = None
    notes: list[str] = field(default_factory=list)
    weights: int = 0
    image: tuple[int, ...] = ()
    gpu: bool = False


class Runner(Protocol):
    """A model that is loaded and ready, batch 1, greedy."""

    info: Info
    clock: Clock

    def prefill(self, tokens: list[int], answer: int) -> int:
        """Read a prompt, with room for ``answer`` tokens; return the first token of the answer.

        A transcriber's prompt is a clip, float32 [samples]; of what writes about images it is :meth:`view`.
        """

    def step(self, token: int) -> int:
        """Append ``token`` and return the next one."""

    def stream(self, tokens: list[int], answer: int) -> Iterator[int]:
        """Up to ``answer`` tokens that follow a prompt; one that ends it may be among them."""

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """float32 [T, V]: row t is the prediction after ``tokens[: t + 1]``."""

    def encode(self, batch: Any) -> NDArray[np.float32]:
        """float32 [B, H]: one embedding for each text, pooled as the model's files say.

        Of a vision encoder, for each image (float32 [C, H, W]) its logits, or its pooled state where it gives none.
        """

    def pixels(self, files: Sequence[str]) -> NDArray[np.float32]:
        """float32 [B, C, H, W]: image files as a vision encoder takes them, by its own preprocessing."""

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts as a model for images and texts reads them, special tokens included."""

    def view(self, file: str) -> Any:
        """What a model that writes about images is prompted with to say what a file shows."""

    def close(self) -> None:
        """Free the model."""


@runtime_checkable
class Batched(Protocol):
    """A text generator that answers several queries at once."""

    def prefill_all(self, batch: list[list[int]], answer: int) -> list[int]:
        """Read B prompts of one length, with room for ``answer`` tokens each; return the first token of each answer."""

    def step_all(self, tokens: list[int]) -> list[int]:
        """Append one token to each of them and return the next ones."""


class Loader(Protocol):
    """A module of this package."""

    def load(self, path: str, threads: int) -> Runner:
        """Load the model at ``path``, computing with ``threads`` threads; those of GPU_RUNNERS take a ``where`` too."""


def loader(name: str) -> Loader:
    """The module that runs ``name``, imported on demand: a device has no torch."""
    return cast("Loader", importlib.import_module(f"{__name__}.{name}"))


class Decoder(ABC):
    """What all text generators share, and what they cannot do."""

    clock = Clock()

    def stream(self, tokens: list[int], answer: int) -> Iterator[int]:
        """See :class:`Runner`."""
        token = self.prefill(tokens, answer)
        yield token
        for _ in range(answer - 1):
            token = self.step(token)
            yield token

    @abstractmethod
    def prefill(self, tokens: list[int], answer: int) -> int:
        """See :class:`Runner`."""

    @abstractmethod
    def step(self, token: int) -> int:
        """See :class:`Runner`."""

    def encode(self, batch: Any) -> NDArray[np.float32]:
        """Not an encoder."""
        raise NotImplementedError(f"a text generator gives no embeddings ({len(batch)} texts)")

    def pixels(self, files: Sequence[str]) -> NDArray[np.float32]:
        """Not for images."""
        raise NotImplementedError(f"a text generator sees nothing ({len(files)} images)")

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Not for images."""
        raise NotImplementedError(f"a text generator compares no texts with images ({len(texts)} texts)")

    def view(self, file: str) -> Any:
        """Not for images."""
        raise NotImplementedError(f"a text generator sees nothing ({file})")


class Encoder:
    """What a sentence encoder cannot do."""

    clock = Clock()

    def pixels(self, files: Sequence[str]) -> NDArray[np.float32]:
        """Not for images."""
        raise NotImplementedError(f"an encoder of text sees nothing ({len(files)} images)")

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Not for images."""
        raise NotImplementedError(f"it compares no texts with images ({len(texts)} texts)")

    def view(self, file: str) -> Any:
        """Not a generator."""
        raise NotImplementedError(f"an encoder writes nothing about {file}")

    def prefill(self, tokens: list[int], answer: int) -> int:
        """Not a generator."""
        raise NotImplementedError(f"an encoder generates nothing ({len(tokens)} tokens, answer {answer})")

    def stream(self, tokens: list[int], answer: int) -> Iterator[int]:
        """Not a generator."""
        raise NotImplementedError(f"an encoder generates nothing ({len(tokens)} tokens, answer {answer})")

    def step(self, token: int) -> int:
        """Not a generator."""
        raise NotImplementedError(f"an encoder generates nothing (token {token})")

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """Not a generator."""
        raise NotImplementedError(f"an encoder has no next-token logits ({len(tokens)} tokens)")
