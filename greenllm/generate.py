"""Answers from an exported model, token by token; no torch needed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from greenllm import artifact, captions, classes, switch, template, vlm
from greenllm.audio import ENCODER
from greenllm.errors import GreenError
from greenllm.older import cannot_run, silence
from greenllm.pairs import TEXT
from greenllm.tokens import Tokenizer
from greenllm.vlm import Prompt

_CHUNK = 128  # tokens that are read at once: between two chunks a reader may be told to stop
_SHORTEST = 16  # a common beginning of fewer tokens is read again: it is not worth a cache


@dataclass(frozen=True)
class Settings:
    """How tokens are chosen.

    Attributes:
        max_tokens: length of the answer at most; None: as long as the context allows.
        temperature: 0 takes the likeliest token; above, tokens are sampled.
        top_p: sample from the likeliest tokens that together have this probability.
        seed: of the sampling, 0 to 2^31 - 1; None draws one.
        adapter: name of the adapter that is on; "" for none.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    adapter: str = ""


class Model(Protocol):
    """A text generator that is loaded. It answers one prompt at a time."""

    directory: Path
    tokenizer: Tokenizer
    context: int
    reused: int  # tokens of the last prompt that were in the cache already

    def answer(self, ids: Sequence[int], settings: Settings) -> Iterator[int | None]:
        """Tokens that follow ``ids``, the one that ends the answer included; None while the prompt is being read.

        Raises:
            GreenError: the model cannot be run, or not with these settings.
        """


class GenaiModel:
    """ONNX Runtime GenAI.

    With ``keep``, the next prompt is read only from where it departs from the last one. Of the cache, that is what
    was made by reading: many tokens at once and one at a time are other kernels, with other roundings, and an answer
    must not depend on what was asked before.
    """

    def __init__(self, directory: Path, *, threads: int | None = None, keep: bool = False) -> None:
        self._runtime = og = _runtime()
        try:
            config = og.Config(str(directory))
            if threads:
                options = {"intra_op_num_threads": threads}
                config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            self._model = og.Model(config)
        except RuntimeError as e:
            raise GreenError(f"{directory} cannot be loaded: {str(e).splitlines()[0]}") from e
        self.directory = directory
        self.tokenizer = Tokenizer(directory)
        self.context = self.tokenizer.context
        self.reused = 0
        self._keep = keep
        self._adapters: Any = None
        self._worn: set[str] = set()  # those that were loaded
        self._generator: Any = None
        self._room = 0
        self._how: Settings | None = None
        self._read: list[int] = []  # what lies in the cache and was read in chunks

    def answer(self, ids: Sequence[int], settings: Settings) -> Iterator[int | None]:
        """See :class:`Model`."""
        most = room(self, ids, settings)
        self.reused = self._rewind(ids, len(ids) + most, settings)
        read, self._read = list(ids[: self.reused]), []
        try:
            for chunk in chunks(ids[self.reused :]):
                self._generator.append_tokens(np.array(chunk, dtype=np.int32))
                read += chunk
                yield None
            self._read = read
            for _ in range(most):
                self._generator.generate_next_token()
                token = int(self._generator.get_next_tokens()[0])
                yield token
                if token in self.tokenizer.ends or self._generator.is_done():
                    break
        except RuntimeError as e:
            self._generator, self._read = None, []
            raise cannot_run(self.directory, self._runtime.__version__, e) from e
        finally:
            if not self._keep:
                self._generator, self._read = None, []

    def _rewind(self, ids: Sequence[int], length: int, settings: Settings) -> int:
        """Have a generator with room for ``length`` tokens; how many of ``ids`` it knows already."""
        how = dataclasses.replace(settings, max_tokens=None)
        # a prompt's last two tokens are read anew: one alone would go through the kernels for one
        known = min(common(self._read, ids), len(ids) - 2)
        if known < _SHORTEST or length > self._room or how != self._how or (how.temperature and how.seed is not None):
            known = 0
            self._generator = None  # frees the old cache first
            self._room = min(1 << (length - 1).bit_length(), self.context) if self._keep else length
            self._generator = self._new(how)
            self._how = how
        else:
            self._generator.rewind_to(known)
        return known

    def _new(self, how: Settings) -> Any:
        sampling: dict[str, Any] = {"do_sample": False}
        if how.temperature:
            sampling = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
            if how.seed is not None:
                sampling["random_seed"] = how.seed
        parameters = self._runtime.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self._room, num_beams=1, batch_size=1, **sampling)
        generator = self._runtime.Generator(self._model, parameters)
        if how.adapter:
            self._put_on(generator, how.adapter)
        return generator

    def _put_on(self, generator: Any, name: str) -> None:
        """Activate an adapter, loaded when it is first asked for; the model itself is not loaded again."""
        file = switch.file_of(self.directory, name)
        self._adapters = self._adapters or self._runtime.Adapters(self._model)
        if name not in self._worn:
            self._adapters.load(str(file), name)
            self._worn.add(name)
        generator.set_active_adapter(self._adapters, name)


class OnnxModel:
    """Plain ONNX with its cache in and out: the likeliest tokens only."""

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        self.directory = directory
        self._runner = onnx_runner(directory, threads)
        self.tokenizer = Tokenizer(directory)
        self.context = self.tokenizer.context
        self.reused = 0

    def see(self, image: Path, said: str) -> Prompt:
        """The prompt of a model that answers about images, see :func:`greenllm.vlm.read`."""
        found: Prompt = self._runner.see(str(image), said)
        return found

    def answer(self, ids: Sequence[int], settings: Settings) -> Iterator[int | None]:
        """See :class:`Model`."""
        if settings.adapter:
            raise GreenError(f"{self.directory} is plain ONNX, which has no adapters.", "Export it --to genai.")
        if settings.temperature:
            other = "" if vlm.sees(self.directory) else ", or export it for ORT-GenAI: --to genai"
            raise GreenError(
                f"{self.directory} is plain ONNX, which takes the likeliest token only here.",
                f"Leave out --temperature{other}.",
            )
        for token in self._runner.stream(ids if isinstance(ids, Prompt) else list(ids), room(self, ids, settings)):
            yield token
            if token in self.tokenizer.ends:
                break


