"""Run this bundle: check its files, test itself, then answer. It needs what requirements.txt lists and nothing else.

run.py "prompt"      an answer; of an encoder one line of JSON for each text: its embedding, or its classes
run.py --audio FILE  what is said in a .wav of 16 kHz, one channel, 16 bits
run.py --self-test   the golden answers of selftest.json, within the tolerances stated there
run.py --check       the files alone: SHA-256 of each, none missing, none more
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import stat
import sys
import wave
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

MANIFEST, GOLDEN, GRAPH = "greenllm.json", "selftest.json", "model.onnx"
ENCODER, SCRIPT = "encoder.onnx", "script.json"  # what a transcriber has besides
RATE = 16000  # samples a second
SHORTEST, LONGEST = 0.1, 120.0  # seconds of a clip
_PACE, _MORE = 6.5, 8  # tokens a second of speech at most: past it a model repeats itself (Moonshine's own limit)
# On Arm, ONNX Runtime hands 4-bit matrices to KleidiAI, which rounds inputs to 8 bits by the row and not by the block:
# of SmolLM2 in 4 bits a token's KL divergence from its source went from 0.004 to 0.032 nats, of one token to 0.27.
EXACT = ("mlas.disable_kleidiai", "1")


class Refused(Exception):  # noqa: N818 - it is told to people
    """Something is wrong with the bundle, the prompt or this machine, in one plain sentence."""


def check(root: Path, expected: str | None = None) -> dict[str, Any]:
    """The manifest of the bundle at ``root``, of which every file is what it says.

    Args:
        root: the bundle's directory.
        expected: SHA-256 of the manifest itself, where it is known.

    Raises:
        Refused: a file is missing, changed, a link, of no use, or named so that it lies outside.
    """
    path = root / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise Refused(f"{path}: missing, or no plain file.")
    if expected and sha256(path) != expected:
        raise Refused(f"{path}: it is not the manifest of this bundle.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        wanted = {name: (str(f["sha256"]), int(f["size"])) for name, f in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Refused(f"{path}: damaged ({e!r}).") from e
    for name in wanted:
        if name.startswith("/") or "\\" in name or ".." in name.split("/") or name in ("", ".", MANIFEST):
            raise Refused(f"{path} names {name!r}, which is outside the bundle.")
    there = set(plain_files(root)) - {MANIFEST}
    for name in sorted(there ^ set(wanted)):
        raise Refused(f"{root / name}: {'not part of this bundle' if name in there else 'missing'}.")
    for name, (digest, size) in wanted.items():
        if (root / name).stat().st_size != size or sha256(root / name) != digest:
            raise Refused(f"{root / name}: its contents are not what {MANIFEST} says; it was changed or damaged.")
    return dict(manifest)


def plain_files(root: Path) -> Iterator[str]:
    """Relative names of all files below ``root``.

    Raises:
        Refused: there is a link, or something that is neither file nor directory.
    """
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise Refused(f"{path}: {'a link' if stat.S_ISLNK(mode) else 'no plain file'}; a bundle has none.")
            if stat.S_ISREG(mode):
                yield path.relative_to(root).as_posix()


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's contents."""
    h = hashlib.sha256()
    with path.open("rb") as f:
        while True:
            chunk = f.read(1 << 20)
            if not chunk:
                return h.hexdigest()
            h.update(chunk)


def _read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


