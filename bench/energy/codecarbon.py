"""codecarbon as a meter: RAPL and NVML where it finds them, else the CPU's rated power times its load.

It is kept from printing, writing files and calling home, whatever its environment and files say.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import warnings

from greenllm.errors import GreenError

_COUNTERS = {"intel_rapl": "rapl", "apple_powermetrics": "powermetrics", "intel_power_gadget": "power-gadget"}


def look() -> str:
    """What is there, in words.

    Raises:
        GreenError: codecarbon is not installed.
    """
    if importlib.util.find_spec("codecarbon") is None:
        raise GreenError("codecarbon is not installed.", 'pip install "greenllm[bench]"')
    return "estimated from the processor's type and load"


class Codecarbon:
    """See :class:`greenllm.bench.energy.Meter`.

    Args:
        every: seconds between samples that nobody asked for.

    Raises:
        GreenError: codecarbon finds nothing to go by.
    """

    resolution = "an estimate: its load is sampled about every second, and what is shorter than 10 s is noise"
    leaves_out = "disks, network, fans, screen, and the loss of the power supply"
    period = 1.0
    lag = 0.0  # it samples anew whenever it is read

    def __init__(self, every: float = 5) -> None:
        from codecarbon import OfflineEmissionsTracker

        class OneAtATime(OfflineEmissionsTracker):
            """Its own thread and a reader that sampled at once would both count the time since the last sample."""

            _sampling = threading.Lock()

            def _measure_power_and_energy(self) -> None:
                with self._sampling:
                    super()._measure_power_and_energy()

        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)  # it speaks before it reads its own log_level
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._tracker = OneAtATime(
                country_iso_code="DEU",  # not used: see the forced factor
                force_carbon_intensity_g_co2e_kwh=1000.0,  # its kilograms are then kilowatt-hours
                measure_power_secs=every,
                output_methods=[],
                output_handlers=[],
                emissions_endpoint=None,
                electricitymaps_api_token=None,
                allow_multiple_runs=True,
                log_level="critical",
                pue=1.0,
                tracking_mode="machine",
            )
            self._tracker.start()
        self._last = 0.0
        self.joules()  # fails here, not in the middle
        self.method, self.covers = self._describe()

    def joules(self) -> float:
        """See :class:`greenllm.bench.energy.Meter`."""
        kwh = self._tracker.flush()
        if kwh is None:  # it swallows its own exceptions
            raise GreenError("codecarbon cannot read or estimate the power of this machine.")
        self._last = max(self._last, float(kwh) * 3.6e6)
        return self._last

    def close(self) -> None:
        """See :class:`greenllm.bench.energy.Meter`."""
        self._tracker.stop()

    def _describe(self) -> tuple[str, str]:
        parts, counters, guesses = [], [], []
        for part in self._tracker._hardware:  # noqa: SLF001 - it says nowhere else what it stands on
            kind, mode = type(part).__name__, getattr(part, "_mode", "")
            if kind == "GPU":
                counters.append("nvml")
                parts.append("GPU by its own counter")
            elif mode in _COUNTERS or kind == "AppleSiliconChip":
                counters.append(_COUNTERS.get(mode, "powermetrics"))
                parts.append("CPU by its own counter")
            elif kind == "RAM":
                parts.append(f"memory {part.total_power().W:.0f} W, constant by its size")
            else:
                guesses.append("tdp")
                parts.append(f"CPU rated {getattr(part, '_tdp', 0):.0f} W, times a curve of the whole machine's load")
        method = f"estimated:{guesses[0]}" if guesses or not counters else f"measured:{'+'.join(counters)}"
        return method, "codecarbon: " + "; ".join(parts)
