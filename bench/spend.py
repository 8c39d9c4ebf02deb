"""What is spent on a query, and on each phase of it: windows of the same work back to back, between two idle ones."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from greenllm.bench import energy as meters
from greenllm.bench.measurement import Measurement, bootstrap
from greenllm.bench.parts import add, energies
from greenllm.bench.session import Contender, Effort, Query, Session


@dataclass(frozen=True)
class Spending:
    """What was counted, and all that makes figures of it."""

    idle: meters.Idle
    worked: list[tuple[Contender, dict[str, Part]]]
    query: Query
    meter: meters.Meter
    grid: meters.Grid | None
    share: meters.Embodied | None

    def tell(self) -> None:
        """Fill in each row: how long a query takes is known from all sittings until now."""
        for who, parts in self.worked:
            if "query" not in parts:
                continue
            who.row.samples["query_seconds"] = parts["query"].seconds
            who.row.measurements |= _figures(who, parts, self.idle, self.meter, self.query)
            add(who.row.parts, energies(who.row.parts, who.row["energy_gross"]))
            if self.grid:
                took = bootstrap(parts["query"].seconds, "s", "measured:clock")
                gross, net = (who.row.measurements[f"energy_{x}"] for x in ("gross", "net"))
                tokens = self.query.answer or self.query.prompt
                who.row.measurements |= meters.carbon(gross, net, took, self.grid, self.share, tokens)


@dataclass(frozen=True)
class Part:
    """A window of one kind of work, and how long each piece of it took."""

    window: meters.Window
    seconds: list[float]


def run(
    session: Session, query: Query, effort: Effort, meter: meters.Meter, grid: meters.Grid | None,
    share: meters.Embodied | None, *, loads: bool,
) -> Spending:  # fmt: skip
    """Windows of queries, of prompts alone and (with ``loads``) of starts for each model, all of them loaded."""
    seconds = max(effort.energy, meters.shortest(meter))
    each = 1 + (query.answer > 0) + loads
    session.progress.stage("energy", seconds * (2 + each * len(session.live)))
    before = _rest(session, meter, seconds)
    worked: list[tuple[Contender, dict[str, Part]]] = []
    for who in list(session.live):
        parts: dict[str, Part] = {}
        with session.watching(who, "energy"):
            parts["query"] = _queries(who, meter, query.answer, seconds)
            if query.answer:
                parts["prefill"] = _queries(who, meter, 1, seconds)
            if loads:
                parts["load"] = _starts(session, who, meter, seconds)
        worked.append((who, parts))
        session.progress.advance(seconds * each)
    idle = meters.Idle(before, _rest(session, meter, seconds))
    found = Spending(idle, worked, query, meter, grid, share)
    found.tell()
    return found


def _figures(
    who: Contender, parts: dict[str, Part], idle: meters.Idle, meter: meters.Meter, query: Query
) -> dict[str, Measurement]:
    """Joules of a query, and of what it is made of."""

    def spent(name: str, sittings: list[float]) -> tuple[Measurement, Measurement]:
        return meters.per_query(parts[name].window, idle, parts[name].seconds, sittings, meter)

    gross, net = spent("query", who.rounds.by_sitting(lambda q: q.seconds))
    found = {"energy_gross": gross, "energy_net": net}
    if "prefill" in parts:
        first = spent("prefill", who.rounds.by_sitting(lambda q: q.first))[0]
        kind = who.rounds.kind
        amount, unit, asks = (
            (len(who.prompt), "token", f"{len(who.prompt)} tokens") if kind == "text" else (1, kind, f"one {kind}")
        )
        note = f"a window of prompts of {asks}, one token answered; everything the meter covers"
        prefill = first.scaled(1 / amount, f"J/{unit}").model_copy(update={"note": note})
        note = f"a query less its prefill, over the {query.answer - 1} tokens after the first"
        rest = _less(gross, first).scaled(1 / (query.answer - 1), "J/token").model_copy(update={"note": note})
        found |= {"energy_prefill": prefill, "energy_decode": rest}
    if "load" in parts:
        note = (
            "start of process, libraries and model, files in the page cache, and its end; everything the meter covers"
        )
        found["energy_load"] = spent("load", [])[0].model_copy(update={"note": note})
    return found


def _less(whole: Measurement, part: Measurement) -> Measurement:
    """The difference of two figures from windows of their own."""
    value, ci = whole.value - part.value, None
    if whole.ci95 and part.ci95:
        reach = math.hypot(*((m[1] - m[0]) / 2 for m in (whole.ci95, part.ci95)))
        ci = (value - reach, value + reach)
    return whole.model_copy(update={"value": value, "ci95": ci, "n": min(whole.n, part.n)})


def _queries(who: Contender, meter: meters.Meter, answer: int, seconds: float) -> Part:
    who.model.send("queries", who.prompt, answer, seconds)
    window = meters.watch(meter, who.model.done, time.perf_counter)
    return Part(window, [q.seconds for q in who.model.result()])


def _starts(session: Session, who: Contender, meter: meters.Meter, seconds: float) -> Part:
    """Two starts or more; the last one's model stays."""
    who.model.close()
    session.begin(who)
    begin, took = time.perf_counter(), list[float]()
    end = begin + seconds

    def done(wait: float) -> bool:
        nonlocal begin
        if not who.model.done(wait):
            return False
        who.model.result()
        took.append(time.perf_counter() - begin)
        if len(took) > 1 and time.perf_counter() >= end:
            return True
        who.model.close()
        begin = time.perf_counter()
        session.begin(who)
        return False

    return Part(meters.watch(meter, done, time.perf_counter), took)


def _rest(session: Session, meter: meters.Meter, seconds: float) -> meters.Window:
    end = time.perf_counter() + seconds

    def done(wait: float) -> bool:
        time.sleep(max(0.0, min(wait, end - time.perf_counter())))
        return time.perf_counter() >= end

    found = meters.watch(meter, done, time.perf_counter)
    session.progress.advance(seconds)
    return found