class Decoder(ABC):
    """A text generator."""

    ends: list[int]
    context: int

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    @abstractmethod
    def start(self, ids: list[int], room: int) -> np.ndarray:
        """Logits [V] after a prompt, with room for ``room`` tokens more."""

    @abstractmethod
    def step(self, token: int) -> np.ndarray:
        """Logits [V] after one token more."""

    @abstractmethod
    def words(self) -> Callable[[int], str | None]:
        """What turns the tokens of an answer, one after the other, into text."""

    def ask(self, text: str) -> str:
        """The text as a question in the model's chat template; as it is where there is none."""
        return text

    def _limits(self, ends: Any, context: Any) -> None:
        self.ends = [int(t) for t in (ends if isinstance(ends, list) else [ends]) if t is not None]
        self.context = int(context or 2048)

    def answer(self, ids: list[int], count: int) -> Iterator[int]:
        """Up to ``count`` tokens, the likeliest each time, until the model ends."""
        if len(ids) >= self.context:
            raise Refused(f"The prompt has {len(ids)} tokens; this model's context is {self.context}.")
        count = min(count, self.context - len(ids))
        token = int(self.start(ids, count).argmax())
        for left in range(count, 0, -1):
            if token in self.ends:
                return
            yield token
            if left > 1:
                token = int(self.step(token).argmax())

    def record(self, text: str, count: int) -> dict[str, Any]:
        """A golden case: the prompt's tokens, the likeliest ones after them, and their log-probabilities in nats."""
        ids = self.encode(text)
        return {"text": text, "prompt": ids, **_written(self.start(ids, count), self.step, count)}

    def departs(self, case: dict[str, Any], tolerance: dict[str, float]) -> str:
        """What is wrong with a golden case here, in words, or ""."""
        if self.encode(case["text"]) != case["prompt"]:
            return "the tokenizer splits it otherwise"
        return _off(case, tolerance, self.start(case["prompt"], len(case["answer"])), self.step)


def _written(logits: np.ndarray, step: Callable[[int], np.ndarray], count: int) -> dict[str, Any]:
    """Of a golden case the likeliest tokens, from the first one's logits on, and their log-probabilities."""
    answer: list[int] = []
    likely = []
    for left in range(count, 0, -1):
        answer.append(int(logits.argmax()))
        likely.append(round(_log_probability(logits, answer[-1]), 4))
        logits = step(answer[-1]) if left > 1 else logits
    return {"answer": answer, "log_probabilities": likely}


def _off(
    case: dict[str, Any], tolerance: dict[str, float], logits: np.ndarray, step: Callable[[int], np.ndarray]
) -> str:
    """What is wrong with the tokens of a golden case here, or "".

    The expected ones are fed, so that one near tie does not end the comparison.
    """
    off = 0.0
    for i, token in enumerate(case["answer"]):
        logits = step(case["answer"][i - 1]) if i else logits
        best = int(logits.argmax())
        if not logits[token] >= logits[best] - tolerance["logit"]:
            return f"token {i + 1} is {best}, not {token}, by {logits[best] - logits[token]:.3g} in logits"
        off += abs(_log_probability(logits, token) - case["log_probabilities"][i]) / len(case["answer"])
    return "" if off <= tolerance["nats"] else f"its tokens' log-probabilities are off by {off:.3g} nats on average"


def _log_probability(logits: np.ndarray, token: int) -> float:
    import numpy as np

    x = logits.astype(np.float64)
    return float(x[token] - x.max() - np.log(np.exp(x - x.max()).sum()))


class Genai(Decoder):
    """ONNX Runtime GenAI."""

    def __init__(self, root: Path, threads: int) -> None:
        import numpy as np
        import onnxruntime_genai as og

        if hasattr(og, "disable_telemetry_events"):
            og.disable_telemetry_events()
        told = _read(root / "genai_config.json")["model"]
        self._limits(told.get("eos_token_id"), told.get("context_length"))
        config = og.Config(str(root))
        if threads:
            config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self._og, self._model = og, og.Model(config)
        self._generator: Any = None
        self._tokenizer = og.Tokenizer(self._model)
        told = _read(root / "tokenizer_config.json")
        self._template = "chat_template" in told or (root / "chat_template.jinja").is_file()
        self._int32 = np.int32
        self._array = np.array

    def encode(self, text: str) -> list[int]:
        """See :class:`Decoder`."""
        return [int(t) for t in self._tokenizer.encode(text)]

    def ask(self, text: str) -> str:
        """See :class:`Decoder`."""
        if not self._template:
            return text
        messages = json.dumps([{"role": "user", "content": text}])
        return str(self._tokenizer.apply_chat_template(messages=messages, add_generation_prompt=True))

    def start(self, ids: list[int], room: int) -> np.ndarray:
        """See :class:`Decoder`."""
        self._generator = None  # frees the old cache first
        search = self._og.GeneratorParams(self._model)
        search.set_search_options(max_length=len(ids) + room, do_sample=False, batch_size=1)
        self._generator = self._og.Generator(self._model, search)
        return self._feed(ids)

    def step(self, token: int) -> np.ndarray:
        """See :class:`Decoder`."""
        return self._feed([token])

    def _feed(self, ids: list[int]) -> np.ndarray:
        self._generator.append_tokens(self._array(ids, dtype=self._int32))
        return self._generator.get_output("logits")[0, -1]

    def words(self) -> Callable[[int], str | None]:
        """See :class:`Decoder`."""
        return self._tokenizer.create_stream().decode


