"""TensorRT and TensorRT-RTX: an engine that greenllm built, on its GPU; keys and values never leave the GPU's memory.

Written without a GPU: tests run it over a stand-in for the engine that computes the same graph in ONNX Runtime, from
the same buffers. See ``bench/gpu.md``.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from greenllm import artifact
from greenllm.bench.runners import Decoder, Encoder, Info, Runner, pooling
from greenllm.bench.runners.cuda import Device
from greenllm.errors import GreenError
from greenllm.export.stamp import ENGINE, STAMP, check_engine
from greenllm.tokens import read_json

Dims = tuple[int, ...]
_TYPES = {"HALF": np.float16, "FLOAT": np.float32, "INT32": np.int32, "INT64": np.int64, "BF16": np.uint16}


def load(path: str, threads: int) -> Runner:
    """See :class:`greenllm.bench.runners.Loader`; threads are the GPU's business.

    Raises:
        GreenError: an engine for another GPU or version, no GPU, or one that TensorRT does not load.
    """
    del threads
    directory = Path(path)
    details = artifact.read(directory).manifest.details
    built = read_json(directory / STAMP) or details["engine"]
    device = Device()
    library = built["library"] or "tensorrt"
    try:
        trt = importlib.import_module(library)
    except ImportError as e:
        raise GreenError(f"{library} is not installed ({e}).", 'pip install "greenllm[tensorrt]"') from e
    check_engine(built, device.compute_capability, library, trt.__version__)
    before = device.used()
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine((directory / ENGINE).read_bytes())
    if engine is None:
        raise GreenError(f"{library} {trt.__version__} does not load {directory / ENGINE}.")
    bound = Bound(engine, device)
    held = (device.used() - before) / 1e6
    note = (
        f"{library} {trt.__version__} on a GPU of compute capability {device.compute_capability}; {held:.0f} MB of its "
        "memory, which the peak memory does not count"
    )
    parameters = details.get("parameters")
    info = Info("", directory, 0, int(parameters) if parameters else None, [note], gpu=True)
    return EngineDecoder(bound, info) if bound.caches else EngineEncoder(bound, info)


@dataclass(frozen=True)
class Slot:
    """A tensor of an engine: its type, and its largest shape."""

    kind: str
    dtype: Any
    largest: Dims

    @property
    def bytes(self) -> int:
        """Of the largest shape."""
        return math.prod(self.largest) * np.dtype(self.dtype).itemsize


class Bound:
    """An engine whose tensors have memory on the GPU.

    Args:
        engine: ``ICudaEngine``.
        device: its GPU.

    Raises:
        GreenError: it has inputs that greenllm's graphs do not have.
    """

    def __init__(self, engine: Any, device: Device) -> None:
        self.engine, self.device = engine, device
        self.context = engine.create_execution_context()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n).name == "INPUT"]
        self.caches = [n for n in inputs if n.startswith("past_key_values")]
        self.tokens = [n for n in inputs if n not in self.caches]
        unknown = set(self.tokens) - {"input_ids", "attention_mask", "position_ids", "token_type_ids"}
        if unknown:
            raise GreenError(f"An engine with the inputs {sorted(unknown)} is not known.")
        self.blocks = [self._shapes("input_ids", p)[2][1] for p in range(engine.num_optimization_profiles)]
        self.slots = {n: self._slot(n) for n in inputs}
        self.room = {n: device.allocate(self.slots[n].bytes) for n in self.tokens}
        for name, address in self.room.items():
            self.context.set_tensor_address(name, address)
        self._profile = 0

    def _shapes(self, name: str, profile: int) -> list[Dims]:
        return [tuple(s) for s in self.engine.get_tensor_profile_shape(name, profile)]

    def _slot(self, name: str) -> Slot:
        most = [self._shapes(name, p)[2] for p in range(len(self.blocks))]
        return Slot(*self.type(name), tuple(max(each) for each in zip(*most, strict=True)))

    def type(self, name: str) -> tuple[str, Any]:
        """TensorRT's name for a tensor's type, and NumPy's type of that width."""
        kind = self.engine.get_tensor_dtype(name).name
        if kind not in _TYPES:
            raise GreenError(f"The engine's {name} is of the type {kind}, which is not known here.")
        return kind, _TYPES[kind]

    def fit(self, new: int) -> None:
        """Choose the profile with the smallest block that takes ``new`` tokens."""
        best = min((b, p) for p, b in enumerate(self.blocks) if b >= new)[1]
        if best != self._profile:
            self.context.set_optimization_profile_async(best, self.device.stream)
            self._profile = best

    def feed(self, name: str, values: NDArray[Any]) -> None:
        """Give an input its values."""
        self.context.set_input_shape(name, values.shape)
        self.device.put(self.room[name], values.astype(self.slots[name].dtype, copy=False))

    def run(self) -> None:
        """Enqueue the engine.

        Raises:
            GreenError: TensorRT refuses.
        """
        if not self.context.execute_async_v3(self.device.stream):
            raise GreenError("TensorRT did not run the engine; its own message is in the log.")

    def take(self, name: str, address: int, *, last: bool = False) -> NDArray[np.float32]:
        """float32 values of an output at ``address``; with ``last``, of the last position of [1, T, V] alone."""
        kind, dtype = self.type(name)
        shape = tuple(self.context.get_tensor_shape(name))
        if last:
            address += (shape[1] - 1) * shape[2] * np.dtype(dtype).itemsize
            shape = (1, 1, shape[2])
        values = np.empty(shape, dtype)
        self.device.get(address, values)
        if kind == "BF16":  # the upper half of a float32
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32, copy=False)

    def close(self) -> None:
        """Free the GPU's memory."""
        del self.context, self.engine
        self.device.close()


