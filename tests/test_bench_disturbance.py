"""A machine that sleeps or throttles in the middle: the round counts for nobody, and is counted."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest
from conftest import make_llama

import greenllm
from greenllm.bench import Effort, disturbance
from greenllm.bench.disturbance import State, Watch, between, now


def test_what_is_told():
    calm = State(10.0, 3)
    assert between(calm, State(10.05, 3)) == ""
    assert between(calm, State(12.5, 3)) == "the machine slept 2.5 s"
    assert between(calm, State(10.0, 4)) == "heat throttled the processor"
    cores = os.cpu_count()
    assert between(State(0, 0, 5.0, 0.0), State(0, 0, 5.0 + 0.04 * cores, 1.0)) == ""
    assert between(State(0, 0, 5.0, 0.0), State(0, 0, 5.0 + 0.06 * cores, 1.0)) == "others used the processor"
    assert Watch(seen=["x", "x", "y"]).words() == "3 rounds were dropped (x, y)"
    assert Watch(seen=["x"]).words() == "1 round was dropped (x)"
    assert Watch(seen=["x"]).words(1) == "1 disturbed round counts: there was hardly any other (x)"
    assert Watch(seen=["x"] * 5).words(3).startswith("2 rounds were dropped and 3 disturbed rounds count")
    assert Watch().words() == ""


def test_work_of_others_is_theirs_and_that_of_children_ours():
    """A second of a child is the bench's; one of a process that left it is not."""
    burn = "import time\nend = time.process_time() + 1\nwhile time.process_time() < end: pass\n"

    def counted():
        t = psutil.cpu_times()
        others = now().others
        return others, t.user + t.nice + t.system + t.irq + t.softirq + t.steal - others

    before = counted()
    child = subprocess.Popen([sys.executable, "-c", f"{burn}print(1, flush=True)\ninput()"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)  # fmt: skip
    child.stdout.readline()
    between_them = counted()
    child.communicate(b"\n")
    subprocess.run(["setsid", "--fork", sys.executable, "-c", burn], check=True)  # noqa: S607 - of util-linux
    deadline = time.monotonic() + 60
    while counted()[0] - between_them[0] < 0.9 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert between_them[1] - before[1] >= 0.9
    assert counted()[0] - between_them[0] >= 0.9


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
    assert between(before, now()) in ("", "others used the processor")


@pytest.mark.parametrize("asleep", [3, 10**9])
def test_a_bench_on_a_machine_that_sleeps(tmp_path, monkeypatch, asleep):
    """Of its first rounds (the watch looks twice before them); at the last it never wakes up, and still ends."""
    calls = []

    def fake(_root=None):
        calls.append(1)
        return State(100.0 * min(len(calls), asleep + 1), 0)

    monkeypatch.setattr(disturbance, "now", fake)
    least = Effort(windows=2, sittings=3, width=0.9, seconds=2.0, turn=0.01)
    found = greenllm.bench([make_llama(tmp_path / "m", vocab=300)], effort=least, energy=False, prompt_tokens=8,
                           answer_tokens=4, window=64)  # fmt: skip
    assert len(found.rows[0].samples["decode"]) >= 3
    words = "2 rounds were dropped" if asleep == 3 else "disturbed rounds count"
    assert words in found.settings["disturbed"]
    assert "the machine slept 100.0 s" in found.settings["disturbed"]
    assert any(words in c for c in found.caveats)
