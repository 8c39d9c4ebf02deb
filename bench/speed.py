"""How fast the models are: rounds of queries in turns, in sittings that are spread over the bench.

A machine drifts over seconds and minutes (other guests, heat, frequency), which rounds close to each other do not show:
of figures of one sitting, most lie outside the interval of the next run's. The means of sittings apart are what an
interval is made of. See :mod:`greenllm.bench.measurement` and :mod:`greenllm.bench.repeats`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from greenllm.bench import latency, parts
from greenllm.bench.bandwidth import read_bandwidth
from greenllm.bench.disturbance import Watch
from greenllm.bench.measurement import Measurement
from greenllm.bench.process import Failed
from greenllm.bench.session import Contender, Effort, Query, Session

_READS = "that this machine reads"
_WARM_UP = 8  # tokens; enough to page everything in
_APART = 10.0  # seconds from the end of a sitting to the next, unless nothing else is left to do
_PATIENCE = 3  # turns, or two and twice the time, before disturbed ones count

Turn = list[tuple[Contender, list[latency.Query]]]


@dataclass
class Speed:
    """The rounds of a bench.

    Args:
        session: the models.
        query: what is asked in each round.
        effort: how long; a sitting has its share of half of the seconds.
    """

    session: Session
    query: Query
    effort: Effort
    _sat: int = 0
    _read: float = 0.0
    _ended: float = 0.0
    _took: float = 0.0
    _watch: Watch = field(default_factory=Watch)
    _counted: int = 0

    def begin(self) -> None:
        """The first sitting, and how much memory each model takes."""
        self._read = read_bandwidth(self.session.threads)
        for who in list(self.session.live):
            with self.session.watching(who, "warm-up"):
                who.model.call("queries", who.prompt, min(self.query.answer, _WARM_UP), 0.0)
        self._sit()
        for who in list(self.session.live):  # before text is scored, for which some engines load a second graph
            with self.session.watching(who, "memory"):
                _memory(who)

    def between(self) -> None:
        """Another sitting, where the last is some time ago and seconds are left."""
        if time.monotonic() - self._ended > _APART and self._took < self.effort.seconds:
            self._sit()

    def end(self) -> None:
        """Sittings until there are enough of them and the intervals are narrow, or the time is up; all figures."""
        while self.session.live and (
            self._sat < self.effort.sittings or (not self._narrow() and self._took < self.effort.seconds)
        ):
            self._sit()
        self._tell()

    def _sit(self) -> None:
        self._sat += 1
        seconds, begin = self.effort.seconds / 2 / self.effort.sittings, time.monotonic()
        self.session.progress.stage(f"speed, sitting {self._sat}", seconds)
        for who, queries in (pair for turn in self._turns(seconds) for pair in turn):
            who.rounds.add(queries, self._sat)
        self._ended = time.monotonic()
        self._took += self._ended - begin
        self._tell()

    def _tell(self) -> None:
        """Each model's figures so far: one that dies later keeps them."""
        for who in self.session.live:
            who.row.measurements |= who.rounds.measurements()
            who.row.samples |= who.rounds.samples() | who.rounds.quantiles()
            parts.add(who.row.parts, parts.times(who.rounds))
            _bandwidth(who, self._read)

    def _narrow(self) -> bool:
        return all(c.rounds.narrow(self.effort.width) for c in self.session.live)

    def said(self) -> dict[str, str | float]:
        """What the report must name: how it ended, what was dropped, the machine's memory, the bench's own part."""
        count = max((len(c.rounds.rounds) for c in self.session.live), default=0)
        wide = "" if self._narrow() else "not "
        why = f"after {self._sat} sittings, {count} rounds; {wide}every interval was within ±{self.effort.width:.0%}"
        found: dict[str, str | float] = {"rounds": why}
        if words := self._watch.words(self._counted):
            found["disturbed"] = words
        return found | {"read_gb_s": round(self._read / 1e9, 2), "harness_us": round(latency.overhead() * 1e6, 3)}

    def _turns(self, seconds: float) -> list[Turn]:
        """Turns of one sitting that count: those that nothing disturbed, or all where there is no other."""
        begin = told = time.monotonic()
        calm, every = list[Turn](), list[Turn]()
        self._watch.begin()
        while True:
            every.append(self._turn(order=1 if (self._sat + len(every)) % 2 else -1))  # nobody always follows
            if not self._watch.disturbed():
                calm.append(every[-1])
            now = time.monotonic()
            self.session.progress.advance(now - told)
            told, left = now, seconds - (now - begin)
            if not self.session.live or (left <= 0 and calm):
                return calm or every
            if left <= 0 and (len(every) >= _PATIENCE or (left <= -seconds and len(every) > 1)):
                self._counted += len(every)
                return every

    def _turn(self, order: int) -> Turn:
        """One turn of every living model."""
        found = []
        for who in self.session.live[::order]:
            with self.session.watching(who, "speed"):
                found.append((who, who.model.call("queries", who.prompt, self.query.answer, self.effort.turn)))
        return found


def _bandwidth(who: Contender, read: float) -> None:
    """Weights that decoding reads a second, beside what the machine can read."""
    decode = who.row.measurements.get("decode")
    if decode and who.weights:
        found = decode.scaled(who.weights / 1e9, "GB/s", "computed: bytes of its weights, times tokens a second")
        speed, what = (who.copies, "that its GPU copies, read and written") if who.info.gpu else (read, _READS)
        share = f"{found.value * 1e9 / speed:.0%} of the {speed / 1e9:.1f} GB/s {what}" if speed else "of the GPU's"
        who.row.measurements["bandwidth"] = found.model_copy(update={"note": share})


def _memory(who: Contender) -> None:
    peak = who.model.call("peak_memory")
    note = "the most its process held resident (VmHWM) while loading and answering, Python and libraries included"
    who.row.measurements["memory"] = Measurement(value=peak / 1e6, unit="MB", n=1, method="measured:VmHWM", note=note)
    if who.info.gpu:
        _gpu(who)


def _gpu(who: Contender) -> None:
    try:
        held, who.copies = who.model.call("gpu")
    except Failed as e:
        if not e.users:
            raise
        who.row.notes.append(f"the GPU's memory was not measured: {e}")
        return
    note = "what its process holds of GPUs' memory after answering, CUDA and caches of the allocator included"
    found = Measurement(value=held / 1e6, unit="MB", n=1, method="measured:nvml", note=note)
    who.row.measurements["gpu_memory"] = found
