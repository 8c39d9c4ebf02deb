"""ONNX Runtime GenAI: a directory with ``genai_config.json``, greenllm's or anyone's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
from numpy.typing import NDArray

from greenllm import artifact, switch
from greenllm.bench.runners import Decoder, Info, Runner
from greenllm.bench.runners.onnxruntime import OnnxDecoder, open_session
from greenllm.errors import GreenError
from greenllm.older import cannot_run, silence


def load(path: str, threads: int) -> Runner:
    """See :class:`greenllm.bench.runners.Loader`."""
    silence(og)
    directory, adapter = switch.split(path)
    try:
        config = json.loads((directory / "genai_config.json").read_text(encoding="utf-8"))
        vocabulary = int(config["model"]["vocab_size"])
    except (ValueError, KeyError, TypeError) as e:
        raise GreenError(f"{directory / 'genai_config.json'} is damaged: {e}.") from e
    return GenaiDecoder(directory, vocabulary, threads, adapter)


class GenaiDecoder(Decoder):
    """A causal language model; every prompt is a new generator with a cache of just the right length."""

    def __init__(self, directory: Path, vocabulary: int, threads: int, adapter: str = "") -> None:
        config = og.Config(str(directory))
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)
        self._directory, self._threads = directory, threads
        self._adapter = switch.file_of(directory, adapter) if adapter else None
        self._worn: Any = None
        if self._adapter:
            self._worn = og.Adapters(self.model)
            self._worn.load(str(self._adapter), adapter)
        self._generator: Any = None
        self._whole: OnnxDecoder | None = None
        details = artifact.read(directory).manifest.details if artifact.is_artifact(directory) else {}
        parameters = details.get("parameters")
        self.info = Info(
            "text-generation",
            directory,
            vocabulary,
            int(parameters) if parameters else None,
            ["ONNX Runtime GenAI on the CPU; text is scored on the same graph"],
        )

    def prefill(self, tokens: list[int], answer: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`."""
        return self.prefill_all([tokens], answer)[0]

    def step(self, token: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`; the generator has appended ``token`` itself."""
        return self.step_all([token])[0]

    def prefill_all(self, batch: list[list[int]], answer: int) -> list[int]:
        """See :class:`greenllm.bench.runners.Batched`."""
        # as long as asked, whatever the model says: an early end of answer would make queries unequal
        length = len(batch[0]) + answer
        self._start(batch, length, least=length)
        return self._next()

    def step_all(self, tokens: list[int]) -> list[int]:
        """See :class:`greenllm.bench.runners.Batched`; the generator has appended ``tokens`` itself."""
        del tokens
        return self._next()

    def stream(self, tokens: list[int], answer: int) -> Iterator[int]:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._start([tokens], len(tokens) + answer)
        while not self._generator.is_done():
            yield self._next()[0]

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """See :class:`greenllm.bench.runners.Runner`.

        A graph that gives the last position only is asked for all of them in ONNX Runtime: GenAI cannot ask.

        Raises:
            GreenError: the graph cannot give all of them.
        """
        if self._whole is not None:
            return self._whole.logits(tokens)
        self._start([tokens], len(tokens) + 1)
        found: NDArray[np.float32] = self._generator.get_output("logits")[0].astype(np.float32, copy=False)
        if len(found) == 1 < len(tokens):
            found = self._plain().logits(tokens)
        if len(found) != len(tokens):
            raise GreenError(
                f"{self._directory} gives the logits of {len(found)} of {len(tokens)} positions.",
                "Perplexity needs all of them: export the model again.",
            )
        return found

    def values(self, tokens: list[int], width: int) -> list[NDArray[np.float32]]:
        """See :meth:`greenllm.bench.child.Server.values`."""
        return self._plain().values(tokens, width)

    def _plain(self) -> OnnxDecoder:
        """The same graph in ONNX Runtime itself."""
        if self._whole is None:
            session = open_session(self._directory / "model.onnx", self._threads)
            self._whole = OnnxDecoder(session, self._directory, self._adapter)
        return self._whole

    def _start(self, batch: list[list[int]], length: int, least: int = 0) -> None:
        self._generator = None  # frees the old cache first
        search = og.GeneratorParams(self.model)
        search.set_search_options(max_length=length, min_length=least, do_sample=False, batch_size=len(batch))
        self._generator = og.Generator(self.model, search)
        if self._adapter:
            self._generator.set_active_adapter(self._worn, self._adapter.stem)
        try:
            self._generator.append_tokens(np.array(batch, dtype=np.int32).reshape(-1))
        except RuntimeError as e:
            raise cannot_run(self._directory, og.__version__, e) from e

    def _next(self) -> list[int]:
        self._generator.generate_next_token()
        found: list[int] = self._generator.get_next_tokens().tolist()
        return found

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._generator = self._whole = self._worn = None
        del self.model
