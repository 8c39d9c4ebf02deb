"""A model that is asked as it is, with samples in its prompt, and with an adapter that learned from them."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from greenllm import audio, source
from greenllm.adapt import adapters
from greenllm.adapt.choose import Wanted, choose
from greenllm.adapt.learn import judge
from greenllm.adapt.methods import KINDS, Method
from greenllm.adapt.run import frozen, tokenized, train
from greenllm.adapt.shots import Shot
from greenllm.bench.answers import write
from greenllm.bench.energy import JOULES_PER_KWH, track
from greenllm.bench.runners.torch import TorchListener
from greenllm.bench.tasks import speech
from greenllm.bench.texts import Tokens
from greenllm.checkpoint import Checkpoint, open_checkpoint
from greenllm.kinds import SPEECH
from greenllm.progress import Silent

ONCE = 5  # steps from one shot
PROMPTED, ADAPTED, NOTHING = "prompted", "adapted", "as it is"
_HELD = 1 << 30  # bytes of copies of a prompt's cache at once


class Draw(BaseModel):
    """What came of one draw: the share of items answered right, and what learning took."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    way: str
    shots: int
    draw: int
    right: float
    steps: int = 0
    seconds: float = 0.0
    joules: float = 0.0
    bytes: int = 0
    of: int = 0


class Subject:
    """A model that is asked: its weights in torch, and the items of the test in its tokens."""

    def __init__(self, model: str, method: Method, test: Sequence[Any], metas: Sequence[Path]) -> None:
        self.checkpoint: Checkpoint = open_checkpoint(model)
        self.name = Path(model).name
        self.tokens = Tokens(self.checkpoint.path)
        own = adapters.fingerprint(self.checkpoint.path)
        self.ways: dict[str, Path | None] = {ADAPTED: None}
        self.ways |= {f"from {m.name}": m for m in metas if adapters.read(m)[0].sha256 == own}
        self.method: Method = method
        self.energy = ""  # how it was counted, once it was
        self.model = self.checkpoint.load_model()
        self.bytes = sum(f.stat().st_size for f in source.shard_files(self.checkpoint.path))
        made = [choose(self.checkpoint, Wanted(method), meta)[0] for meta in self.ways.values()]
        self.items, self.test = test, tokenized(test, self.checkpoint, made[0])
        self.upper = frozen(self.model, min(m.first for m in made), self.test)  # no block that any of them changes

    def as_it_is(self) -> Draw:
        """Without any sample."""
        return Draw(model=self.name, way=NOTHING, shots=0, draw=0, right=self._right())

    def tried(self, way: str, items: Sequence[Any], shots: int, n: int) -> Draw | None:
        """See :meth:`adapted` and :meth:`prompted`."""
        return self.prompted(items, shots, n) if way == PROMPTED else self.adapted(items, way, shots, n)

    def adapted(self, items: Sequence[Any], way: str, shots: int, n: int) -> Draw:
        """Learn from a draw, ask, forget."""
        meta = self.ways[way]
        made, _ = choose(self.checkpoint, Wanted(self.method), meta)
        begin = time.perf_counter()
        with track() as tracked:
            samples = tokenized(items, self.checkpoint, made)
            steps, rate = None if shots > 1 else ONCE, KINDS[self.method].rate
            wrapped, told = train(self.model, made, samples, steps, rate, n, Silent(), meta)
        seconds = time.perf_counter() - begin
        values = [p.nbytes for p in wrapped.parameters() if p.requires_grad]
        found = Draw(
            model=self.name, way=way, shots=shots, draw=n, right=self._right(), steps=told["steps"],
            seconds=seconds, joules=tracked.energy.kwh * JOULES_PER_KWH, bytes=sum(values), of=self.bytes,
        )  # fmt: skip
        wrapped.unload()
        self.energy = tracked.energy.method
        return found

    @torch.no_grad()
    def prompted(self, items: Sequence[Any], shots: int, n: int) -> Draw | None:
        """The samples before each question, answered; None where the model reads nothing, or not so much."""
        if self.checkpoint.task == SPEECH:
            return None
        told = "".join(f"{i.context}{i.gap}{i.choices[i.label]}\n\n" for i in items)
        prefix = self.tokens.text(told)
        if len(prefix) + max(len(t) for s in self.test for t in s.texts) > self.tokens.context:
            return None
        cache = self.model(input_ids=torch.tensor([prefix]), use_cache=True, logits_to_keep=1).past_key_values
        size = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
        at_once, right = max(1, _HELD // size), 0
        for first in range(0, len(self.test), at_once):
            right += self._answer(self.test[first : first + at_once], cache)
        return Draw(model=self.name, way=PROMPTED, shots=shots, draw=n, right=right / len(self.test))

    def _answer(self, shots: Sequence[Shot], cache: Any) -> int:
        """How many are right after what the cache holds; they are padded at their end, where nothing looks back."""
        begun = len(self.tokens.text(""))  # what begins a text stands before the samples already
        texts = [t[begun:] for s in shots for t in s.texts]
        width = max(map(len, texts))
        copied = copy.deepcopy(cache)
        copied.batch_repeat_interleave(len(texts))
        ids = torch.tensor([[*t, *[0] * (width - len(t))] for t in texts])
        logits = self.model(input_ids=ids, past_key_values=copied, use_cache=True).logits.float().log_softmax(-1)
        right, at = 0, 0
        for shot in shots:
            scores = [
                sum(float(logits[at + c.text, c.start - begun - 1 + k, t]) for k, t in enumerate(c.tokens))
                for c in shot.choices
            ]
            right += max(range(len(scores)), key=scores.__getitem__) == shot.label
            at += len(shot.texts)
        return right

    def _right(self) -> float:
        """The share that is answered right; of clips: heard without a wrong word."""
        if self.checkpoint.task != SPEECH:
            return float(judge(self.upper, range(len(self.test)))[1].mean())
        runner = TorchListener(self.checkpoint, self.model)
        right = 0
        for item in self.items:
            clip = audio.read(item.file)
            right += speech.errors(write(runner, self.tokens, clip, runner.script.most(clip), []), item.text) == 0
        return right / len(self.items)