def _tokenizer(root: Path) -> Any:
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(root / "tokenizer.json"))
    found.no_truncation()
    found.no_padding()
    return found


def _words(tokenizer: Any) -> Callable[[int], str | None]:
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=True)
    return lambda token: stream.step(tokenizer, token)


def _session(root: Path, threads: int, graph: str = GRAPH) -> Any:
    import onnxruntime

    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry(*EXACT)
    return onnxruntime.InferenceSession(str(root / graph), options, providers=["CPUExecutionProvider"])


class OnnxDecoder(Decoder):
    """A plain ONNX graph with flat inputs, ``past…`` in and ``present…`` out; the prompt is gone on with as it is."""

    def __init__(self, root: Path, session: Any) -> None:
        import numpy as np
        from onnxruntime import OrtValue

        config = {**_read(root / "config.json"), **_read(root / "generation_config.json")}
        self._limits(config.get("eos_token_id"), config.get("max_position_embeddings"))
        self._session, self._np, self._value = session, np, OrtValue.ortvalue_from_numpy
        self._tokenizer = _tokenizer(root)
        self._inputs = {i.name: i for i in session.get_inputs()}
        self._pasts = [n for n in self._inputs if n.startswith("past")]
        self._outputs = ["logits", *(o.name for o in session.get_outputs() if o.name.startswith("present"))]
        self._cache: list[Any] = []
        self._length = 0

    def encode(self, text: str) -> list[int]:
        """See :class:`Decoder`."""
        return list(self._tokenizer.encode(text).ids)

    def start(self, ids: list[int], room: int) -> np.ndarray:
        """See :class:`Decoder`."""
        del room  # the cache grows
        np = self._np
        shapes = [self._inputs[n].shape for n in self._pasts]
        self._cache = [self._value(np.zeros((1, s[1], 0, s[3]), np.float32)) for s in shapes]
        self._length = 0
        return self._feed(ids)

    def step(self, token: int) -> np.ndarray:
        """See :class:`Decoder`."""
        return self._feed([token])

    def _feed(self, ids: list[int]) -> np.ndarray:
        np, total = self._np, self._length + len(ids)
        feed = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(self._length, total)[None],
        }
        values = {n: self._value(x) for n, x in feed.items() if n in self._inputs}
        values.update(zip(self._pasts, self._cache))  # noqa: B905 - Python 3.8 has no strict
        logits, *self._cache = self._session.run_with_ort_values(self._outputs, values)
        self._length = total
        return logits.numpy()[0, -1]

    def words(self) -> Callable[[int], str | None]:
        """See :class:`Decoder`."""
        return _words(self._tokenizer)


