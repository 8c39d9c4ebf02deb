"""A known load comes back; the grid is never guessed; codecarbon keeps quiet."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest

import greenllm
from greenllm.bench import energy
from greenllm.bench.energy.codecarbon import Codecarbon
from greenllm.errors import GreenError


class FakeMeter:
    """A known trace: ``watts`` at every moment, with noise; its clock moves when it is asked to wait."""

    method, covers, leaves_out, resolution = "measured:fake", "a known trace", "nothing", "exact"
    period = lag = 0.0

    def __init__(self, watts, noise=0.0):
        self.now, self.total, self.watts = 0.0, 0.0, watts
        self._noise, self._rng = noise, np.random.default_rng(0)

    def wait(self, seconds):
        self.now += seconds
        self.total += seconds * self.watts * (1 + self._noise * self._rng.normal())

    def joules(self):
        return self.total

    def close(self):
        pass

    def window(self, seconds):
        end = self.now + seconds

        def done(wait):
            self.wait(wait)
            return self.now >= end

        return energy.watch(self, done, clock=lambda: self.now)


def test_a_known_load_comes_back_within_two_percent_and_inside_its_interval():
    meter = FakeMeter(20.0, noise=0.03)
    idle = meter.window(30)
    meter.watts = 50.0
    work = meter.window(30)
    meter.watts = 20.0
    idle = energy.Idle(idle, meter.window(30))
    gross, net = energy.per_query(work, idle, [3.0] * 10, [3.01, 2.99], meter)
    assert gross.value == pytest.approx(150, rel=0.02)
    assert net.value == pytest.approx(90, rel=0.02)
    assert 150 in gross
    assert 90 in net
    assert (gross.unit, gross.method, gross.n) == ("J", "measured:fake", 10)


def test_interval_of_energy_per_query_covers_the_truth():
    hits = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        work = energy.Window(20.0, 20 * (w := rng.normal(50, 2, 20)).mean(), w.tolist())
        rests = [energy.Window(20.0, 20 * (i := rng.normal(20, 1, 20)).mean(), i.tolist(), at) for at in (0.0, 60.0)]
        _, net = energy.per_query(work, energy.Idle(*rests), [2.0] * 10, [2.0], FakeMeter(0))
        hits += 60 in net
    assert hits >= 90


def test_what_sittings_differ_by_is_in_the_interval_of_a_window():
    """A window of queries of 3 s, at 50 W that do not scatter, while sittings took 2.7 to 3.3 s."""
    window, rest = energy.Window(30.0, 1500.0, [50.0] * 30), energy.Window(30.0, 600.0, [20.0] * 30)
    sittings, idle = [2.7, 2.9, 2.8, 3.1, 3.3], energy.Idle(rest, rest)
    measured, _ = energy.per_query(window, idle, [3.0] * 10, sittings, FakeMeter(0))
    assert measured.value == pytest.approx(150)
    assert (measured.ci95[1] - 150) / 150 == pytest.approx(
        2.776 * 2**0.5 * np.std(sittings, ddof=1) / np.mean(sittings), rel=1e-3
    )
    guess = FakeMeter(0)
    guess.method = "estimated:fake"
    estimated, _ = energy.per_query(window, idle, [3.0] * 10, sittings, guess)
    times = [3.0, *sittings]
    assert estimated.value == pytest.approx(50 * np.mean(times))
    assert estimated.ci95[1] - estimated.value == pytest.approx(50 * 2.571 * np.std(times, ddof=1) / 3**0.5, rel=1e-3)


def test_one_reading_has_no_interval():
    window = energy.Window(1.0, 10.0, [10.0])
    gross, net = energy.per_query(window, energy.Idle(window, window), [1.0], [], FakeMeter(0))
    assert gross.ci95 is None
    assert net.ci95 is None


@pytest.mark.parametrize("country", ["DEU", "deu", "Germany", "germany"])
def test_country_by_code_and_name(country):
    found = energy.grid(country)
    assert found.country == "DEU"
    assert 50 < found.grams_per_kwh < 1000
    assert "codecarbon" in found.source


def test_near_misses_are_told():
    with pytest.raises(GreenError, match=r"DEU \(Germany\)"):
        energy.grid("Germny")
    with pytest.raises(GreenError, match="FRA"):
        energy.grid("FRE")
    with pytest.raises(GreenError, match="three-letter"):
        energy.grid("zzzzzzzzzzzz")
    with pytest.raises(GreenError, match="california"):
        energy.grid("USA", "californa")
    with pytest.raises(GreenError, match="No region"):
        energy.grid("DEU", "bavaria")


def test_regions_and_intensity():
    assert energy.grid("SWE", "SE1").grams_per_kwh < energy.grid("USA", "Wyoming").grams_per_kwh
    assert energy.grid(None, intensity=123.0).grams_per_kwh == 123
    with pytest.raises(GreenError, match="no grid's factor"):
        energy.grid("DEU", intensity=-5)


def test_carbon_wants_a_country_before_anything_is_measured(tmp_path):
    with pytest.raises(GreenError, match="no country was given"):
        greenllm.bench([tmp_path], carbon=True)


def test_codecarbon_counts_no_time_twice_where_its_own_thread_samples_at_once():
    from codecarbon.core.units import Energy, Power

    class Slow:
        """1 kW, and a sample takes a while."""

        def measure_power_and_energy(self, last_duration):
            time.sleep(0.2)
            return Power.from_watts(1000), Energy.from_energy(kWh=last_duration / 3600)

    meter = Codecarbon(every=1000)
    try:
        meter._tracker._hardware = [Slow()]
        before = meter.joules()
        begin = time.perf_counter()
        time.sleep(0.5)
        thread = threading.Thread(target=meter._tracker._measure_power_and_energy)
        thread.start()
        time.sleep(0.1)  # it is in the middle of its sample
        found = meter.joules() - before
        assert 0.3 * 1000 < found < 1.05 * 1000 * (time.perf_counter() - begin)
        thread.join()
    finally:
        meter.close()


def test_tracking_a_block_is_silent_and_leaves_no_file(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODECARBON_OUTPUT_METHODS", "csv")
    monkeypatch.setenv("CODECARBON_LOG_LEVEL", "debug")
    with energy.track("DEU") as tracked:
        sum(range(3_000_000))
    assert tracked.energy.kwh > 0
    assert tracked.energy.seconds > 0
    assert tracked.energy.gco2e == pytest.approx(tracked.energy.kwh * energy.grid("DEU").grams_per_kwh)
    assert tracked.energy.method.startswith(("estimated:", "measured:"))
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_tracking_without_a_country_leaves_carbon_out():
    with energy.track() as tracked:
        pass
    assert tracked.energy.gco2e is None


class Lamp(FakeMeter):
    """As many watts all the time."""

    def joules(self):
        return self.watts * (time.perf_counter() - self.begin)

    def __init__(self, watts):
        super().__init__(watts)
        self.begin = time.perf_counter()


def test_a_killed_run_goes_on_counting(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "choose", lambda: Lamp(72.0))
    monkeypatch.setattr(energy, "_LEDGER", 0.01)
    ledger = tmp_path / "energy.json"
    with energy.track(ledger=ledger) as first:
        while not ledger.exists():
            time.sleep(0.01)
        killed = json.loads(ledger.read_text())  # what a kill here would leave
    assert 0 < killed[0] <= first.energy.kwh
    ledger.write_text(json.dumps([0.25, 100.0]))
    with energy.track(ledger=ledger) as second:
        time.sleep(0.1)
    assert second.energy.seconds > 100.1
    assert second.energy.kwh - 0.25 == pytest.approx(72.0 * (second.energy.seconds - 100) / 3.6e6, rel=0.05)
