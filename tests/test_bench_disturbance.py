"""A machine that sleeps or throttles in the middle: the round counts for nobody, and is counted."""

from __future__ import annotations

import time

import pytest
from conftest import make_llama

import greenllm
from greenllm.bench import Effort, disturbance
from greenllm.bench.disturbance import Rounds, State, between, now


def test_what_is_told():
    calm = State(10.0, 3)
    assert between(calm, State(10.05, 3)) == ""
    assert between(calm, State(12.5, 3)) == "the machine slept 2.5 s"
    assert between(calm, State(10.0, 4)) == "heat throttled the processor"
    rounds = Rounds(dropped=["x", "x", "y"])
    assert rounds.words == "3 rounds were dropped: x, y"
    assert Rounds(dropped=["x"]).words == "1 round was dropped: x"
    assert Rounds().words == ""


def test_throttle_counters_of_a_synthetic_sysfs(tmp_path):
    for cpu, files in {
        "cpu0": {"core": "2", "package": "5"},
        "cpu1": {"core": "1\n", "package": "?"},
        "cpufreq": {},
    }.items():
        folder = tmp_path / "sys/devices/system/cpu" / cpu / "thermal_throttle"
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / f"{name}_throttle_count").write_text(text)
    assert now(tmp_path).throttled == 8
    assert now(tmp_path / "none").throttled == 0


def test_this_machine_is_awake():
    before = now()
    time.sleep(0.2)
    assert between(before, now()) == ""


@pytest.mark.parametrize("asleep", [2, 10**9])
def test_a_bench_on_a_machine_that_sleeps(tmp_path, monkeypatch, asleep):
    """``asleep`` of its first rounds; at the last it never wakes up, and still ends."""
    calls = []

    def fake(_root=None):
        calls.append(1)
        return State(100.0 * min(len(calls), asleep + 1), 0)

    monkeypatch.setattr(disturbance, "now", fake)
    least = Effort(windows=2, rounds=3, width=0.9, seconds=0.2, turn=0.01)
    found = greenllm.bench([make_llama(tmp_path / "m", vocab=300)], effort=least, energy=False, prompt_tokens=8,
                           answer_tokens=4, window=64)  # fmt: skip
    assert len(found.rows[0].samples["decode"]) >= 3
    assert "dropped: the machine slept 100.0 s" in found.settings["disturbed"]
    assert any("dropped" in c for c in found.caveats)
    if asleep == 2:
        assert found.settings["disturbed"].startswith("2 rounds were dropped")
