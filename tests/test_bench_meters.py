"""Meters over synthetic sysfs trees, made here after what kernels show: no file of these was recorded on a machine."""

from __future__ import annotations

import os
import sys
import types

import numpy as np
import pytest

from greenllm.bench import energy
from greenllm.bench.energy import ina3221, nvml, rapl
from greenllm.bench.energy.ina3221 import Ina3221
from greenllm.bench.energy.meter import Ticker, Unwrapped
from greenllm.bench.energy.rapl import Rapl
from greenllm.errors import GreenError

SPAN = 2_000_000_000  # µJ, so that 60 W go round in 33 s


def put(file, value):
    """Write as the kernel does: a reader sees the old value or the new."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}")
    part.write_text(f"{value}\n")
    os.replace(part, file)  # noqa: PTH105 - a rename is what is meant


def zone(root, folder, name, start=0):
    for file, value in (("name", name), ("energy_uj", start), ("max_energy_range_uj", SPAN - 1)):
        put(root / folder / file, value)


@pytest.fixture
def powercap(tmp_path):
    """Synthetic: two packages, one with memory; subzones, a platform zone and the memory-mapped copy beside them."""
    root = tmp_path / "powercap"
    for folder, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "uncore"),
                         ("intel-rapl:0:2", "dram"), ("intel-rapl:1", "package-1"), ("intel-rapl:2", "psys"),
                         ("intel-rapl-mmio:0", "package-0")):  # fmt: skip
        zone(root, folder, name, start=SPAN - 5_000_000)
    return root


def test_nothing_is_counted_twice(powercap):
    assert [z.name for z in rapl.zones(powercap)] == ["package-0", "dram", "package-1"]
    meter = Rapl(powercap)
    for each in powercap.iterdir():
        put(each / "energy_uj", SPAN - 4_000_000)  # a joule more everywhere
    assert meter.joules() == pytest.approx(3)
    assert meter.covers == "processor package-0 + dram + package-1"
    meter.close()


def test_without_dram_the_meter_says_that_memory_is_left_out(powercap):
    put(powercap / "intel-rapl:0:2" / "name", "other")
    meter = Rapl(powercap)
    assert meter.leaves_out.startswith("memory (no dram zone here)")
    meter.close()


def test_a_counter_goes_round_many_times():
    rng = np.random.default_rng(0)
    steps = rng.integers(0, SPAN - 1, 200).tolist()
    counter, raw = Unwrapped(17, SPAN), 17
    for step in steps:
        raw = (raw + step) % SPAN
        counter.read(raw)
    assert counter.total == sum(steps)


def test_no_permission_says_how_to_get_it(powercap, monkeypatch):
    real = type(powercap).read_bytes

    def refuse(path):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(type(powercap), "read_bytes", refuse)  # tests may run as root, whom no mode bits stop
    with pytest.raises(GreenError, match=r"sudo chmod a\+r .*intel-rapl:\*/energy_uj"):
        Rapl(powercap)


def test_a_zone_that_is_damaged_or_gone(powercap, tmp_path):
    with pytest.raises(GreenError, match="no package zone"):
        Rapl(tmp_path / "none")
    put(powercap / "intel-rapl:1" / "energy_uj", "")
    with pytest.raises(GreenError, match="cannot be read"):
        Rapl(powercap)


class Trace:
    """A machine of known power, in its counters: noise, drift of what else runs, and wrap-around."""

    def __init__(self, powercap, seed, drift):
        self.file, self.now, self.raw = powercap / "intel-rapl:0" / "energy_uj", 0.0, SPAN - 5e6
        self.drift, self.rng, self.load = drift, np.random.default_rng(seed), 0.0
        put(self.file, int(self.raw))

    def power(self, at):
        return 20 + self.drift * at + self.load

    def wait(self, seconds):
        middle = self.power(self.now + seconds / 2)
        self.now += seconds
        self.raw = (self.raw + 1e6 * seconds * middle * (1 + 0.02 * self.rng.normal())) % SPAN
        put(self.file, int(self.raw))

    def window(self, meter, seconds):
        end = self.now + seconds

        def done(wait):
            self.wait(wait)
            return self.now >= end - 1e-9

        return energy.watch(meter, done, clock=lambda: self.now)


def measured(powercap, seed, drift=0.02, seconds=60):
    trace = Trace(powercap, seed, drift)
    meter = Rapl(powercap)
    before = trace.window(meter, seconds)
    trace.load = 40.0
    work = trace.window(meter, seconds)
    trace.load = 0.0
    idle = energy.Idle(before, trace.window(meter, seconds))
    meter.close()
    rng = np.random.default_rng(seed)
    times = (2 + 0.02 * rng.normal(size=30)).tolist()
    return idle, energy.per_query(work, idle, times, [], meter)


def test_a_known_trace_with_noise_wrap_and_drift_comes_back(powercap):
    """60 s at 40 W over an idle machine whose 20 W rise by 0.02 W a second; the counter wraps every half minute."""
    inside = 0
    for seed in range(20):
        idle, (gross, net) = measured(powercap, seed)
        assert net.value == pytest.approx(80, rel=0.02)
        assert gross.value == pytest.approx(2 * (40 + 20 + 0.02 * 90), rel=0.02)
        assert idle.drift == pytest.approx(2.4, rel=0.3)
        inside += 80 in net
    assert inside >= 19


def test_idle_before_and_after_both_count(powercap):
    _, (_, net) = measured(powercap, 0, drift=0.1)
    assert net.value == pytest.approx(80, rel=0.02)  # idle before alone would give 86
    assert net.ci95[1] - net.ci95[0] > 2 * 6  # half of 12 W of drift, on both sides


@pytest.fixture
def jetson(tmp_path):
    """Synthetic: an Orin NX with its three rails, and the sum of shunt voltages that has no current."""
    hwmon = tmp_path / "ina3221" / "1-0040" / "hwmon" / "hwmon3"
    rails = (("VDD_IN", 5000, 2000), ("VDD_CPU_GPU_CV", 5000, 800), ("VDD_SOC", 5000, 400))
    for i, (label, mv, ma) in enumerate(rails, 1):
        for file, value in ((f"in{i}_label", label), (f"in{i}_input", mv), (f"curr{i}_input", ma)):
            put(hwmon / file, value)
    put(hwmon / "in7_label", "sum of shunt voltages")
    put(hwmon / "in7_input", 3)
    put(hwmon / "update_interval", 2)
    return hwmon


def test_the_whole_module_is_taken_alone_and_integrated(jetson):
    now = [0.0]
    meter = Ina3221(jetson.parents[2], every=3600, clock=lambda: now[0])
    assert (meter.covers, meter.period) == ("rails VDD_IN", 3600)
    assert "VDD_CPU_GPU_CV, VDD_SOC: inside" in meter.leaves_out
    rng, truth = np.random.default_rng(1), 0.0
    last = 10.0
    for _ in range(500):  # a random walk of power, sampled at uneven times
        ma = int(rng.integers(1000, 4000))
        step = rng.uniform(0.05, 0.15)
        put(jetson / "curr1_input", ma)
        now[0] += step
        truth += step * (last + 5 * ma / 1000) / 2
        last = 5 * ma / 1000
        meter.joules()
    assert meter.joules() == pytest.approx(truth, rel=1e-9)
    meter.close()


def test_a_thread_samples_what_happens_between_two_readings(jetson):
    import time

    meter = Ina3221(jetson.parents[2], every=0.01)
    put(jetson / "curr1_input", 4000)
    time.sleep(0.3)
    put(jetson / "curr1_input", 2000)
    joules = meter.joules()
    meter.close()
    assert joules > 4.5  # 20 W for 0.3 s are 6; the ends alone, 10 W each, would give 3


def test_rails_without_a_whole_are_added_once(tmp_path):
    """Synthetic: an AGX Orin, whose memory rail is fed from its 5 V rail, and a channel that is not connected."""
    for chip, rails in (
        ("1-0040", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
        ("1-0041", ("NC", "VDDQ_VDD2_1V8AO")),
    ):
        for i, label in enumerate(rails, 1):
            hwmon = tmp_path / chip / "hwmon" / "hwmon0"
            for file, value in ((f"in{i}_label", label), (f"in{i}_input", 5000), (f"curr{i}_input", 1000)):
                put(hwmon / file, value)
    assert [r.label for r in ina3221.counted(ina3221.rails(tmp_path))] == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]
    with pytest.raises(GreenError, match="no Jetson"):
        ina3221.rails(tmp_path / "1-0040")


class FakeNvml(types.ModuleType):
    """Stands for pynvml: no GPU is here."""

    class NVMLError(Exception):
        pass

    def __init__(self, counters):
        super().__init__("pynvml")
        self.counters = counters

    def nvmlInit(self):  # noqa: N802 - its name
        if self.counters is None:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.counters)

    def nvmlDeviceGetHandleByIndex(self, i):  # noqa: N802
        return i

    def nvmlDeviceGetName(self, i):  # noqa: N802
        return f"GPU {i}"

    def nvmlDeviceGetTotalEnergyConsumption(self, i):  # noqa: N802
        if self.counters[i] is None:
            raise self.NVMLError("Not Supported")
        return self.counters[i]


def test_nvml_adds_cards_and_refuses_what_has_no_counter(monkeypatch):
    fake = FakeNvml([5_000, 7_000])
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    meter = nvml.Nvml()
    fake.counters = [6_500, 7_250]
    assert meter.joules() == pytest.approx(1.75)
    assert "GPU 0, GPU 1" in meter.covers
    fake.counters = [10, 7_250]
    with pytest.raises(GreenError, match="backwards"):
        meter.joules()
    fake.counters = [1, None]
    with pytest.raises(GreenError, match="GPU 1 has no total-energy counter"):
        nvml.Nvml()
    fake.counters = None
    with pytest.raises(GreenError, match="Driver Not Loaded"):
        nvml.Nvml()


def test_an_unplugged_counter_stops_the_thread_and_is_told_to_the_reader(powercap):
    meter = Rapl(powercap, every=0.01)
    (powercap / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(GreenError, match="cannot be read"):
        meter.joules()
    meter._ticker._thread.join(5)
    assert not meter._ticker._thread.is_alive()
    meter.close()


def test_a_ticker_ticks_until_it_is_closed():
    import time

    calls = []
    ticker = Ticker(lambda: calls.append(1), 0.01)
    time.sleep(0.2)
    ticker.close()
    n = len(calls)
    time.sleep(0.05)
    assert n == len(calls) > 2


def stand_in(name, usable):
    def look():
        if not usable:
            raise GreenError(f"{name}: not here")
        return name

    return types.SimpleNamespace(look=look)


@pytest.mark.parametrize(
    ("usable", "best"),
    [
        (("ina3221", "rapl", "codecarbon"), ["ina3221"]),
        (("rapl", "codecarbon"), ["rapl"]),
        (("rapl", "nvml", "codecarbon"), ["rapl", "nvml"]),
        (("nvml", "codecarbon"), ["codecarbon"]),  # a GPU's counter alone misses the processor
        (("codecarbon",), ["codecarbon"]),
    ],
)
def test_the_best_that_is_here(monkeypatch, usable, best):
    from greenllm.bench.energy import selection

    for name in selection.METERS:
        monkeypatch.setitem(sys.modules, f"greenllm.bench.energy.{name}", stand_in(name, name in usable))
    assert selection._best() == best
    assert [m.name for m in selection.meters() if m.usable] == list(usable)


def test_a_named_meter_is_never_replaced(monkeypatch, powercap, jetson):
    from greenllm.bench.energy import selection

    for wrong in ("solar", "rapl+rapl", "rapl+solar", ""):
        with pytest.raises(GreenError, match="No meter is called"):
            energy.choose(wrong)
    with pytest.raises(GreenError, match="not added"):
        energy.choose("rapl+codecarbon")
    monkeypatch.setattr(rapl, "Rapl", lambda: Rapl(powercap / "none"))
    with pytest.raises(GreenError, match="no package zone"):
        energy.choose("rapl")
    monkeypatch.setattr(rapl, "Rapl", lambda: Rapl(powercap))
    monkeypatch.setattr(ina3221, "Ina3221", lambda: Ina3221(jetson.parents[2], every=0.2))
    both = selection.choose("rapl+ina3221")
    assert both.method == "measured:rapl+ina3221"
    assert both.period == 0.2
    assert energy.shortest(both) == 2
    assert both.joules() >= 0
    both.close()
