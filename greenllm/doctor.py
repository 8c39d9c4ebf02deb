"""What is installed, what can be made and run here, which power meters exist, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

_PACKAGES = (
    # distribution, what it is for, how to get it
    ("torch", "compress, bench checkpoints", "greenllm[compress]"),
    ("transformers", "compress, bench checkpoints", "greenllm[compress]"),
    ("onnx", "export", "greenllm[compress]"),
    ("onnxscript", "export", "greenllm[compress]"),
    ("onnxruntime", "run and bench ONNX", "greenllm[runtime]"),
    ("onnxruntime-genai", "run and bench language models", "greenllm[runtime]"),
    ("codecarbon", "energy and gCO2e", "greenllm[bench]"),
    ("gguf", "read .gguf files", "greenllm[compress]"),
    ("datasets", "calibration from the hub", "greenllm[compress]"),
    ("bitsandbytes", "write NF4, FP4 and LLM.int8()", "greenllm[bnb]"),
    ("peft", "distil with adapters", "greenllm[distill]"),
    ("tensorrt-rtx", "build engines for NVIDIA GPUs", "greenllm[tensorrt]"),
    ("lm-eval", "bench on its tasks", "greenllm[eval]"),
    ("llama-cpp-python", "bench .gguf files", "greenllm[peers]"),
    ("openvino", "bench OpenVINO models", "greenllm[peers]"),
)


@dataclass(frozen=True)
class Finding:
    """One line: what was looked for, whether it is there (None: for information), and what to do."""

    section: str
    name: str
    ok: bool | None
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """Look at this machine; nothing is changed and nothing is loaded that need not be."""
    return [*_machine(), *_packages(), *_providers(), *_targets(), *meters()]


def _machine() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    text = f"{platform.machine()}, {os.cpu_count()} cores, {total:.1f} GB memory, {free:.0f} GB free here"
    return [
        Finding("machine", "computer", None, text),
        Finding("machine", "python", None, f"{platform.python_version()} on {platform.system()}"),
    ]


def _packages() -> list[Finding]:
    found = []
    for name, use, extra in _PACKAGES:
        try:
            found.append(Finding("installed", name, True, f"{importlib.metadata.version(name)} ({use})"))
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding("installed", name, False, f"missing: {use}", f'pip install "{extra}"'))
    return found


def _providers() -> list[Finding]:
    if not importlib.util.find_spec("onnxruntime"):
        return []
    import onnxruntime

    return [Finding("runs here", "ONNX Runtime providers", True, ", ".join(onnxruntime.get_available_providers()))]


def _targets() -> list[Finding]:
    from greenllm.export.targets import load_target, target_names

    here = platform.machine().lower()
    can_make = all(importlib.util.find_spec(m) for m in ("torch", "transformers", "onnx", "onnxruntime_genai"))
    found = []
    for name in target_names():
        target = load_target(name)
        gpu = f", a GPU of compute capability {target.compute_capability}" if target.compute_capability else ""
        runs = target.isa in (None, here) and not gpu
        where = "runs here" if runs else f"runs on {target.isa}{gpu}"
        text = f"{'can' if can_make else 'cannot'} be made here, {where}"
        found.append(Finding("targets", name, can_make, text, "" if can_make else 'pip install "greenllm[compress]"'))
    return found


_METERS = {"ina3221": "INA3221 (Jetson)", "rapl": "RAPL (CPU)", "nvml": "NVML (NVIDIA GPU)", "codecarbon": "codecarbon"}


def meters() -> list[Finding]:
    """Power meters, the best first; none is started."""
    from greenllm.bench.energy.selection import meters as found

    return [Finding("power meters", _METERS[m.name], m.usable, m.detail, m.fix) for m in found()]


def render(findings: list[Finding]) -> Table:
    """As a table for the terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "", "what", "found", "to get it"):
        table.add_column(column, overflow="fold")
    section = ""
    for f in findings:
        mark = {True: "[green]✓[/]", False: "[yellow]–[/]", None: " "}[f.ok]
        table.add_row(f.section if f.section != section else "", mark, f.name, f.detail, f.fix.replace("[", r"\["))
        section = f.section
    return table
