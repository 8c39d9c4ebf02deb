"""Time: a query is read (prefill) and answered token by token (decode), greedy, batch 1.

Rounds of all models take turns, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from greenllm.bench.measurement import Measurement, log_mean, sitting_means
from greenllm.bench.runners import Batched, Decoder, Info, Runner
from greenllm.errors import GreenError

T = TypeVar("T")


@dataclass(frozen=True)
class Query:
    """Seconds of one query: until the first token, and of each further one (none for an encoder).

    ``parts`` are the seconds that each part of a model of several took.
    """

    first: float
    steps: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The whole query."""
        return self.first + sum(self.steps)


def ask(runner: Runner, prompt: Any, answer: int) -> Query:
    """One query: ``answer`` tokens after ``prompt``, or the embedding of ``prompt`` (tokens, pixels) for 0."""
    runner.clock.take()
    if answer == 0:
        found = _timed(lambda: runner.encode([prompt]), _never, 1)
    else:
        found = _timed(lambda: runner.prefill(prompt, answer), runner.step, answer)
    return replace(found, parts=runner.clock.take())


def ask_all(runner: Runner, prompts: Any, answer: int) -> Query:
    """All of a batch at once, as :func:`ask`: a step is one token of each.

    Raises:
        GreenError: the runner answers one query at a time.
    """
    if answer == 0:
        return _timed(lambda: runner.encode(prompts), _never, 1)
    if not isinstance(runner, Batched):
        raise GreenError("Its runner here answers one query at a time.")
    return _timed(lambda: runner.prefill_all(prompts, answer), runner.step_all, answer)


def _timed(first: Callable[[], T], step: Callable[[T], T], answer: int) -> Query:
    clock = time.perf_counter
    begin = clock()
    token = first()
    times = [clock()]
    for _ in range(answer - 1):
        token = step(token)
        times.append(clock())
    return Query(times[0] - begin, [b - a for a, b in itertools.pairwise(times)])


def _never(value: T) -> T:
    """What follows an embedding."""
    return value


def repeat(query: Callable[[], Query], seconds: float) -> list[Query]:
    """Whole queries, back to back, at least one, until ``seconds`` have passed."""
    end = time.perf_counter() + seconds
    found = [query()]
    while time.perf_counter() < end:
        found.append(query())
    return found


def overhead(steps: int = 20_000) -> float:
    """Seconds a token that the bench itself takes: the queries of a model that answers at once."""
    query = ask(_Instant(), [0], steps)
    return query.seconds / steps


class _Instant(Decoder):
    """A model that takes no time."""

    info = Info("text-generation", Path())

    def prefill(self, tokens: list[int], answer: int) -> int:
        """At once."""
        del tokens, answer
        return 0

    def step(self, token: int) -> int:
        """At once."""
        return token

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """Nobody asks."""
        return np.zeros((len(tokens), 1), np.float32)

    def close(self) -> None:
        """Nothing to free."""


@dataclass
class Rounds:
    """All queries of one model; a round is what it did in one turn.

    Attributes:
        prompt: tokens of a text; seconds of a clip.
        rounds: the queries of each.
        kind: what is asked about: "text", "image" or "clip".
        sittings: in which each round was; empty: rounds that stand for themselves.
    """

    prompt: float
    rounds: list[list[Query]] = field(default_factory=list)
    kind: str = "text"
    sittings: list[int] = field(default_factory=list)

    def add(self, queries: list[Query], sitting: int) -> None:
        """One more round."""
        self.rounds.append(queries)
        self.sittings.append(sitting)

    def by_sitting(self, seconds: Callable[[Query], float]) -> list[float]:
        """Mean of ``seconds`` of the queries of each sitting."""
        rounds = [sum(map(seconds, r)) / len(r) for r in self.rounds]
        return sitting_means(rounds, self.sittings)

    def first(self) -> list[float]:
        """Mean seconds to the first token (or to the embedding), by round."""
        return [sum(q.first for q in r) / len(r) for r in self.rounds]

    def steps(self) -> list[float]:
        """Mean seconds of a further token, by round; empty for an encoder."""
        each = [[s for q in r for s in q.steps] for r in self.rounds]
        return [sum(s) / len(s) for s in each if s]

    def samples(self) -> dict[str, list[float]]:
        """Figures by round, under the metric's name: what ratios are paired over.

        Tokens of one round share its luck, so that a round, not a token, is the sample. A percentile is
        among them where each round has tokens beyond it.
        """
        first, steps = self.first(), self.steps()
        if self.kind == "clip":
            whole = [sum(q.seconds for q in r) / len(r) for r in self.rounds]
            found = {"real_time": [t / self.prompt for t in whole], "decode": [1 / s for s in steps],
                     "first_token": [t * 1000 for t in first]}  # fmt: skip
        elif self.kind == "image" and steps:
            whole = [sum(q.seconds for q in r) / len(r) for r in self.rounds]
            found = {"caption": [t * 1000 for t in whole], "decode": [1 / s for s in steps],
                     "first_token": [t * 1000 for t in first]}  # fmt: skip
        elif steps:
            found = {"prefill": [self.prompt / t for t in first], "decode": [1 / s for s in steps],
                     "first_token": [t * 1000 for t in first]}  # fmt: skip
        else:
            found = {"encode": [1 / t for t in first]}
        name, times = self._times()
        for p in (50, 95, 99):
            if all(len(t) * (100 - p) >= 100 for t in times):  # noqa: PLR2004 - one in a hundred is beyond p99
                found[f"{name}_p{p}"] = [float(np.percentile(t, p)) for t in times]
        return found

    def quantiles(self) -> dict[str, list[float]]:
        """Milliseconds of a token (or text) at 0, 1, … 100 %, of all rounds together."""
        name, times = self._times()
        pooled = [t for each in times for t in each]
        return {f"{name}_quantiles": np.percentile(pooled, range(101)).tolist()} if pooled else {}

    def measurements(self) -> dict[str, Measurement]:
        """Geometric means over sittings; a percentile that rounds are too short for is of all tokens, no interval."""
        units = {"prefill": "tokens/s", "decode": "tokens/s", "encode": f"{self.kind}s/s", "real_time": "s/s"}
        found = {
            k: log_mean(v, units.get(k, "ms"), "measured:clock", self.sittings or None)
            for k, v in self.samples().items()
        }
        name, times = self._times()
        pooled = [t for each in times for t in each]
        for p in (50, 95, 99):
            value = float(np.percentile(pooled, p))
            whole = Measurement(
                value=value, unit="ms", n=len(pooled), method="measured:clock", note="all rounds pooled"
            )
            found.setdefault(f"{name}_p{p}", whole)
        return found

    def _times(self) -> tuple[str, list[list[float]]]:
        """Milliseconds of each further token (or of each text), by round."""
        tokens = [[s * 1000 for q in r for s in q.steps] for r in self.rounds]
        return ("token", tokens) if any(tokens) else (self.kind, [[q.first * 1000 for q in r] for r in self.rounds])

    def narrow(self, width: float) -> bool:
        """Whether every speed is known to ± ``width`` of itself."""
        speeds = [v for k, v in self.samples().items() if k in ("prefill", "decode", "encode", "real_time", "caption")]
        found = [log_mean(v, "", "", self.sittings or None) for v in speeds]
        return all(m.ci95 is not None and m.ci95[1] <= m.value * (1 + width) for m in found)
