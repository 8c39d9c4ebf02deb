"""What answers on the device while a bundle is deployed; it ends with the connection, and ends all that it started."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from greenllm.export.device import environment, power, run
from greenllm.export.device.facts import expand, facts
from greenllm.export.device.place import Place
from greenllm.export.device.wire import Gone, Trouble, Wire

_PATIENCE = 45.0  # seconds that an earlier connection may take to notice that it has ended
_LARGEST = 64 << 20  # bytes of a report


class Agent:
    """One connection. Every public method is a request; what it returns is the answer."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._base = self._note = Path()
        self._python, self._version = "", ""
        self._place: Place | None = None
        self._lock = -1

    def look(self, base: str, python: str) -> dict[str, Any]:
        """What the device is and has; nothing is changed."""
        self._base = expand(base)
        self._note = self._base / "power-mode"
        found = facts(self._base, python)
        self._python, self._version = found["executable"], found["python"]
        return found

    def begin(self, name: str, key: str, sizes: dict[str, int]) -> dict[str, int]:
        """Take the directory for this connection alone; say how much of each file is here."""
        self._base.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._base / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as e:
                if time.monotonic() > until:
                    raise Trouble(f"Another deploy is at work in {self._base}.", "Wait for it, or use --dir.") from e
                self._wire.wait([])
        done = power.restore(self._note)
        if done:
            self._wire.tell(note=done)
        self._place = Place(self._base, name, key)
        return self._place.staged(sizes)

    def put(self, *, name: str, offset: int, size: int, wheel: bool) -> None:
        """Write ``size`` bytes that follow at ``offset`` of a file of the bundle, or of a package."""
        path = (self._base / "wheels" if wheel else self._here.bundle) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if offset else "wb") as f:
                f.seek(offset)
                f.truncate()
                for chunk in self._wire.raw(size):
                    f.write(chunk)
        except OSError as e:  # what is still to come is no request: the connection ends here
            self._wire.tell(error=f"{path}: {e.strerror}", fix="What was copied stays; the next try goes on there.")
            raise Gone from e

    def verify(self, sizes: dict[str, int], digests: dict[str, str]) -> list[str]:
        """Names of files that must be copied again; none where the bundle is whole and holds nothing else."""
        bad = self._here.damaged(sizes, digests)
        if not bad:
            run.check(self._here.bundle, self._here.key)
        return bad

    def find(self, lines: list[str], kind: str = "") -> str | None:
        """The interpreter of an environment that has what is required."""
        return environment.find(self._base, self._python, self._version, lines, kind)[1]

    def make(self, *, lines: list[str], packages: list[str], wheels: bool, kind: str = "") -> str:
        """Make that environment; its interpreter."""
        home, _ = environment.find(self._base, self._python, self._version, lines, kind)
        for old in self._base.glob(f"environments/{kind}*") if kind else ():
            shutil.rmtree(old, ignore_errors=True)
        folder = self._base / "wheels"
        packages = [p.replace("WHEELS", str(folder)).replace("BUNDLE", str(self._here.bundle)) for p in packages]
        try:
            return environment.make(self._wire, home, self._python, packages, folder if wheels else None)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def prove(self, python: str) -> list[str]:
        """Let the bundle test itself; what it says.

        Raises:
            Trouble: it fails.
        """
        code, said = self._wire.work([python, "-I", str(self._here.bundle / "run.py"), "--self-test"])
        if code:
            last = [line for line in said if line.strip()][-1:] or [f"exit code {code}"]
            raise Trouble(f"The self-test failed on the device: {last[0]}")
        return said

    def switch(self, python: str) -> str:
        """Make the bundle the current version; the path of what runs it."""
        home = Path(python).parent.parent
        return self._here.switch(python, home if home.parent == self._base / "environments" else None)

    def bench(self, *, python: str, options: list[str], sweep: bool) -> None:
        """Measure the current version, in each power mode if asked; each report is told when it is there."""
        turns = power.sweep(self._note) if sweep else iter([("", "")])
        try:
            for mode, wrong in turns:
                self._wire.tell(bench={"mode": mode, "error": wrong} if wrong else self._bench(python, options, mode))
        finally:
            getattr(turns, "close", lambda: None)()

    def _bench(self, python: str, options: list[str], mode: str) -> dict[str, Any]:
        out = self._base / ".report"
        shutil.rmtree(out, ignore_errors=True)
        command = [python, "-m", "greenllm.cli", "bench", str(self._here.bundle), "--report", str(out), *options]
        try:
            code, said = self._wire.work(command)
            file = out / "report.json"
            if code or not file.is_file() or file.stat().st_size > _LARGEST:
                return {"mode": mode, "error": " ".join(x for x in said if x.strip())[-500:] or f"exit code {code}"}
            return {"mode": mode, "report": file.read_text(encoding="utf-8")}
        finally:
            shutil.rmtree(out, ignore_errors=True)

    @property
    def _here(self) -> Place:
        if self._place is None:
            raise Trouble("Nothing was begun.")
        return self._place


def serve() -> None:
    """Answer until the connection ends."""

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # what is put back now is put back whole
        raise Gone

    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    wire = Wire()
    agent = Agent(wire)
    try:
        wire.tell(ready=sys.version)
        while True:
            asked = wire.request()
            wire.tell(**_answer(getattr(agent, asked.pop("do")), asked))
    except Gone:
        return


def _answer(action: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """What an action returns, or what went wrong, as people read it."""
    try:
        return {"done": action(**arguments)}
    except Trouble as e:
        return {"error": str(e), "fix": e.fix}
    except run.Refused as e:
        return {"error": str(e), "fix": ""}
    except OSError as e:
        return {"error": f"{e.filename or 'the device'}: {e.strerror}", "fix": ""}
    except subprocess.CalledProcessError as e:
        return {"error": f"{e.cmd[0]} does not run on the device: exit code {e.returncode}", "fix": "See --python."}
    except json.JSONDecodeError as e:
        return {"error": f"An answer on the device is not what it should be: {e}", "fix": ""}