class Encoder:
    """A sentence encoder or classifier: a vector for each text, pooled as ``1_Pooling/config.json`` says."""

    def __init__(self, root: Path, session: Any) -> None:
        self._session = session
        self._names = [i.name for i in session.get_inputs()]
        self._tokenizer = _tokenizer(root)
        self._context = int(_read(root / "config.json").get("max_position_embeddings") or 512)
        classes = _read(root / "config.json").get("id2label") or {}
        self._classes = classes if session.get_outputs()[0].name == "logits" else {}
        asked = [k for k, v in _read(root / "1_Pooling" / "config.json").items() if k.startswith("pooling_mode_") and v]
        self._pooling = asked[0] if len(asked) == 1 else "pooling_mode_mean_tokens"

    def encode(self, text: str) -> list[int]:
        """Token ids."""
        return list(self._tokenizer.encode(text).ids)

    def vector(self, ids: list[int]) -> np.ndarray:
        """float32 [H]: the embedding of a text's tokens, or a classifier's logits."""
        import numpy as np

        if len(ids) > self._context:
            raise Refused(f"The text has {len(ids)} tokens; this model's context is {self._context}.")
        row = np.array([ids], dtype=np.int64)
        feed = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
        found = self._session.run(None, {n: feed[n] for n in self._names})[0][0].astype(np.float32)
        if found.ndim == 1:
            return found
        if self._pooling == "pooling_mode_cls_token":
            return found[0]
        return found.max(0) if self._pooling == "pooling_mode_max_tokens" else found.mean(0)

    def says(self, text: str) -> list[float] | dict[str, float]:
        """What is told of a text: its embedding; of a classifier each class and its logit, the largest first."""
        found = [round(float(x), 6) for x in self.vector(self.encode(text))]
        if not self._classes:
            return found
        return {str(self._classes.get(str(i), i)): found[i] for i in sorted(range(len(found)), key=lambda i: -found[i])}

    def record(self, text: str, count: int) -> dict[str, Any]:
        """A golden case: the text's tokens and its vector."""
        del count
        ids = self.encode(text)
        return {"text": text, "prompt": ids, "vector": [round(float(x), 6) for x in self.vector(ids)]}

    def departs(self, case: dict[str, Any], tolerance: dict[str, float]) -> str:
        """What is wrong with a golden case here, in words, or ""."""
        import numpy as np

        if self.encode(case["text"]) != case["prompt"]:
            return "the tokenizer splits it otherwise"
        want = np.array(case["vector"])
        off = float(np.linalg.norm(self.vector(case["prompt"]) - want) / np.linalg.norm(want))
        return "" if off <= tolerance["relative"] else f"its vector is off by {off:.3g} of its length"


@dataclass(frozen=True)
class Script:
    """How a transcript begins, goes on and ends, in tokens.

    Attributes:
        start: what it begins with.
        languages: of which the one that the model hears comes next; none where it hears one alone.
        after: what comes then.
        never: what is not written.
        never_first: what no transcript begins with.
        ends: what ends it.
        room: tokens that it may have, those at its beginning with them; 0 where there is no such limit.
        window: samples that are heard at once; 0 where that is all of a clip.
    """

    start: tuple[int, ...]
    ends: tuple[int, ...]
    languages: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    never: tuple[int, ...] = ()
    never_first: tuple[int, ...] = ()
    room: int = 0
    window: int = 0

    @property
    def longest(self) -> float:
        """Seconds that a clip may last: what is heard at once should be sentences, what is heard by windows an hour."""
        return 3600.0 if self.window else LONGEST

    def most(self, clip: np.ndarray) -> int:
        """Tokens that the transcript of a clip [samples] may have."""
        if not self.window:
            return int(len(clip) / RATE * _PACE) + _MORE
        begun = len(self.start) + bool(self.languages) + len(self.after)
        return max(1, self.room - begun) * sum(1 for _ in pieces(clip, self.window))


def pieces(clip: np.ndarray, window: int) -> Iterator[np.ndarray]:
    """A clip [samples] in pieces of at most ``window`` (0: whole), cut where the last third of each is quietest."""
    import numpy as np

    while window and len(clip) > window:
        first, tenth = window - window // 3, RATE // 10
        energy = np.cumsum(np.square(clip[first:window], dtype=np.float64))
        at = first + int((energy[tenth:] - energy[:-tenth]).argmin()) + tenth // 2
        yield clip[:at]
        clip = clip[at:]
    yield clip


