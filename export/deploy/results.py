"""What was measured on the device, beside what was measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from greenllm import artifact
from greenllm.bench.report import merge, write_report
from greenllm.bench.results import Results


def read(said: list[dict[str, Any]], name: str, host: str) -> tuple[list[Results], list[str]]:
    """The results of each power mode, with rows named after model, device and mode; and what failed, in words.

    Raises:
        GreenError: the device sent something that is no report.
    """
    found, failed = [], []
    for one in said:
        where = f"{host.rpartition('@')[2]}{', ' + one['mode'] if one['mode'] else ''}"
        if "report" not in one:
            failed.append(f"No bench on {where}: {one['error']}")
            continue
        results = Results.from_json(one["report"])
        for row in results.rows:
            row.name = f"{name} on {where}"
        results.baseline = results.rows[0].name
        results.settings["power_mode"] = one["mode"] or "as it was"
        found.append(results)
    return found, failed


def join(found: list[Results], beside: Path | None, report: Path | None) -> Results:
    """The local results and those of the device in one.

    Args:
        found: of the device, at least one.
        beside: a local bench's ``report.json`` or its directory.
        report: directory to write them to; each of the device's lies there alone too, as ``device-N.json``.
    """
    joined = merge.merge([*([merge.read(beside)] if beside else []), *found])
    if report:
        write_report(joined, report)
        for number, results in enumerate(found, 1):
            artifact.write_atomic(report / f"device-{number}.json", results.to_json())
    return joined