class EngineDecoder(Decoder):
    """A causal language model. A step reads one set of caches and writes the other; then they change places."""

    def __init__(self, bound: Bound, info: Info) -> None:
        self._bound = bound
        vocabulary = bound.engine.get_tensor_shape("logits")[-1]
        self.info = replace(info, task="text-generation", vocabulary=vocabulary)
        self._most = bound.slots["attention_mask"].largest[1]
        self._shapes = {n: bound.slots[n].largest for n in bound.caches}
        sizes = [
            math.prod((s[0], s[1], self._most, s[3])) * np.dtype(bound.slots[n].dtype).itemsize
            for n, s in self._shapes.items()
        ]
        self._sides = [[bound.device.allocate(size) for size in sizes] for _ in range(2)]
        width = np.dtype(bound.type("logits")[1]).itemsize
        self._logits = bound.device.allocate(max(bound.blocks) * vocabulary * width)
        self._length = 0

    def prefill(self, tokens: list[int], answer: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`.

        Raises:
            GreenError: the engine was built for fewer tokens.
        """
        self._length = 0
        self._check(len(tokens) + answer - 1)
        for block in self._blocks(tokens):
            self._run(block)
        return int(self._bound.take("logits", self._logits, last=True).argmax())

    def step(self, token: int) -> int:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._run([token])
        return int(self._bound.take("logits", self._logits, last=True).argmax())

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._length = 0
        self._check(len(tokens))
        found = []
        for block in self._blocks(tokens):
            self._run(block)
            found.append(self._bound.take("logits", self._logits)[0])
        return np.concatenate(found)

    def _check(self, tokens: int) -> None:
        past = min(s[2] for s in self._shapes.values())
        if tokens > past + 1:
            raise GreenError(f"The engine holds {past + 1} tokens; {tokens} were asked.", "Export with --context.")

    def _blocks(self, tokens: list[int]) -> list[list[int]]:
        size = max(self._bound.blocks)
        return [tokens[i : i + size] for i in range(0, len(tokens), size)]

    def _run(self, tokens: list[int]) -> None:
        bound, total = self._bound, self._length + len(tokens)
        bound.fit(len(tokens))
        wanted = {
            "input_ids": np.array([tokens]),
            "attention_mask": np.ones((1, total)),
            "position_ids": np.arange(self._length, total)[None],
        }
        for name in bound.tokens:
            bound.feed(name, wanted[name])
        for name, old, new in zip(bound.caches, *self._sides, strict=True):
            shape = self._shapes[name]
            bound.context.set_input_shape(name, (shape[0], shape[1], self._length, shape[3]))
            bound.context.set_tensor_address(name, old)
            bound.context.set_tensor_address(name.replace("past_key_values", "present"), new)
        bound.context.set_tensor_address("logits", self._logits)
        bound.run()
        self._sides.reverse()
        self._length = total

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._bound.close()


class EngineEncoder(Encoder):
    """A bidirectional encoder: token states, pooled here, or an embedding where the graph pools itself."""

    def __init__(self, bound: Bound, info: Info) -> None:
        self._bound = bound
        engine = bound.engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._output = next(n for n in ("sentence_embedding", "last_hidden_state") if n in names)
        width = engine.get_tensor_shape(self._output)[-1]
        largest = bound.slots["input_ids"].largest
        size = math.prod(largest) * width * np.dtype(bound.type(self._output)[1]).itemsize
        self._room = bound.device.allocate(size)
        bound.context.set_tensor_address(self._output, self._room)
        self.info = replace(info, task="feature-extraction")
        self._pooling = pooling.mode(info.directory)

    def encode(self, batch: list[list[int]]) -> NDArray[np.float32]:
        """See :class:`greenllm.bench.runners.Runner`; batches larger than the engine's go in parts."""
        most = self._bound.slots["input_ids"].largest[0]
        return np.concatenate([self._part(batch[i : i + most]) for i in range(0, len(batch), most)])

    def _part(self, batch: list[list[int]]) -> NDArray[np.float32]:
        ids, mask = pooling.pad(batch)
        wanted = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        for name in self._bound.tokens:
            self._bound.feed(name, wanted[name])
        self._bound.run()
        states = self._bound.take(self._output, self._room)
        return states if self._output == "sentence_embedding" else pooling.pool(states, mask, self._pooling)

    def close(self) -> None:
        """See :class:`greenllm.bench.runners.Runner`."""
        self._bound.close()
