"""What this device is and has."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from greenllm.export.device.wire import Trouble

_PROBE = "import platform; print(platform.python_version())"


def facts(base: Path, python: str) -> dict[str, Any]:
    """Machine, Python, memory and disk in bytes, Linux for Tegra where it is one.

    Args:
        base: directory that the model will lie in.
        python: interpreter that will run it, a name or a path.

    Raises:
        Trouble: there is no such interpreter.
    """
    executable, version = interpreter(python)
    memory = _memory()
    home = next(p for p in (base, *base.parents) if p.is_dir())
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "board": _text("/proc/device-tree/model").strip("\0\n "),
        "l4t": _text("/etc/nv_tegra_release").split("\n", 1)[0],
        "python": version,
        "executable": executable,
        "memory": memory.get("MemTotal", 0),
        "memory_free": memory.get("MemAvailable", 0),
        "disk_free": shutil.disk_usage(home).free,
        "power_modes": shutil.which("nvpmodel") is not None,
    }


def interpreter(python: str) -> tuple[str, str]:
    """Path and version of an interpreter.

    Raises:
        Trouble: it is not there, or does not run.
    """
    path = shutil.which(str(Path(python).expanduser())) or python
    try:
        found = subprocess.run([path, "-I", "-c", _PROBE], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as e:
        raise Trouble(f"The device has no Python called {python!r}.", "Name one that it has: --python PATH.") from e
    return os.path.abspath(path), found  # noqa: PTH100 - a link to an interpreter is an environment of its own


def _memory() -> dict[str, int]:
    lines = [x.split() for x in _text("/proc/meminfo").splitlines()]
    return {x[0].rstrip(":"): int(x[1]) * 1024 for x in lines if len(x) > 1 and x[1].isdigit()}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def expand(directory: str) -> Path:
    """A directory as the user named it, relative to home."""
    return Path(os.path.normpath(Path.home() / Path(directory).expanduser()))
