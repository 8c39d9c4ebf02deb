"""Whether two benches agree is asked of figures with an interval, by what the interval says."""

from __future__ import annotations

from greenllm.bench.measurement import Measurement, counted
from greenllm.bench.repeats import lines
from greenllm.bench.results import Machine, Results, Row


def run(value, half, ratio=None):
    speed = Measurement(value=value, unit="tokens/s", n=5, ci95=(value - half, value + half), method="measured:clock")
    once = Measurement(value=1, unit="s", n=1, method="measured:clock")
    figures = {"decode": speed, "load": once, "disk": counted(5, "MB")}
    row = Row(name="m", path="m", runner="genai", measurements=figures, ratios={"decode": ratio} if ratio else {})
    machine = Machine(cpu="x", cores=1, memory_bytes=1)
    return Results(created="", baseline="m", rows=[row], machine=machine, versions={}, settings={})


def test_values_must_lie_in_the_intervals_of_the_runs_beside():
    (line,) = lines([run(100, 5), run(104, 5), run(110, 10), run(112, 1)])
    # 104 in 100 +- 5, 110 not in 104 +- 5, 112 in 110 +- 10; 100 in 104 +- 5, 104 in 110 +- 10, 110 not in 112 +- 1
    assert line.split()[:6] == ["m", "decode", "2", "and", "2", "of"]
    assert line.endswith("of 3  ±4.9%, runs 5.2%")


def test_ratios_are_asked_too():
    ratio = Measurement(value=2, unit="x", n=5, ci95=(1.9, 2.1), method="computed: paired over rounds")
    _, line = lines([run(100, 5, ratio), run(100, 5, ratio.model_copy(update={"value": 2.05}))])
    assert line.split()[:7] == ["m", "decode", "ratio", "1", "and", "1", "of"]