class Scribe(ABC):
    """Writes what is said in a clip, the likeliest token each time, by its :class:`Script`.

    Attributes:
        script: see there.
        prompt: what the transcript that is being written began with.
        language: its token, None where the model has one alone.
    """

    script: Script
    prompt: list[int]
    language: int | None

    @abstractmethod
    def hear(self, sound: np.ndarray) -> None:
        """Take in sound, float32 [samples], and forget what was heard and written."""

    @abstractmethod
    def feed(self, ids: list[int]) -> np.ndarray:
        """Logits [V] after some tokens more."""

    def begin(self, sound: np.ndarray, language: int | None = None) -> np.ndarray:
        """Hear at most a window, float32 [samples], in a known language or the likeliest; logits [V] of a token."""
        import numpy as np

        self.hear(np.pad(sound, (0, max(0, self.script.window - len(sound)))))
        first, read = list(self.script.start), 0
        if self.script.languages:
            if language is None:
                heard, read = self.feed(first), len(first)
                language = max(self.script.languages, key=lambda t: float(heard[t]))
            first.append(language)
        self.language, self.prompt = language, [*first, *self.script.after]
        return self._allowed(self.feed(self.prompt[read:]), [*self.script.never, *self.script.never_first])

    def follow(self, token: int) -> np.ndarray:
        """Logits [V] after one token more."""
        return self._allowed(self.feed([token]), list(self.script.never))

    def write(self, clip: np.ndarray, most: int) -> Iterator[int]:
        """At most ``most`` tokens of a clip, float32 [samples], window by window; the last end may be among them.

        The language is the first window's.
        """
        parts, language = list(pieces(clip, self.script.window)), None
        for number, part in enumerate(parts, 1):
            logits = self.begin(part, language)
            language = self.language
            room = min(most, self.script.room - len(self.prompt) if self.script.room else most)
            for left in range(room, 0, -1):
                token = int(logits.argmax())
                if token in self.script.ends and number < len(parts):
                    break
                yield token
                most -= 1
                logits = self.follow(token) if left > 1 else logits

    @staticmethod
    def _allowed(logits: np.ndarray, never: list[int]) -> np.ndarray:
        if not never:
            return logits
        found = logits.copy()
        found[never] = -float("inf")
        return found


class Listener(Scribe):
    """Two graphs: one gives keys and values of what is heard, one takes these and its own and writes.

    Args:
        encoder: of the first graph.
        decoder: of the second.
        script: how transcripts go.
    """

    def __init__(self, encoder: Any, decoder: Any, script: Script) -> None:
        import numpy as np
        from onnxruntime import OrtValue

        self.script, self._encoder, self._decoder = script, encoder, decoder
        self._np, self._value = np, OrtValue.ortvalue_from_numpy
        self._given = [o.name.replace("present", "past_key_values", 1) for o in encoder.get_outputs()]
        self._presents = [o.name for o in decoder.get_outputs() if o.name != "logits"]
        self._pasts = [n.replace("present", "past_key_values", 1) for n in self._presents]
        shapes = {i.name: i.shape for i in decoder.get_inputs()}
        self._nothing = [self._value(np.zeros((1, shapes[n][1], 0, shapes[n][3]), np.float32)) for n in self._pasts]
        self._heard: dict[str, Any] = {}
        self._own: list[Any] = []

    def hear(self, sound: np.ndarray) -> None:
        """See :class:`Scribe`."""
        clip = {self._encoder.get_inputs()[0].name: self._value(self._np.ascontiguousarray(sound[None]))}
        self._heard = dict(zip(self._given, self._encoder.run_with_ort_values(None, clip)))  # noqa: B905 - Python 3.8
        self._own = self._nothing

    def feed(self, ids: list[int]) -> np.ndarray:
        """See :class:`Scribe`."""
        values = {"input_ids": self._value(self._np.array([ids], dtype=self._np.int64)), **self._heard}
        values.update(zip(self._pasts, self._own))  # noqa: B905 - the same
        logits, *self._own = self._decoder.run_with_ort_values(["logits", *self._presents], values)
        return logits.numpy()[0, -1]

    def record(self, text: str, count: int) -> dict[str, Any]:
        """A golden case: of a :func:`voice` what its transcript begins with, and as :class:`Decoder` has them."""
        logits = self._sung(text)
        count = min(count, self.script.room - len(self.prompt) if self.script.room else count)
        return {"text": text, "prompt": self.prompt, **_written(logits, self._further, count)}

    def departs(self, case: dict[str, Any], tolerance: dict[str, float]) -> str:
        """What is wrong with a golden case here, in words, or ""."""
        logits = self._sung(case["text"])
        if self.prompt != case["prompt"]:
            return f"a transcript begins with {self.prompt}, not {case['prompt']}"
        return _off(case, tolerance, logits, self._further)

    def _sung(self, text: str) -> np.ndarray:
        return self._on(self.begin(next(pieces(voice(text), self.script.window))))

    def _further(self, token: int) -> np.ndarray:
        return self._on(self.follow(token))

    def _on(self, logits: np.ndarray) -> np.ndarray:
        """Logits without an end: there are no words in a :func:`voice`, and nothing is tested by none."""
        return self._allowed(logits, list(self.script.ends))


