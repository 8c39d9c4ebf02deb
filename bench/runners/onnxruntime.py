"""ONNX Runtime on the CPU or a GPU: a plain ONNX graph with flat inputs, KV cache in and out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from greenllm import artifact, classes
from greenllm.audio import ENCODER
from greenllm.bench.runners import CPU, Decoder, Encoder, Info, Runner, Where, pooling
from greenllm.bench.runners.listener import OnnxCaptioner, OnnxListener
from greenllm.bench.runners.values import values
from greenllm.errors import GreenError
from greenllm.export.device.run import EXACT
from greenllm.pairs import TEXT
from greenllm.tokens import read_json
from greenllm.vlm import SIGHT

_CLASSES = 2  # axes of a classifier's logits; those of what decodes have one of positions more
_CUDA = "CUDAExecutionProvider"
_FIRST = "first_logit"  # optional input of greenllm's graphs: the first position whose logits are computed
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64,
          "tensor(int32)": np.int32, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8}  # fmt: skip


def load(path: str, threads: int, where: Where = CPU) -> Runner:
    """See :class:`greenllm.bench.runners.Loader`.

    Raises:
        GreenError: no GPU that ONNX Runtime uses, or a graph that this bench runs on the CPU alone.
    """
    directory = Path(path)
    session = open_session(_graph(directory), threads, where)
    decodes = any(o.name == "logits" and len(o.shape) > _CLASSES for o in session.get_outputs())
    if where.gpu and not decodes:
        raise GreenError(f"{path}: on a GPU this bench runs text generators in ONNX Runtime, nothing else.")
    if (encoder := directory / ENCODER).is_file():
        first = open_session(encoder, threads)
        sees = "pixel_values" in {i.name for i in first.get_inputs()}
        return (OnnxCaptioner if sees else OnnxListener)(first, session, _info(directory, ""))
    if (text := directory / TEXT).is_file():
        from greenllm.bench.runners.dual import OnnxDual

        return OnnxDual(session, open_session(text, threads), _info(directory, ""))
    if (sight := directory / SIGHT).is_file():
        from greenllm.bench.runners.vlm import OnnxSighted

        return OnnxSighted(open_session(sight, threads), session, directory)
    outputs = [o.name for o in session.get_outputs()]
    if "pixel_values" in {i.name for i in session.get_inputs()}:
        from greenllm.bench.runners.vision import OnnxVision

        return OnnxVision(session, _info(directory, ""))
    kind = OnnxDecoder if decodes else OnnxClassifier if "logits" in outputs else OnnxEncoder
    return kind(session, directory)


def _graph(directory: Path) -> Path:
    found = sorted(directory.glob("*.onnx"))
    named = directory / "model.onnx"
    if named in found or len(found) == 1:
        return named if named in found else found[0]
    raise GreenError(f"{directory} holds {len(found)} .onnx files and no model.onnx: which one is meant?")


def open_session(graph: Path, threads: int, where: Where = CPU) -> ort.InferenceSession:
    """A graph, loaded for the CPU or a GPU.

    Raises:
        GreenError: this ONNX Runtime has no provider for a GPU, or finds none: the CPU does not stand for it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(*EXACT)
    if where.gpu and _CUDA not in ort.get_available_providers():
        raise GreenError(
            f"onnxruntime {ort.__version__} has no {_CUDA}.", "Install onnxruntime-gpu in place of onnxruntime."
        )
    if where.gpu:
        ort.preload_dlls()  # of CUDA, where pip put them
    providers = [_CUDA, "CPUExecutionProvider"] if where.gpu else ["CPUExecutionProvider"]
    session = ort.InferenceSession(str(graph), options, providers=providers)
    if session.get_providers()[0] != providers[0]:
        raise GreenError(f"onnxruntime {ort.__version__} does not start its {_CUDA}: no GPU, or not its libraries?")
    return session


def _info(directory: Path, task: str, vocabulary: int = 0) -> Info:
    details = artifact.read(directory).manifest.details if artifact.is_artifact(directory) else {}
    parameters = details.get("parameters")
    return Info(task, directory, vocabulary, int(parameters) if parameters else None, ["ONNX Runtime, CPU provider"])


