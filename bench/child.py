"""The other end of :mod:`greenllm.bench.process`: one model in one process, answering calls over a pipe.

Started as ``python -m greenllm.bench.child FD``; ends when its parent does.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from greenllm.bench import answers, latency, perplexity
from greenllm.bench.runners import CPU, Info, Runner, Where, loader
from greenllm.bench.texts import Tokens
from greenllm.errors import GreenError
from greenllm.vlm import Prompt


class Server:
    """What a parent may call, by name."""

    def __init__(self) -> None:
        self._runner: Runner | None = None

    def load(self, runner: str, path: str, threads: int, where: Where = CPU) -> Info:
        """Load the model; everything else comes after."""
        on: dict[str, Any] = {"where": where} if where.gpu else {}
        self._runner = loader(runner).load(path, threads, **on)
        return self._runner.info

    def queries(self, prompt: Any, answer: int, seconds: float) -> list[latency.Query]:
        """Answer the same query, whole, again and again until ``seconds`` have passed."""
        return latency.repeat(lambda: latency.ask(self._ready, prompt, answer), seconds)

    def batch(self, prompts: Any, answer: int, seconds: float) -> list[latency.Query]:
        """As :meth:`queries`, all prompts at once.

        Raises:
            GreenError: this model, or its engine, cannot; for whatever reason, it is not the end of the bench.
        """
        try:
            return latency.repeat(lambda: latency.ask_all(self._ready, prompts, answer), seconds)
        except GreenError:
            raise
        except Exception as e:
            raise GreenError(f"{type(e).__name__}: {str(e)[:200]}") from e

    def stretch(self, prompt: list[int], answer: int) -> tuple[list[latency.Query], int]:
        """One query, and the most memory that was held during it, in bytes."""
        forget_peak()
        return [latency.ask(self._ready, prompt, answer)], self.peak_memory()

    def score(self, tokens: list[int], start: int, save: str | None, against: str | None) -> perplexity.Score:
        """Score ``tokens[start:]``; leave log-probabilities at ``save``, compare with those at ``against``.

        Raises:
            GreenError: the logits hold NaN or infinity, or have another shape than the baseline's.
        """
        logits = self._ready.logits(tokens)[start - 1 : -1]
        source = np.load(against, mmap_mode="r") if against else None
        keep = np.lib.format.open_memmap(save, "w+", np.float32, logits.shape) if save else None
        return perplexity.score(logits, tokens[start:], source, keep)

    def likelihoods(self, requests: list[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of ``tokens[start:]`` after ``tokens[:start]``, and whether each is the likeliest.

        Raises:
            GreenError: the logits hold NaN or infinity, or a token lies beyond them.
        """
        found = []
        for tokens, start in requests:
            logits = self._ready.logits(tokens)[start - 1 : -1]
            total = -perplexity.score(logits, tokens[start:]).nll * len(logits)
            found.append((total, bool((logits.argmax(-1) == tokens[start:]).all())))
        return found

    def answer(self, prompt: Any, most: int, stops: list[str]) -> str:
        """What it writes after a prompt: see :func:`greenllm.bench.answers.write`."""
        return answers.write(self._ready, Tokens(self._ready.info.directory), prompt, most, stops)

    def prompt(self, file: str) -> Any:
        """What an image file is to a model that writes about images.

        Raises:
            GreenError: it is damaged, or the model's files do not say how to make it pixels.
        """
        return self._ready.prompt(file)

    def describe(self, file: str, most: int) -> str:
        """What it writes about an image file."""
        return self.answer(self._ready.prompt(file), most, [])

    def count(self, prompt: Any, most: int) -> int:
        """Tokens that it writes after a prompt, the one that ends it included."""
        ends = Tokens(self._ready.info.directory).ends
        for n, token in enumerate(self._ready.stream(prompt, most), 1):
            if token in ends:
                return n
        return most

    def look(self, files: list[str]) -> NDArray[np.float32]:
        """What a vision encoder says of image files: see :meth:`encode`."""
        return self.encode(self._ready.pixels(files))

    def see(self, file: str, said: str) -> Prompt:
        """A question about an image file: see :func:`greenllm.vlm.read`.

        Raises:
            GreenError: this model, or its engine, does not see; or its marks and the image do not fit together.
        """
        look = getattr(self._ready, "see", None)
        if look is None:
            raise GreenError("It answers no questions about images.")
        found: Prompt = look(file, said)
        return found

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Texts as a model for images and texts reads them.

        Raises:
            GreenError: one is empty, or longer than it reads.
        """
        return self._ready.tokens(texts)

    def encode(self, batch: Any) -> NDArray[np.float32]:
        """Embeddings, float32 [B, H], of texts (tokens) or images (pixels).

        Raises:
            GreenError: they hold NaN or infinity.
        """
        found = self._ready.encode(batch)
        if not np.isfinite(found).all():
            raise GreenError("Its embeddings hold NaN or infinity.")
        return found

    def blocks(self, tokens: list[int]) -> NDArray[np.float32] | None:
        """Hidden states after each block, [L, T, H]; None where the engine does not show them."""
        show = getattr(self._ready, "blocks", None)
        return None if show is None else show(tokens)

    def values(self, tokens: list[int], width: int) -> list[NDArray[np.float32]] | None:
        """All that is computed of shape [T, ``width``], in order; None where the engine does not show it."""
        show = getattr(self._ready, "values", None)
        return None if show is None else show(tokens, width)

    def peak_memory(self) -> int:
        """Bytes: the most this process has held resident so far."""
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise GreenError("This system does not say how much memory a process used (no VmHWM).")

    def gpu(self) -> tuple[int, float]:
        """Bytes of GPUs' memory that this process holds, and bytes a second that the first GPU copies."""
        from greenllm.bench.runners import cuda

        return cuda.held(), cuda.copy_bandwidth()

    @property
    def _ready(self) -> Runner:
        if self._runner is None:
            raise GreenError("No model is loaded.")
        return self._runner


def forget_peak() -> None:
    """Begin the count of peak memory anew (Linux: ``man 5 proc``, clear_refs); elsewhere peaks only grow."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def put(pipe: Connection, value: Any) -> None:
    """Send like the pipe's own ``send``, whose buffer crashes the collector of CPython 3.12.0 and .1 (gh-111049)."""
    pipe.send_bytes(pickle.dumps(value))


def get(pipe: Connection) -> Any:
    """Receive what :func:`put` sent; both ends are ours."""
    return pickle.loads(pipe.recv_bytes())  # noqa: S301 - from a process that we started


def serve(pipe: Connection) -> None:
    """Answer calls ``(method, arguments)`` with ``(True, value)`` or ``(False, message, is_users)``."""
    server = Server()
    while True:
        try:
            method, arguments = get(pipe)
        except EOFError:
            return
        try:
            put(pipe, (True, getattr(server, method)(*arguments)))
        except GreenError as e:
            put(pipe, (False, str(e), True))
        except Exception as e:  # noqa: BLE001 - whatever an engine throws becomes a line in the report
            traceback.print_exc()
            put(pipe, (False, f"{type(e).__name__}: {e}", False))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    serve(Connection(int(sys.argv[1])))