def voice(words: str) -> np.ndarray:
    """A vowel, float32 [samples], sung as ``words`` say: "110 Hz, 1.5 s"."""
    import numpy as np

    hertz, seconds = map(float, re.findall(r"[\d.]+", words))
    time = np.arange(int(seconds * RATE)) / RATE
    tones = np.arange(1, int(4000 / hertz)) * hertz
    loud = 0.01 + np.exp(-(((tones[:, None] - np.array([700, 1100, 2500])) / 150) ** 2)).sum(1)  # its formants
    found = (loud[:, None] * np.sin(2 * np.pi * tones[:, None] * time)).sum(0) * np.sin(np.pi * time / seconds)
    return (0.3 * found / np.abs(found).max()).astype(np.float32)


def sound(path: Path, longest: float) -> np.ndarray:
    """A ``.wav`` of 16 kHz, one channel and 16 bits, float32 [samples].

    Raises:
        Refused: it is something else, damaged, too short, or lasts more than ``longest`` seconds.
    """
    import numpy as np

    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, count = file.getparams()[:4]
            raw = file.readframes(count)
    except (wave.Error, EOFError, OSError) as e:
        raise Refused(f"{path} cannot be read as .wav: {e or 'it ends too soon'}.") from e
    if (channels, width, rate) != (1, 2, RATE):
        raise Refused(
            f"{path} has {channels} channels of {8 * width} bits at {rate} Hz; here one of 16 bits at {RATE} Hz is "
            f"heard: ffmpeg -i {path} -ac 1 -ar {RATE} -c:a pcm_s16le heard.wav"
        )
    if len(raw) != count * width:
        raise Refused(f"{path} is damaged: {len(raw):,} of its {count * width:,} bytes of sound are there.")
    if not SHORTEST <= count / rate <= longest:
        raise Refused(f"{path} lasts {count / rate:.2f} s; a clip lasts {SHORTEST:g} to {longest:g} s.")
    return np.frombuffer(raw, "<i2").astype(np.float32) / 32768


def load(root: Path, kind: str, threads: int = 0) -> Genai | OnnxDecoder | Encoder | Listener:
    """The model, ready.

    Args:
        root: the bundle's directory, checked.
        kind: of the artifact: "genai" or "onnx".
        threads: CPU threads; 0 leaves it to the runtime.

    Raises:
        Refused: a package is missing, or the runtime cannot load the model.
    """
    try:
        if kind == "genai":
            return Genai(root, threads)
        session = _session(root, threads)
        if (root / SCRIPT).is_file():
            return Listener(_session(root, threads, ENCODER), session, Script(**_read(root / SCRIPT)))
        past = any(i.name.startswith("past") for i in session.get_inputs())
        return OnnxDecoder(root, session) if past else Encoder(root, session)
    except ImportError as e:
        raise Refused(f"{e}. Install what requirements.txt lists: pip install -r {root / 'requirements.txt'}") from e
    except Exception as e:  # the runtimes' exceptions share no base
        raise Refused(f"{root} cannot be loaded: {str(e).splitlines()[0]}") from e


