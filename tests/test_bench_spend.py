"""Known work of known power, through the bench's own windows: each phase comes back, and inside its interval.

Only the clock, the counter's file and the model are stand-ins; the counter is read by the meter for RAPL.
"""

from __future__ import annotations

import os
import types

import numpy as np
import pytest

from greenllm.bench import Effort, energy, spend
from greenllm.bench.energy.rapl import Rapl
from greenllm.bench.latency import Query as Asked
from greenllm.bench.models import Target
from greenllm.bench.report.spend import by_phase
from greenllm.bench.results import Machine, Results, Row
from greenllm.bench.session import Contender, Query, Session
from greenllm.progress import Silent

SPAN = 1_500_000_000  # µJ: goes round in less than half a minute
PROMPT, ANSWER = 50, 21
IDLE, DRIFT = 20.0, 0.01  # watts, and watts a second
PREFILL, DECODE, LOAD = (0.3, 30.0), (0.8, 55.0), (1.7, 12.0)  # seconds, and watts above idle


class Clock:
    """A machine: time passes when somebody waits, and the counter counts."""

    def __init__(self, root, seed):
        self.now, self.raw, self.rng = 0.0, SPAN - 3e6, np.random.default_rng(seed)
        self.file = root / "intel-rapl:0" / "energy_uj"
        self.file.parent.mkdir(parents=True)
        for name, value in (("name", "package-0"), ("max_energy_range_uj", SPAN - 1)):
            (self.file.parent / name).write_text(f"{value}\n")
        self.sleep(0)

    def perf_counter(self):
        return self.now

    def sleep(self, seconds, watts=0.0):
        rest = IDLE + DRIFT * (self.now + seconds / 2)
        joules = seconds * (rest + watts) * (1 + 0.02 * self.rng.normal())
        self.now, self.raw = self.now + seconds, (self.raw + 1e6 * joules) % SPAN
        part = self.file.with_name(".part")
        part.write_text(f"{int(self.raw)}\n")
        os.replace(part, self.file)  # noqa: PTH105 - a rename is what is meant


class Worker:
    """A model of known speed and power; what it does takes place while the bench waits for it."""

    def __init__(self, clock):
        self.clock, self.todo, self.did = clock, [], []

    def send(self, method, *arguments):
        if method == "load":
            self.todo, self.value = [LOAD], None
            return
        _, answer, seconds = arguments
        self.todo, self.value, end = [], [], 0.0
        while end < seconds:
            luck = 1 + 0.02 * self.clock.rng.normal()
            work = [(t * luck, w) for t, w in ([PREFILL] if answer == 1 else [PREFILL, DECODE])]
            took = [t for t, _ in work]
            self.todo += work
            self.value.append(Asked(took[0], took[1:]))
            end += sum(took)

    def done(self, seconds):
        while self.todo and seconds > 1e-12:
            left, watts = self.todo[0]
            step = min(left, seconds)
            self.clock.sleep(step, watts)
            seconds -= step
            self.todo[0] = (left - step, watts)
            if left - step < 1e-9:
                self.todo.pop(0)
        return not self.todo

    def result(self):
        assert not self.todo
        return self.value

    def close(self):
        pass


@pytest.fixture
def measured(tmp_path, monkeypatch):
    def bench(seed):
        clock = Clock(tmp_path / str(seed), seed)
        monkeypatch.setattr(spend, "time", types.SimpleNamespace(perf_counter=clock.perf_counter, sleep=clock.sleep))
        monkeypatch.setattr(Session, "_process", lambda _: Worker(clock))
        meter = Rapl(tmp_path / str(seed))
        with Session([], 1, Silent()) as session:
            who = Contender(Target("m", "m", "torch"), Row(name="m", path="m", runner="torch"), Worker(clock))
            who.prompt = [1] * PROMPT
            session.live.append(who)
            effort = Effort(energy=40.0)
            spent = spend.run(
                session, Query(PROMPT, ANSWER), effort, meter, energy.grid(None, intensity=360), None, loads=True
            )
        meter.close()
        return who.row, spent.idle, clock.now

    return bench


def test_every_phase_of_known_work_comes_back(measured):
    """Five windows of 40 s; noise of 2 %, idle power that rises by 2 W on the way, a counter that wraps 8 times."""
    inside = dict.fromkeys(("energy_net", "energy_gross", "energy_prefill", "energy_decode", "energy_load"), 0)
    for seed in range(20):
        row, idle, total = measured(seed)
        assert row.error is None
        assert total == pytest.approx(200, abs=5)
        assert idle.drift == pytest.approx(DRIFT * 160, rel=0.5)
        at = {"query": 60, "prefill": 100, "load": 140}  # the middles of their windows
        rest = {name: IDLE + DRIFT * t for name, t in at.items()}
        (t0, w0), (t1, w1), (t2, w2) = PREFILL, DECODE, LOAD
        truth = {
            "energy_net": t0 * w0 + t1 * w1,
            "energy_gross": t0 * w0 + t1 * w1 + (t0 + t1) * rest["query"],
            "energy_prefill": t0 * (w0 + rest["prefill"]) / PROMPT,
            "energy_decode": t1 * (w1 + rest["query"]) / (ANSWER - 1),
            "energy_load": t2 * (w2 + rest["load"]),
        }
        for name, joules in truth.items():
            assert row[name].value == pytest.approx(joules, rel=0.02), name
            assert row[name].method == "measured:rapl"
            inside[name] += joules in row[name]
        assert row["carbon_gross"].value == pytest.approx(row["energy_gross"].value * 0.1)  # 360 g/kWh is 0.1 mg/J
    assert min(inside.values()) >= 18, inside


def test_the_phases_are_drawn_with_their_mark(measured):
    row, _, _ = measured(0)
    guess = row.model_copy(deep=True, update={"name": "guess"})
    guess.measurements = {k: m.model_copy(update={"method": "estimated:x"}) for k, m in row.measurements.items()}
    found = Results(created="2026", baseline="m", rows=[row, guess], versions={}, settings={},
                    machine=Machine(cpu="c", cores=1, memory_bytes=1))  # fmt: skip
    picture = by_phase(found)
    assert [t.label for t in picture.yticks] == ["Start", "Query", "Prompt token", "Answer token"]
    assert [("est." in m.label, m.series) for m in picture.marks] == [(False, 0), (True, 1)] * 4
    assert all(m.x0 <= m.x <= m.x1 and 0 < m.x < picture.width for m in picture.marks)
    assert "est.: estimated" in picture.caption
    for name in ("energy_load", "energy_prefill", "energy_decode"):
        del row.measurements[name], guess.measurements[name]
    assert by_phase(found) is None
