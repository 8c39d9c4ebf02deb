"""How fast the models are: rounds of queries in turns, in two sittings, at the beginning of a bench and at its end.

A machine drifts over minutes (other guests, heat, frequency), which rounds close to each other do not show: of figures
of one sitting, most lie outside the interval of the next run's. See :mod:`greenllm.bench.repeats`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from greenllm.bench import latency
from greenllm.bench.bandwidth import read_bandwidth
from greenllm.bench.disturbance import Watch
from greenllm.bench.measurement import Measurement
from greenllm.bench.session import Contender, Effort, Query, Session

_WARM_UP = 8  # tokens; enough to page everything in
_SITTINGS = 2
_LEAST = 3  # rounds that give an interval worth the name
_PATIENCE = 3  # times as many disturbed rounds as undisturbed ones would be needed: then those count

Turn = list[tuple[Contender, list[latency.Query]]]


@dataclass
class Speed:
    """The rounds of a bench.

    Args:
        session: the models.
        query: what is asked in each round.
        effort: how long; a sitting has its share of rounds and seconds.
    """

    session: Session
    query: Query
    effort: Effort
    _sat: int = 0
    _read: float = 0.0
    _watch: Watch = field(default_factory=Watch)
    _disturbed: bool = False

    def sit(self) -> None:
        """Rounds until the intervals are narrow or the time is up; each model's figures, so far."""
        self._sat += 1
        seconds = self.effort.seconds / _SITTINGS
        self.session.progress.stage(f"speed, {self._sat} of {_SITTINGS}", seconds)
        self._read = self._read or read_bandwidth(self.session.threads)
        for who in list(self.session.live):
            with self.session.watching(who, "warm-up"):
                who.model.call("queries", who.prompt, min(self.query.answer, _WARM_UP), 0.0)
        for who, queries in (pair for turn in self._turns(seconds) for pair in turn):
            who.rounds.add(queries, self._sat)
        for who in list(self.session.live):
            who.row.measurements |= who.rounds.measurements()
            who.row.samples |= who.rounds.samples() | who.rounds.quantiles()
            _bandwidth(who, self._read)
            if self._sat == 1:  # before text is scored, for which some engines load a second graph
                with self.session.watching(who, "memory"):
                    _memory(who)

    def said(self) -> dict[str, str | float]:
        """What the report must name: how it ended, what was dropped, the machine's memory, the bench's own part."""
        wide = "" if all(c.rounds.narrow(self.effort.width) for c in self.session.live) else "not "
        count = max((len(c.rounds.rounds) for c in self.session.live), default=0)
        why = f"after {count} rounds; {wide}every interval was within ±{self.effort.width:.0%}"
        found: dict[str, str | float] = {"rounds": why}
        if self._watch.seen:
            found["disturbed"] = self._watch.words(counted=self._disturbed)
        return found | {"read_gb_s": round(self._read / 1e9, 2), "harness_us": round(latency.overhead() * 1e6, 3)}

    def _turns(self, seconds: float) -> list[Turn]:
        """Turns of one sitting that count: those that nothing disturbed, or all where hardly any other came."""
        least = max(2, -(-self.effort.rounds // _SITTINGS))
        begin = told = time.monotonic()
        calm, every = list[Turn](), list[Turn]()
        self._watch.begin()
        while True:
            every.append(self._turn(order=1 if len(every) % 2 else -1))  # there and back: nobody always follows
            if not self._watch.disturbed():
                calm.append(every[-1])
            now = time.monotonic()
            self.session.progress.advance(now - told)
            told, left = now, seconds - (now - begin)
            if not self.session.live:
                return every
            if len(calm) >= least and (left <= 0 or self._narrow(calm)):
                return calm
            if len(calm) >= min(least, _LEAST) and left <= 0:
                return calm
            if left <= 0 and len(every) >= _PATIENCE * least:
                self._disturbed = True
                return every

    def _turn(self, order: int) -> Turn:
        """One turn of every living model."""
        found = []
        for who in self.session.live[::order]:
            with self.session.watching(who, "speed"):
                found.append((who, who.model.call("queries", who.prompt, self.query.answer, self.effort.turn)))
        return found

    def _narrow(self, turns: list[Turn]) -> bool:
        """Whether these turns alone give every model's speed to within the wanted width."""
        for who in self.session.live:
            rounds = latency.Rounds(who.rounds.prompt, kind=who.rounds.kind)
            for queries in (q for turn in turns for w, q in turn if w is who):
                rounds.add(queries, 1)
            if not rounds.narrow(self.effort.width):
                return False
        return True


def _bandwidth(who: Contender, read: float) -> None:
    """Weights that decoding reads a second, beside what the machine can read."""
    decode = who.row.measurements.get("decode")
    if decode and who.weights:
        found = decode.scaled(who.weights / 1e9, "GB/s", "computed: bytes of its weights, times tokens a second")
        share = f"{found.value / (read / 1e9):.0%} of the {read / 1e9:.1f} GB/s that this machine reads"
        note = "of the GPU's memory" if who.info.gpu else share
        who.row.measurements["bandwidth"] = found.model_copy(update={"note": note})


def _memory(who: Contender) -> None:
    peak = who.model.call("peak_memory")
    note = "the most its process held resident (VmHWM) while loading and answering, Python and libraries included"
    who.row.measurements["memory"] = Measurement(value=peak / 1e6, unit="MB", n=1, method="measured:VmHWM", note=note)
