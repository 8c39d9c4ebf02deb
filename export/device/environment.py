"""The Python environment that runs a model: one that is there and fits, or one made here."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from greenllm.export.device.wire import Trouble

if TYPE_CHECKING:
    from greenllm.export.device.wire import Wire

_HAS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
here = {}
for name in json.loads(sys.argv[1]):
    try:
        here[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(here))
"""


def wanted(lines: list[str], version: str) -> dict[str, str]:
    """Name and version ("" for any) of the pins that count for a Python version such as "3.11.7"."""
    new = tuple(int(x) for x in version.split(".")[:2]) >= (3, 11)
    found = {}
    for line in lines:
        pin, _, marker = line.partition(";")
        if not marker or new == (">=" in marker):
            name, _, number = pin.strip().partition("==")
            found[name] = number
    return found


def missing(python: str, pins: dict[str, str]) -> list[str]:
    """Which pins an interpreter does not have, in words."""
    command = [python, "-I", "-c", _HAS, json.dumps(list(pins))]
    here = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return [f"{n}=={v}" if v else n for n, v in pins.items() if n not in here or (v and here[n] != v)]


def find(base: Path, python: str, version: str, lines: list[str], kind: str) -> tuple[Path, str | None]:
    """Where the environment for these pins lies or will lie, and the interpreter that has them, if there is one."""
    pins = wanted(lines, version)
    if not missing(python, pins):
        return Path(python), python
    key = hashlib.sha256("\n".join([python, version, *sorted(lines)]).encode()).hexdigest()[:16]
    home = base / "environments" / f"{kind}{key}"
    made = str(home / "bin" / "python")
    return home, made if (home / ".ready").is_file() and not missing(made, pins) else None


def make(wire: Wire, home: Path, python: str, packages: list[str], wheels: Path | None) -> str:
    """Make a virtual environment at ``home``; return its interpreter.

    Args:
        wire: ends the work when the connection ends.
        home: of the environment; what lies there is replaced.
        python: the interpreter that it is made from.
        packages: arguments for pip.
        wheels: directory of packages, for a device without network.

    Raises:
        Trouble: venv or pip fail.
    """
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    made = str(home / "bin" / "python")
    code, said = wire.work([python, "-m", "venv", str(home)])
    if code:
        raise Trouble(
            f"{python} cannot make a virtual environment on the device: {_last(said)}",
            "Debian and Ubuntu have it in a package of its own: sudo apt-get install python3-venv.",
        )
    offline = ["--no-index", "--find-links", str(wheels)] if wheels else []
    pip = ["-m", "pip", "install", "--only-binary", ":all:", "--disable-pip-version-check", "--no-input", *offline]
    code, said = wire.work([made, *pip, *packages])
    if code:
        raise Trouble(
            f"pip failed on the device: {_last(said)}",
            "A device without network takes packages from here: deploy … --wheels DIR, filled by\n"
            "pip download --only-binary :all: --platform manylinux_2_28_MACHINE --python-version 3.X -d DIR "
            "-r BUNDLE/requirements.txt",
        )
    (home / ".ready").touch()
    return made


def _last(said: list[str]) -> str:
    told = [line for line in said if line.strip()]
    errors = [line for line in told if "error" in line.lower()]
    return " ".join((errors or told)[-2:])[:400] or "it says nothing."
