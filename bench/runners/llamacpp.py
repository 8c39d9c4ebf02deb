"""llama.cpp through llama-cpp-python: a ``.gguf`` file with its ``tokenizer.json`` beside it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp as ll
import numpy as np
from numpy.typing import NDArray

from greenllm.bench.runners import Decoder, Info, Runner
from greenllm.errors import GreenError

_STEP = 256  # a cache is made in steps of so many tokens: longer queries rarely need another one


def load(path: str, threads: int) -> Runner:
    """See :class:`greenllm.bench.runners.Loader`."""
    return LlamacppDecoder(Path(path), threads)


class LlamacppDecoder(Decoder):
    """A causal language model with llama.cpp's own settings (cache in float16, flash attention where it has it)."""

    def __init__(self, file: Path, threads: int) -> None:
        self._threads = threads
        self.model: Any = ll.llama_model_load_from_file(str(file).encode(), ll.llama_model_default_params())
        if not self.model:
            raise GreenError(f"{file}: llama.cpp cannot load it; its log says why.", "Is it a whole .gguf file?")
        vocab = ll.llama_model_get_vocab(self.model)
        size = int(ll.llama_vocab_n_tokens(vocab))
        _same_tokens(file, [ll.llama_vocab_get_text(vocab, i) for i in range(size)])
        self.info = Info(
            "text-generation",
            file.parent,
            size,
            int(ll.llama_model_n_params(self.model)),
            [f"llama.cpp (llama-cpp-python {ll.__version__}) on the CPU, float16 cache"],
        )
        self._context: Any = None
        self._room = 0

    def prefill(self, tokens: list[int], answer: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._clear(len(tokens) + answer)
        return self._next(tokens)

    def step(self, token: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`."""
        return self._next([token])

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._clear(len(tokens))
        batch = ll.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        try:
            self._decode(batch)
        finally:
            ll.llama_batch_free(batch)
        shape = (len(tokens), self.info.vocabulary)
        return np.ctypeslib.as_array(ll.llama_get_logits(self._context), shape).copy()

    def _clear(self, length: int) -> None:
        """An empty cache for ``length`` tokens or more."""
        if length > self._room:
            self._free()
            self._room = -(-length // _STEP) * _STEP
            options = ll.llama_context_default_params()
            options.n_ctx = options.n_batch = self._room
            options.n_threads = options.n_threads_batch = self._threads
            self._context = ll.llama_init_from_model(self.model, options)
        ll.llama_memory_clear(ll.llama_get_memory(self._context), True)

    def _next(self, tokens: list[int]) -> int:
        """Append tokens; only the last one's logits are computed."""
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        self._decode(ll.llama_batch_get_one(ids, len(tokens)))
        last = ll.llama_get_logits_ith(self._context, -1)
        return int(np.argmax(np.ctypeslib.as_array(last, (self.info.vocabulary,))))

    def _decode(self, batch: Any) -> None:
        status = ll.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode failed with status {status}")

    def _free(self) -> None:
        if self._context:
            ll.llama_free(self._context)
        self._context, self._room = None, 0

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._free()
        ll.llama_model_free(self.model)


def _same_tokens(file: Path, tokens: list[bytes]) -> None:
    """The bench cuts text by ``tokenizer.json``: it must be this model's."""
    from tokenizers import Tokenizer

    beside = file.with_name("tokenizer.json")
    if not beside.is_file():
        raise GreenError(f"{file} has no tokenizer.json beside it; the bench cannot cut text for it.", "Copy it there.")
    vocabulary = Tokenizer.from_file(str(beside)).get_vocab(with_added_tokens=True)
    if any(i >= len(tokens) or tokens[i] != t.encode() for t, i in vocabulary.items()):
        raise GreenError(f"{beside} is not the tokenizer of {file.name}: their tokens differ.", "Copy the right one.")
