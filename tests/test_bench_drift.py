"""What a machine's earlier benches show of how its figures move, against what was put in."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from greenllm.bench import drift, protocol
from greenllm.bench.measurement import Measurement, counted
from greenllm.bench.results import Machine, Results, Row
from greenllm.progress import Silent


def figure(value, half=0.01, unit="tokens/s"):
    return Measurement(value=value, unit=unit, n=5, ci95=(value - half, value + half), method="measured:clock")


def bench(value, half=0.01, *, path="m", threads=2, cpu="x", virtual=False, **more):
    """A bench of one model."""
    figures = {"decode": figure(value, half), "perplexity": figure(9.0, unit=""), "disk": counted(5, "MB")} | more
    machine = Machine(cpu=cpu, cores=1, memory_bytes=1, system="s", virtual=virtual)
    rows = [Row(name="m", path=path, runner="genai", measurements=figures)]
    settings = {"threads": threads}
    return Results(created="", baseline="m", rows=rows, machine=machine, versions={}, settings=settings)


def widened(file, *benches):
    for found in benches:
        drift.widen(found, file, Silent())
    return benches[-1]


def decode(found):
    return found.rows[0]["decode"].ci95


def test_an_interval_stays_until_enough_repeats_are_known(tmp_path):
    found = widened(tmp_path / "f", *map(bench, (100, 110, 90, 100)))
    assert decode(found) == (99.99, 100.01)
    assert found.settings["earlier"] == 0


def test_it_is_that_of_another_bench_by_hand(tmp_path):
    values = [100.0, 104.0, 98.0, 101.0, 97.0]
    found = widened(tmp_path / "f", *map(bench, values))
    spread = np.std(values, ddof=1) / np.mean(values)
    reach = stats.t.ppf(0.975, 4) * math.sqrt(2) * spread
    assert decode(found) == pytest.approx((97 / (1 + reach), 97 * (1 + reach)))
    assert found.settings["earlier"] == 4


@pytest.mark.parametrize("values", [[100.0], [100.0, 104.0, 98.0]])
def test_on_a_virtual_machine_it_begins_from_what_such_were_seen_to_do(tmp_path, values):
    df = len(values) - 1
    for value in values:
        found = bench(value, virtual=True)
        found.rows[0].ratios = {"decode": figure(2.0, unit="x")}
        drift.widen(found, tmp_path / "f", Silent())
    squares = sum((v / np.mean(values) - 1) ** 2 for v in values)
    for interval, first, seen in ((decode(found), 0.08, squares), (found.rows[0].ratios["decode"].ci95, 0.04, 0.0)):
        reach = stats.t.ppf(0.975, 8 + df) * math.sqrt(2 * (8 * first**2 + seen) / (8 + df))
        assert interval[1] / interval[0] == pytest.approx((1 + reach) ** 2)
    assert found.settings["earlier"] == df
    del found.rows[0].measurements["perplexity"]
    found.settings |= {"query": "a text is read", "rounds": "after 5 sittings"}
    assert (
        f"8 % (ratios 4 %) is assumed, and corrected by this machine's earlier benches of the same work ({df}"
        in (protocol.methods(found)["Speed"])
    )


def test_many_repeats_outweigh_what_was_assumed(tmp_path):
    found = widened(tmp_path / "f", *(bench(100 + i % 2 / 10, virtual=True) for i in range(200)))
    assert decode(found)[1] / decode(found)[0] < 1.1


def test_it_is_never_narrower_and_quality_and_size_stay(tmp_path):
    found = widened(tmp_path / "f", *(bench(100 + i / 1000, 30) for i in range(9)))
    assert decode(found) == (100.008 - 30, 100.008 + 30)
    found = widened(tmp_path / "g", *(bench(100, perplexity=figure(9.0 + i)) for i in range(9)))
    assert found.rows[0]["perplexity"].ci95 == (9 + 8 - 0.01, 9 + 8 + 0.01)
    assert found.rows[0]["disk"].ci95 == (5, 5)


def test_repeats_of_any_work_tell_of_all_but_only_with_themselves(tmp_path):
    mixed = [bench(100 * (1 + i % 2), path=f"m{i % 2}") for i in range(12)]  # two models that never move
    assert decode(widened(tmp_path / "f", *mixed)) == (199.99, 200.01)
    new = widened(tmp_path / "g", *(bench(100 + 5 * (i % 2)) for i in range(8)), bench(50, path="new"))
    assert 40 < decode(new)[0] < 47
    other = [bench(100 + 50 * (i % 2), threads=1 + i % 2) for i in range(12)]
    assert decode(widened(tmp_path / "h", *other)) == (149.99, 150.01)


def test_what_another_machine_did_tells_nothing_of_this_one(tmp_path):
    widened(tmp_path / "f", *(bench(100 + 5 * (i % 2)) for i in range(8)))
    found = widened(tmp_path / "f", bench(100, cpu="y"))
    assert decode(found) == (99.99, 100.01)
    assert found.settings["earlier"] == 0


def test_ratios_and_parts_are_widened_by_their_own(tmp_path):
    for i in range(8):
        found = bench(100)
        found.rows[0].ratios = {"decode": figure(2 + i % 2, unit="x")}
        found.rows[0].parts = {"encoder": {"time": figure(3 + i % 2, unit="ms"), "size": figure(7.0 + i, unit="MB")}}
        drift.widen(found, tmp_path / "f", Silent())
    row = found.rows[0]
    assert row["decode"].ci95 == (99.99, 100.01)
    assert row.ratios["decode"].ci95[0] < 2
    assert row.parts["encoder"]["time"].ci95[0] < 3
    assert row.parts["encoder"]["size"].ci95 == (14 - 0.01, 14 + 0.01)


def test_what_may_be_negative_is_widened_to_both_sides(tmp_path):
    found = widened(tmp_path / "f", *(bench(100, energy_net=figure(1 + 2 * (i % 2), 3)) for i in range(8)))
    low, high = found.rows[0]["energy_net"].ci95
    assert (low + high) / 2 == pytest.approx(3)
    assert low < -1


def test_damaged_lines_do_not_count_and_the_file_does_not_grow_forever(tmp_path, monkeypatch):
    file = tmp_path / "f"
    widened(file, bench(1))
    machine = json.loads(file.read_text())["machine"]
    bad = ["3", '{"a": NaN}', '{"a": "x"}', "[]", "null", '{"a": 1' + 400 * "0" + "}"]
    lines = ["{", "[]", "null", "3", "\x00", "[" * 9999]
    lines += [f'{{"machine": "{machine}", "figures": {{"decode": {of}}}}}' for of in bad]
    file.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(drift, "_KEPT", 10)
    found = widened(file, *(bench(100 + 5 * (i % 2)) for i in range(30)))
    assert decode(found)[0] < 100
    assert len(file.read_text().splitlines()) == 10
    assert all(json.loads(line)["figures"]["decode"] for line in file.read_text().splitlines())


def test_a_file_that_cannot_be_written_costs_nothing(tmp_path):
    notes = []

    class Told(Silent):
        def note(self, text):
            notes.append(text)

    (tmp_path / "no").write_text("a file")
    found = bench(100)
    drift.widen(found, tmp_path / "no" / "benches.jsonl", Told())
    assert decode(found) == (99.99, 100.01)
    assert "later benches will not know" in notes[0]


def test_another_benchs_figure_lies_in_it_nineteen_times_in_twenty(tmp_path):
    """With a machine that moves as a whole between benches, which no sitting of one shows."""
    rng = np.random.default_rng(0)
    inside, pairs = 0, 0
    for k in range(40):
        before = None
        for value in 100 * np.exp(0.04 * rng.standard_normal(21)):
            found = widened(tmp_path / f"{k}", bench(float(value), 1.0))
            if before and found.settings["earlier"]:
                inside += before[0] <= value <= before[1]
                pairs += 1
            before = decode(found) if found.settings["earlier"] else None
    assert 0.92 < inside / pairs < 0.98


@pytest.mark.parametrize(("runs", "says"), [(4, "not what it does on another day"), (5, "(4 repeats)")])
def test_a_report_says_what_its_intervals_hold(tmp_path, runs, says):
    found = widened(tmp_path / "f", *(bench(100 + i) for i in range(runs)))
    del found.rows[0].measurements["perplexity"]
    found.settings |= {"query": "a text is read", "rounds": "after 5 sittings"}
    assert says in protocol.methods(found)["Speed"]