def _kept(shape: list[int | str], directory: Path) -> tuple[int, int]:
    """Heads of a cache and their width: as the graph says, and where it has names for them, the files beside it.

    Raises:
        GreenError: none says.
    """
    config = read_json(directory / "config.json")
    genai = read_json(directory / "genai_config.json").get("model", {}).get("decoder", {})
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    each = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None
    told = (
        (shape[1], genai.get("num_key_value_heads"), config.get("num_key_value_heads"), heads),
        (shape[3], genai.get("head_size"), config.get("head_dim"), each),
    )
    count, width = (next((n for n in said if isinstance(n, int) and n > 0), None) for said in told)
    if count is None or width is None:
        raise GreenError(
            f"{directory}: the graph does not say how many heads its cache has and how wide they are.",
            "A config.json or genai_config.json beside it may.",
        )
    return count, width


class OnnxDecoder(Decoder):
    """A causal language model: ``past…`` inputs, ``present…`` outputs in the same order, ``logits``."""

    known = frozenset({"input_ids", "attention_mask", "position_ids"})  # inputs beside the cache

    def __init__(self, session: ort.InferenceSession, directory: Path, adapter: Path | None = None) -> None:
        self.session = session
        self._worn = ort.AdapterFormat.read_adapter(str(adapter)).get_parameters() if adapter else {}
        self._inputs = {i.name: i for i in session.get_inputs()}
        self._outputs = [o.name for o in session.get_outputs()]
        self._pasts = [n for n in self._inputs if n.startswith("past")]
        self._presents = [n for n in self._outputs if n.startswith("present")]
        unknown = set(self._inputs) - set(self._pasts) - self.known
        if unknown or len(self._pasts) != len(self._presents):
            raise GreenError(
                f"{directory}: this graph's inputs {sorted(unknown)} or its cache "
                f"({len(self._pasts)} in, {len(self._presents)} out) are not known here."
            )
        self._kept = {name: _kept(self._inputs[name].shape, directory) for name in self._pasts}
        vocabulary = next(o.shape[-1] for o in session.get_outputs() if o.name == "logits")
        self.info = _info(directory, "text-generation", vocabulary if isinstance(vocabulary, int) else 0)
        self._last_only = _FIRST in {i.name for i in session.get_overridable_initializers()}
        self._cache: list[Any] = []
        self._length = 0
        if session.get_providers()[0] == _CUDA:
            note = "ONNX Runtime, CUDA provider; what that has no kernel for runs on the CPU"
            self.info = replace(self.info, gpu=True, notes=[note])

    def prefill(self, tokens: list[int], answer: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`."""
        return self.prefill_all([tokens], answer)[0]

    def step(self, token: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`."""
        return self.step_all([token])[0]

    def prefill_all(self, batch: list[list[int]], answer: int) -> list[int]:
        """See :class:`greenllm.bench.runners.Batched`.

        Raises:
            GreenError: the graph was made for another batch.
        """
        del answer  # the cache grows
        made_for = self._inputs["input_ids"].shape[0]
        if isinstance(made_for, int) and made_for != len(batch):
            raise GreenError(f"Its graph was exported for batches of {made_for}.")
        self._reset(len(batch))
        return self._next(batch)

    def step_all(self, tokens: list[int]) -> list[int]:
        """See :class:`greenllm.bench.runners.Batched`."""
        return self._next([[t] for t in tokens])

    def _next(self, batch: list[list[int]]) -> list[int]:
        found: list[int] = self._run(batch)[:, -1].argmax(-1).tolist()
        return found

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._reset()
        return self._run([tokens], every=self._last_only)[0].astype(np.float32, copy=False)

    def values(self, tokens: list[int], width: int) -> list[NDArray[np.float32]]:
        """See :meth:`greenllm.bench.child.Server.values`."""

        def feed(_: ort.InferenceSession) -> dict[str, Any]:
            self._reset()
            return {name: value.numpy() for name, value in self._feed([tokens], every=self._last_only).items()}

        return values(_graph(self.info.directory), feed, (len(tokens), width))

    def _reset(self, batch: int = 1) -> None:
        self._length = 0
        self._cache = []
        for name in self._pasts:
            heads, width = self._kept[name]
            empty = np.zeros((batch, heads, 0, width), dtype=self._type(name))
            self._cache.append(ort.OrtValue.ortvalue_from_numpy(empty))

    def _run(self, batch: list[list[int]], *, every: bool = False) -> NDArray[Any]:
        """Logits [B, T, V] of new tokens, or of the last one; the cache stays on ONNX Runtime's side, uncopied.

        Args:
            batch: T of them for each of B prompts.
            every: ask for the logits of all positions a graph that gives the last one's otherwise.
        """
        logits, *self._cache = self._compute(self._feed(batch, every=every))
        self._length += len(batch[0])
        found: NDArray[Any] = logits.numpy()
        return found

    def _compute(self, feed: dict[str, ort.OrtValue]) -> list[ort.OrtValue]:
        """Logits and the grown cache."""
        if self.info.gpu:
            return self._bound(feed)
        found: list[ort.OrtValue] = self.session.run_with_ort_values(["logits", *self._presents], feed)
        return found

    def _bound(self, feed: dict[str, ort.OrtValue]) -> list[ort.OrtValue]:
        """The same with a cache that never leaves the GPU: a plain call brings every output back."""
        binding = self.session.io_binding()
        for name, value in feed.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cpu")
        for name in self._presents:
            binding.bind_output(name, "cuda")
        self.session.run_with_iobinding(binding)
        found: list[ort.OrtValue] = binding.get_outputs()
        return found

    def _feed(self, batch: list[list[int]], *, every: bool) -> dict[str, ort.OrtValue]:
        total = self._length + len(batch[0])
        wanted = {
            "input_ids": np.array(batch),
            "attention_mask": np.ones((len(batch), total)),
            "position_ids": np.tile(np.arange(self._length, total), (len(batch), 1)),
        }
        feed = {
            name: ort.OrtValue.ortvalue_from_numpy(value.astype(self._type(name)))
            for name, value in wanted.items()
            if name in self._inputs
        }
        feed |= self._worn
        feed.update(zip(self._pasts, self._cache, strict=True))
        if every:
            feed[_FIRST] = ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.int64))
        return feed

    def _type(self, name: str) -> Any:
        return _TYPES[self._inputs[name].type]

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._cache = []
        del self.session


class OnnxEncoder(Encoder):
    """A bidirectional encoder: token states, or a pooled embedding when the graph pools itself."""

    gives: tuple[str, ...] = ("sentence_embedding", "last_hidden_state")  # one of these

    def __init__(self, session: ort.InferenceSession, directory: Path) -> None:
        self.session = session
        self.info = _info(directory, "feature-extraction")
        self._inputs = {i.name: i.type for i in session.get_inputs()}
        names = [o.name for o in session.get_outputs()]
        known = [n for n in self.gives if n in names]
        unknown = set(self._inputs) - {"input_ids", "attention_mask", "token_type_ids"}
        if not known or unknown:
            raise GreenError(
                f"{directory}: an encoder with inputs {sorted(self._inputs)} and outputs {names} is not known."
            )
        self._output = known[0]
        self._pooling = pooling.mode(directory)

    def encode(self, batch: list[list[int]]) -> NDArray[np.float32]:
        """See :class:`greenllm.bench.runners.Runner`."""
        feed, mask = self._feed(batch)
        states: NDArray[np.float32] = self.session.run([self._output], feed)[0].astype(np.float32, copy=False)
        return pooling.pool(states, mask, self._pooling) if self._output == "last_hidden_state" else states

    def values(self, tokens: list[int], width: int) -> list[NDArray[np.float32]]:
        """See :meth:`greenllm.bench.child.Server.values`."""
        return values(_graph(self.info.directory), lambda _: self._feed([tokens])[0], (len(tokens), width))

    def _feed(self, batch: list[list[int]]) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
        ids, mask = pooling.pad(batch)
        wanted = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {n: wanted[n].astype(_TYPES[t]) for n, t in self._inputs.items()}, mask

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        del self.session


class OnnxClassifier(OnnxEncoder):
    """An encoder with a head: logits [B, C] of each text's class."""

    gives = ("logits",)

    def __init__(self, session: ort.InferenceSession, directory: Path) -> None:
        super().__init__(session, directory)
        count = next(o.shape[-1] for o in session.get_outputs() if o.name == "logits")
        if not isinstance(count, int):
            raise GreenError(f"{directory}: the graph does not say how many classes it has.")
        self.info = _info(directory, classes.TASK, count)

    def encode(self, batch: list[list[int]]) -> NDArray[np.float32]:
        """See :class:`greenllm.bench.runners.Runner`; one by one: decoders' heads look for the token that pads."""
        return np.concatenate([super(OnnxClassifier, self).encode([text]) for text in batch])
