"""One bench: load every model in its own process, measure in turns, compare with the baseline."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from greenllm.bench import energy, fidelity, latency, perplexity, texts
from greenllm.bench.measurement import Measurement, counted
from greenllm.bench.models import Target, sizes
from greenllm.bench.process import Failed, Model, blame
from greenllm.bench.results import Row
from greenllm.bench.runners import Info
from greenllm.errors import GreenError
from greenllm.progress import Progress

_BATCH = 16
_WARM_UP = 8  # tokens; enough to page everything in


@dataclass(frozen=True)
class Effort:
    """How long to try.

    Attributes:
        windows: windows of text to score.
        sentences: sentences to embed, for an encoder.
        rounds: rounds of queries, at least, unless the time is up.
        width: relative half-width at which an interval is narrow enough.
        seconds: for the rounds of all models together.
        turn: least seconds of one round of one model.
        energy: seconds of an energy window, where the meter asks for no more.
    """

    windows: int = 16
    sentences: int = 64
    rounds: int = 5
    width: float = 0.05
    seconds: float = 45.0
    turn: float = 0.5
    energy: float = 10.0


EFFORTS = {
    "quick": Effort(),
    "full": Effort(windows=100, sentences=256, rounds=10, width=0.02, seconds=300.0, turn=1.0, energy=60.0),
}


@dataclass(frozen=True)
class Query:
    """What is asked again and again: ``prompt`` tokens read, ``answer`` tokens written (0: an embedding)."""

    prompt: int
    answer: int


@dataclass
class Contender:
    """A model while it is on the bench."""

    target: Target
    row: Row
    model: Model
    info: Info = field(default_factory=lambda: Info("", Path()))
    windows: texts.Windows | None = None
    prompt: list[int] = field(default_factory=list)
    rounds: latency.Rounds = field(default_factory=lambda: latency.Rounds(0))


class Session:
    """All contenders. A phase goes over those that still live; who fails keeps what it has and says why.

    Args:
        targets: the baseline first.
        threads: for each model.
        progress: told of every phase.
    """

    def __init__(self, targets: list[Target], threads: int, progress: Progress) -> None:
        self.threads = threads
        self.progress = progress
        self.targets = targets
        self.rows = [Row(name=t.name, path=t.path, runner=t.runner, provenance=t.provenance()) for t in targets]
        self.live: list[Contender] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Nothing runs yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """End every process."""
        self._stack.close()

    @contextmanager
    def watching(self, who: Contender, phase: str) -> Iterator[None]:
        """A failure in the block is a finding about ``who``, who leaves the bench."""
        try:
            yield
        except Failed as e:
            who.row.error = f"{phase}: {e}"
            self.progress.note(f"{who.row.name}: {who.row.error}")
            who.model.close()
            self.live.remove(who)

    @property
    def baseline(self) -> Contender | None:
        """The first model, while it lives."""
        return self.live[0] if self.live and self.live[0].row is self.rows[0] else None

    def load(self) -> None:
        """Start and load them one by one.

        Raises:
            GreenError: a model that the user named is none, or generators and encoders are mixed.
        """
        self.progress.stage("load", len(self.targets))
        for target, row in zip(self.targets, self.rows, strict=True):
            who = Contender(target, row, self._stack.enter_context(Model(self.threads)))
            self.live.append(who)
            with self.watching(who, "load"):
                self._load(who)
            self.progress.advance()
        tasks = {c.info.task for c in self.live}
        if len(tasks) > 1:
            raise GreenError("Text generators and encoders cannot be benched against each other.", "Do them apart.")

    def _load(self, who: Contender) -> None:
        begin = time.perf_counter()
        try:
            who.info = who.model.call("load", who.target.runner, who.target.path, self.threads)
        except Failed as e:
            if e.users:
                raise blame(e, who.row.name) from e
            raise
        took = time.perf_counter() - begin
        who.row.task = who.info.task
        who.row.notes += who.info.notes
        note = "one start of process, libraries and model; files as the page cache had them"
        who.row.measurements["load"] = Measurement(value=took, unit="s", n=1, method="measured:clock", note=note)
        total, weights = sizes(who.info.directory, who.target.runner)
        who.row.measurements["disk"] = counted(total / 1e6, "MB", "all files that the model needs to run")
        base = self.live[0]
        if base.info.parameters and base.row is self.rows[0]:
            bits = weights * 8 / base.info.parameters
            note = f"its weight files over the baseline's {base.info.parameters / 1e6:.1f} million weights"
            who.row.measurements["bits_per_weight"] = counted(bits, "bits", note)

    def cut(self, text: texts.Text, window: int, count: int, query: Query) -> None:
        """Cut the text for each model with its own tokenizer; the prompt is the text's beginning."""
        cache: dict[str, texts.Windows] = {}
        for who in self.live:
            tokens = texts.Tokens(who.info.directory)
            key = (who.info.directory / "tokenizer.json").read_text(encoding="utf-8", errors="replace")
            if key not in cache:
                cache[key] = tokens.windows(text.text, max(window, 2), count)
            who.windows = cache[key]
            if query.answer:
                who.prompt = tokens.prompt(text.text, query.prompt)
            else:
                who.prompt = tokens.sentences([text.text[: 50 * query.prompt]], query.prompt)[0]
            who.rounds = latency.Rounds(len(who.prompt))

    def speed(self, query: Query, effort: Effort) -> str:
        """Rounds in turns until intervals are narrow or time is up; returns which. Then peak memory."""
        self.progress.stage("speed", effort.seconds)
        for who in list(self.live):
            with self.watching(who, "warm-up"):
                who.model.call("queries", who.prompt, min(query.answer, _WARM_UP), 0.0)
        begin = told = time.monotonic()
        why = None
        while why is None:
            for who in list(self.live):
                with self.watching(who, "speed"):
                    found = who.model.call("queries", who.prompt, query.answer, effort.turn)
                    who.rounds.rounds.append(found)
            now = time.monotonic()
            self.progress.advance(now - told)
            told = now
            left = effort.seconds - (now - begin)
            why = latency.enough([c.rounds for c in self.live], effort.rounds, effort.width, left)
        for who in list(self.live):
            who.row.measurements |= who.rounds.measurements()
            who.row.samples |= who.rounds.samples()
            with self.watching(who, "memory"):
                self._memory(who)
        return why

    def _memory(self, who: Contender) -> None:
        peak = who.model.call("peak_memory")
        note = "the most its process held resident (VmHWM) while loading and answering, Python and libraries included"
        who.row.measurements["memory"] = Measurement(
            value=peak / 1e6, unit="MB", n=1, method="measured:VmHWM", note=note
        )

    def energy(self, query: Query, effort: Effort, meter: energy.Meter, grid: energy.Grid | None) -> energy.Window:
        """One idle window (all models loaded), then one window of queries back to back for each model."""
        seconds = max(effort.energy, meter.shortest)
        self.progress.stage("energy", seconds * (1 + len(self.live)))
        end = time.monotonic() + seconds
        idle = energy.watch(meter, lambda wait: self._sleep(wait, end))
        self.progress.advance(seconds)
        for who in list(self.live):
            with self.watching(who, "energy"):
                who.model.send("queries", who.prompt, query.answer, seconds)
                work = energy.watch(meter, who.model.done)
                times = [q.seconds for q in who.model.result()]
                before = [q.seconds for r in who.rounds.rounds for q in r]
                gross, net = energy.per_query(work, idle, times, before, meter.method)
                who.row.samples["query_seconds"] = times
                who.row.measurements |= {"energy_gross": gross, "energy_net": net}
                if grid:
                    who.row.measurements |= _carbon(gross, net, grid, query.answer or query.prompt)
            self.progress.advance(seconds)
        return idle

    @staticmethod
    def _sleep(wait: float, end: float) -> bool:
        time.sleep(max(0.0, min(wait, end - time.monotonic())))
        return time.monotonic() >= end

    def score(self) -> None:
        """Perplexity and fidelity, window by window in lockstep: one window's logits on disk at a time."""
        scores = {id(c): perplexity.Scores(c.windows.text_bytes) for c in self.live if c.windows}
        count = max((len(c.windows.tokens) for c in self.live if c.windows), default=0)
        self.progress.stage("quality", count * len(self.live))
        with tempfile.TemporaryDirectory(prefix="greenllm-bench-") as scratch:
            file = str(Path(scratch) / "baseline.npy")
            for i in range(count):
                for who in list(self.live):
                    with self.watching(who, "quality"):
                        self._score(who, i, file, scores[id(who)])
                    self.progress.advance()
        for who in self.live:
            who.row.measurements |= scores[id(who)].measurements()
            who.row.samples |= scores[id(who)].samples()

    def _score(self, who: Contender, i: int, file: str, scores: perplexity.Scores) -> None:
        if who.windows is None or i >= len(who.windows.tokens):
            return
        first = who is self.baseline
        save = file if first and any(self.comparable(c) for c in self.live) else None
        against = file if self.comparable(who) else None
        found = who.model.call("score", who.windows.tokens[i], who.windows.start, save, against)
        scores.windows.append(found)

    def comparable(self, who: Contender) -> bool:
        """Whether a model reads the same tokens as the (living) baseline, and predicts as many."""
        base = self.baseline
        if base is None or who is base or base.windows is None or who.windows is None:
            return False
        known = who.info.vocabulary and base.info.vocabulary
        return who.windows.tokens == base.windows.tokens and not (known and who.info.vocabulary != base.info.vocabulary)

    def embed(self, sentences: list[str], longest: int, pairs: tuple[list[str], list[str], list[float]] | None) -> None:
        """Sentence embeddings against the baseline's, and rank correlation on pairs when there are any."""
        self.progress.stage("quality", len(self.live))
        source = None
        for who in list(self.live):
            with self.watching(who, "quality"):
                found = self._encode(who, sentences, longest)
                if who is self.baseline:
                    source = found
                elif source is not None:
                    samples = fidelity.embeddings(source, found)
                    who.row.samples |= samples
                    who.row.measurements |= fidelity.embedding_measurements(samples)
                if pairs:
                    sides = [self._encode(who, side, longest) for side in pairs[:2]]
                    who.row.measurements["spearman"] = fidelity.spearman(sides[0], sides[1], pairs[2])
            self.progress.advance()

    @staticmethod
    def _encode(who: Contender, sentences: list[str], longest: int) -> NDArray[np.float32]:
        ids = texts.Tokens(who.info.directory).sentences(sentences, longest)
        return np.concatenate([who.model.call("encode", ids[i : i + _BATCH]) for i in range(0, len(ids), _BATCH)])


def _carbon(gross: Measurement, net: Measurement, grid: energy.Grid, tokens: int) -> dict[str, Measurement]:
    grams = grid.grams_per_kwh / energy.JOULES_PER_KWH
    return {
        "carbon_gross": gross.scaled(grams * 1000, "mgCO2e"),
        "carbon_net": net.scaled(grams * 1000, "mgCO2e"),
        "carbon_1000": gross.scaled(grams * 1000 / tokens, "gCO2e"),
    }
