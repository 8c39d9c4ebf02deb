"""Whether two benches agree is asked of figures with an interval, by what the interval says."""

from __future__ import annotations

from greenllm.bench.measurement import Measurement, counted
from greenllm.bench.repeats import lines
from greenllm.bench.results import Machine, Results, Row


def run(value, half):
    speed = Measurement(value=value, unit="tokens/s", n=5, ci95=(value - half, value + half), method="measured:clock")
    once = Measurement(value=1, unit="s", n=1, method="measured:clock")
    row = Row(
        name="m", path="m", runner="genai", measurements={"decode": speed, "load": once, "disk": counted(5, "MB")}
    )
    machine = Machine(cpu="x", cores=1, memory_bytes=1)
    return Results(created="", baseline="m", rows=[row], machine=machine, versions={}, settings={})


def test_either_value_must_lie_in_the_others_interval():
    (line,) = lines([run(100, 5), run(104, 5), run(110, 10), run(112, 1)])  # yes; no: 104 +- 5 has no 110; no
    assert line.split()[:5] == ["m", "decode", "1", "of", "3"]