def load(model: str | Path, *, threads: int | None = None, keep: bool = False) -> Model:
    """A text generator; see :func:`find`.

    Args:
        model: an artifact or a directory.
        threads: CPU threads; None leaves it to the runtime.
        keep: hold the cache for prompts that begin alike.

    Raises:
        GreenError: there is none, it was changed, it gives embeddings, or it cannot be loaded.
    """
    return open_found(find(model), threads=threads, keep=keep)


def open_found(directory: Path, *, threads: int | None = None, keep: bool = False) -> Model:
    """A text generator in a directory that :func:`find` gave; see :func:`load`."""
    if is_genai(directory):
        return GenaiModel(directory, threads=threads, keep=keep)
    if captions.sees(directory):
        raise GreenError(f"{directory} writes what an image shows.", "Give it one: greenllm run OUT --image photo.jpg.")
    if (directory / ENCODER).is_file():
        raise GreenError(f"{directory} writes what it hears.", "Give it a clip: greenllm run OUT --audio clip.wav.")
    if (directory / TEXT).is_file():
        raise GreenError(
            f"{directory} compares images with texts.",
            'Ask it: greenllm run OUT --image photo.jpg --labels "cat,dog".',
        )
    if is_encoder(directory):
        raise GreenError(
            f"{directory} gives embeddings and does not generate text.",
            'See one: greenllm run OUT "text"; or: greenllm serve OUT.',
        )
    if does(directory) == classes.TASK:
        raise GreenError(
            f"{directory} says to which class a text belongs, and writes none.", 'Ask it: greenllm run OUT "text".'
        )
    return OnnxModel(directory, threads=threads)


def find(model: str | Path) -> Path:
    """The directory in or at ``model`` that is run; an artifact's files are verified.

    Raises:
        GreenError: there is none, it was changed, or it is a checkpoint.
    """
    path = Path(model).expanduser()
    if artifact.is_artifact(path):
        found = artifact.read(path).deployable
        found.verify()
        path = found.path
    if is_genai(path) or any(path.glob("*.onnx")):
        return path
    if file := next(path.glob("*.gguf"), path if path.suffix == ".gguf" else None):
        raise GreenError(
            f"{model} is GGUF, which llama.cpp runs: llama-cli -m {file}.",
            f"Or export it for here: greenllm export {file} -o OUT.",
        )
    if (path / "config.json").is_file():
        raise GreenError(f"{model} is a checkpoint.", f"Export it first: greenllm export {model} -o OUT.")
    what = "no such directory" if not path.exists() else "no exported model"
    raise GreenError(f"{path}: {what}.", "Give what `greenllm compress` or `greenllm export` made.")


def is_genai(directory: Path) -> bool:
    """Whether a directory is ORT-GenAI's."""
    return (directory / "genai_config.json").is_file()


def does(directory: Path) -> str:
    """The task of an exported model, by its manifest, else by its graph."""
    if artifact.is_artifact(directory):
        return str(artifact.read(directory).manifest.details.get("task", ""))
    return "" if is_genai(directory) else str(onnx_runner(directory, 1).info.task)


def is_encoder(directory: Path) -> bool:
    """Whether an ONNX directory gives embeddings."""
    return does(directory) == "feature-extraction"


def onnx_runner(directory: Path, threads: int | None) -> Any:
    """The bench's runner of plain ONNX.

    Raises:
        GreenError: ONNX Runtime is not installed, or the graph is not known.
    """
    try:
        from greenllm.bench.runners import onnxruntime
    except ModuleNotFoundError as e:
        if e.name != "onnxruntime":
            raise
        raise GreenError("onnxruntime is not installed.", 'Install it: pip install "greenllm[runtime]".') from e
    return onnxruntime.load(str(directory), threads or 0)


def prompt_of(model: Model, messages: Sequence[dict[str, str]]) -> list[int]:
    """Messages (``role``, ``content``) as tokens, in the model's chat template.

    Raises:
        GreenError: it has none, or it fails.
    """
    said = template.render(model.directory, messages)
    return vlm.read(model.tokenizer, said, None, 0) if vlm.sees(model.directory) else model.tokenizer.plain(said)


def room(model: Model, ids: Sequence[int], settings: Settings) -> int:
    """How many tokens the answer may have.

    Raises:
        GreenError: the prompt is empty, or fills the context.
    """
    if not ids:
        raise GreenError("The prompt is empty.")
    free = model.context - len(ids)
    if free < 1:
        raise GreenError(f"The prompt has {len(ids)} tokens; this model's context is {model.context}.", "Shorten it.")
    return min(free, settings.max_tokens or free)


def chunks(ids: Sequence[int]) -> Iterator[list[int]]:
    """Cut a prompt into pieces of at most 128 tokens, none of one alone but where there is no other."""
    at = 0
    while at < len(ids):
        end = at + _CHUNK
        if len(ids) - end == 1:
            end -= 1
        yield list(ids[at:end])
        at = end


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the beginning that two sequences share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _runtime() -> Any:
    try:
        import onnxruntime_genai
    except ImportError as e:
        raise GreenError("onnxruntime-genai is not installed.", 'Install it: pip install "greenllm[runtime]".') from e
    silence(onnxruntime_genai)
    return onnxruntime_genai