def self_test(model: Any, root: Path) -> str:
    """One line on the golden cases, all of which hold.

    Raises:
        Refused: one does not.
    """
    golden = _read(root / GOLDEN)
    for number, case in enumerate(golden["cases"], 1):
        wrong = model.departs(case, golden["tolerance"])
        if wrong:
            raise Refused(
                f"Self-test {number} of {len(golden['cases'])} failed ({case['text'][:40]!r}): {wrong}. "
                f"Tolerance: {golden['tolerance']}; {golden['reason']}"
            )
    count = len(golden["cases"])
    return f"self-test: {count} of {count} golden cases hold (multiplied in {golden['arithmetic']})"


def _tested(root: Path) -> Path:
    """Where it is noted that this bundle has passed its self-test on this machine with these versions."""
    from importlib.metadata import distributions

    runtimes = sorted(
        f"{d.metadata['Name']} {d.version}"
        for d in distributions()
        if str(d.metadata["Name"]).startswith(("onnxruntime", "tokenizers", "numpy"))
    )
    key = "\n".join(
        [sha256(root / MANIFEST), platform.node(), platform.machine(), platform.python_version(), *runtimes]
    )
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "greenllm" / "tested" / hashlib.sha256(key.encode()).hexdigest()


def _prove(model: Any, root: Path, *, again: bool) -> None:
    """The self-test, before anything else the first time; then only when asked."""
    note = _tested(root)
    if again or not note.is_file():
        print(self_test(model, root), file=sys.stderr)
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.touch()
        except OSError:
            return  # nowhere to note it: it is tested each time


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="*", help="a prompt; for an encoder any number of texts")
    parser.add_argument("--audio", type=Path, help="a transcriber: the .wav to hear")
    parser.add_argument("--max-tokens", type=int, help="length of the answer at most; default: 256, or a clip's")
    parser.add_argument("--raw", action="store_true", help="no chat template around the prompt")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: the runtime's choice")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--check", action="store_true")
    found = parser.parse_args()
    if not (found.text or found.audio or found.self_test or found.check):
        parser.error("give a prompt, --audio, --self-test or --check")
    return found


def _check_asked(model: Any, asked: argparse.Namespace) -> None:
    """Refuse a text for a model that hears, and sound for another."""
    if isinstance(model, Listener) and asked.text:
        raise Refused("This model writes what it hears: run.py --audio clip.wav")
    if asked.audio and not isinstance(model, Listener):
        raise Refused(f"This model does not hear: there is nothing that it does with {asked.audio}.")


def _answer(model: Any, root: Path, asked: argparse.Namespace) -> Iterator[str]:
    """What a model writes, piece by piece."""
    if isinstance(model, Listener):
        clip = sound(asked.audio, model.script.longest)
        word, tokens = _words(_tokenizer(root)), model.write(clip, asked.max_tokens or model.script.most(clip))
        yield from (word(token) or "" for token in takewhile(lambda t: t not in model.script.ends, tokens))
        return
    prompt = " ".join(asked.text)
    word, ids = model.words(), model.encode(prompt if asked.raw else model.ask(prompt))
    yield from (word(token) or "" for token in model.answer(ids, asked.max_tokens or 256))


def main() -> int:
    """Exit code 0 when done, 1 when refused."""
    asked = _arguments()
    root = Path(__file__).resolve().parent
    try:
        manifest = check(root)
        if asked.check:
            print(f"{len(manifest['files'])} files are what {MANIFEST} says", file=sys.stderr)
            return 0
        model = load(root, manifest["kind"], asked.threads)
        _check_asked(model, asked)
        _prove(model, root, again=asked.self_test)
        if isinstance(model, Encoder):
            for text in asked.text:
                print(json.dumps(model.says(text), ensure_ascii=False))
        elif asked.text or asked.audio:
            begun = not asked.audio  # Whisper's first word begins with a space
            for piece in _answer(model, root, asked):
                print(piece if begun else piece.lstrip(), end="", flush=True)
                begun = begun or bool(piece.strip())
            print()
    except Refused as e:
        print(f"Error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
