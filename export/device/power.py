"""Jetson's power modes: swept, and put back in every case."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from greenllm.export.device.wire import Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator

_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
_SETTLE = 2.0  # seconds that clocks take


def modes() -> dict[int, str]:
    """Number and name of each mode, from nvpmodel's own file."""
    file = Path(os.environ.get("NVPMODEL_CONF", "/etc/nvpmodel.conf"))
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return {int(number): name for number, name in _MODE.findall(text)}


def current() -> int:
    """The mode that is set now.

    Raises:
        Trouble: there is no nvpmodel, or it does not say.
    """
    said = _call("-q").split()
    if not said or not said[-1].isdigit():
        raise Trouble("nvpmodel does not say which power mode is set.", "Leave out --power-modes.")
    return int(said[-1])


def change(mode: int) -> None:
    """Set a mode; one that asks for a reboot is not set.

    Raises:
        Trouble: it is not set afterwards.
    """
    said = _call("-m", str(mode))
    if current() != mode:
        raise Trouble(f"nvpmodel did not set power mode {mode}: {said.strip()[-200:] or 'it says nothing'}")


def sweep(note: Path) -> Iterator[tuple[str, str]]:
    """Set one mode after the other; give its name, and why it could not be set or "".

    Args:
        note: file that holds the former mode for as long as another one may be set.
    """
    former = current()
    note.write_text(str(former), encoding="ascii")
    try:
        for mode, name in modes().items():
            try:
                change(mode)
            except Trouble as e:
                yield name, str(e)
            else:
                time.sleep(_SETTLE)
                yield name, ""
    finally:
        restore(note)


def restore(note: Path) -> str:
    """Put back the mode that an ended sweep found; return what was done, in words, or ""."""
    if not note.is_file():
        return ""
    former = int(note.read_text(encoding="ascii") or -1)
    if former >= 0 and current() != former:
        change(former)
    note.unlink()
    return f"Power mode {former} ({modes().get(former, 'unknown')}) is set again."


def _call(*arguments: str) -> str:
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    command = [*prefix, "nvpmodel", *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except OSError as e:
        raise Trouble(f"{command[0]} is not on this device.", "Leave out --power-modes.") from e
    if prefix and done.returncode and "sudo" in done.stdout:
        raise Trouble(
            f"nvpmodel needs root: {done.stdout.strip()}", "Let the user run nvpmodel by sudo without a password."
        )
    return done.stdout
