"""Deploy: a bundle goes to a device over ssh, tests itself there, and only then takes the place of the one before."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenllm import __version__, artifact
from greenllm.artifact import Artifact
from greenllm.errors import GreenError
from greenllm.export import archive
from greenllm.export.bundle import REQUIREMENTS, Needs, check
from greenllm.export.deploy import fit
from greenllm.export.deploy.ssh import Device, Where
from greenllm.progress import Progress, Silent

if TYPE_CHECKING:
    from greenllm.bench.results import Results

_BENCH = ["codecarbon", "psutil", "scipy"]
_TRIES = 2  # for a file that arrives damaged


@dataclass
class Deployed:
    """What was done: the command that runs the model on the device, and what was measured there."""

    command: str
    facts: dict[str, Any]
    results: list[Results] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def deploy(
    bundle: str | Path,
    where: Where,
    *,
    directory: str = "greenllm",
    python: str = "python3",
    wheels: str | Path | None = None,
    bench: bool = False,
    options: Sequence[str] = (),
    power_modes: bool = False,
    wheel: str | Path | None = None,
    progress: Progress | None = None,
) -> Deployed:
    """Copy a bundle to a device, let it test itself there, and make it the current version.

    A cut link, a kill or a failed self-test at any point leaves the device's last good version in place; the same
    call goes on where it stopped.

    Args:
        bundle: what :func:`greenllm.export.bundle.bundle` made, directory or archive.
        where: the device.
        directory: on the device, relative to home; each model has one below it, with a link ``current``.
        python: interpreter on the device. One that has all that is required is used as it is; else a virtual
            environment is made from it.
        wheels: directory of packages here, for a device without network.
        bench: measure the model there.
        options: further arguments of ``greenllm bench`` there.
        power_modes: measure in each of a Jetson's power modes.
        wheel: greenllm's own, for the bench; made from its source tree by default.
        progress: told of the stages.

    Raises:
        GreenError: a bundle that was tampered with, a device that cannot be reached or does not fit, what fails there.
    """
    progress = progress or Silent()
    with archive.opened(Path(bundle).expanduser()) as path:
        progress.stage("checking the bundle", 1)
        found, needs = check(path)
        progress.advance()
        name = archive.stem(Path(bundle).absolute())
        progress.stage(f"reaching {where.host}", 1)
        with Device(where, progress.note) as device:
            facts = device.call("look", base=directory, python=python)
            progress.advance()
            if power_modes and not facts["power_modes"]:
                raise GreenError("The device has no nvpmodel.", "Leave out --power-modes: only a Jetson has them.")
            _copy(device, found, name, needs, facts, wheels, progress)
            interpreter = _environment(device, path, wheels, progress)
            progress.stage("self-test on the device", 1)
            for line in device.call("prove", python=interpreter):
                progress.note(line)
            command = device.call("switch", python=interpreter)
            progress.advance()
            done = Deployed(command, facts)
            if bench or power_modes:
                _bench(device, done, name, where, options, power_modes, wheel, wheels, progress)
    return done


def _copy(
    device: Device, found: Artifact, name: str, needs: Needs, facts: dict[str, Any], wheels: str | Path | None,
    progress: Progress,
) -> None:  # fmt: skip
    """Bring over what is not there yet, until every hash is right on the device."""
    files = {**found.manifest.files, artifact.MANIFEST: artifact.file_of(found.path / artifact.MANIFEST)}
    sizes = {n: f.size for n, f in files.items()}
    digests = {n: f.sha256 for n, f in files.items()}
    pins = (found.path / REQUIREMENTS).read_text(encoding="utf-8").splitlines()
    progress.note(fit.check(needs, facts))
    here = device.call("begin", name=name, key=digests[artifact.MANIFEST], sizes=sizes)
    rest = {n: size - here.get(n, 0) for n, size in sizes.items() if here.get(n, -1) != size}
    needed = sum(r if r > 0 else sizes[n] for n, r in rest.items())
    missing = device.call("find", lines=pins) is None
    extra = sum(p.stat().st_size for p in Path(wheels).glob("*.whl")) if wheels and missing else 0
    fit.check_disk(facts, copy=needed + extra, environment=missing)
    for _ in range(_TRIES):
        progress.stage("copying", max(needed, 1))
        for n, r in rest.items():
            device.put(found.path / n, n, here.get(n, 0) if r > 0 else 0, progress.advance)
        progress.stage("verifying on the device", 1)
        bad = device.call("verify", sizes=sizes, digests=digests)
        progress.advance()
        if not bad:
            return
        progress.note(f"Damaged on the way or on the device, copied again: {', '.join(bad)}")
        rest, here, needed = {n: sizes[n] for n in bad}, {}, sum(sizes[n] for n in bad)
    raise GreenError(
        f"Files arrive damaged on the device: {', '.join(bad)}.", "Its disk, memory or this link changes bytes."
    )


def _environment(device: Device, path: Path, wheels: str | Path | None, progress: Progress) -> str:
    """The interpreter on the device that has what the bundle requires; an environment is made where there is none."""
    lines = (path / REQUIREMENTS).read_text(encoding="utf-8").splitlines()
    found = device.call("find", lines=lines)
    if found is None:
        progress.stage("making the environment on the device", 1)
        _send_wheels(device, wheels)
        packages = ["--no-deps", "-r", f"BUNDLE/{REQUIREMENTS}"]
        found = device.call("make", lines=lines, packages=packages, wheels=wheels is not None)
        progress.advance()
    return str(found)


def _send_wheels(device: Device, wheels: str | Path | None, *more: Path) -> None:
    files = sorted(Path(wheels).expanduser().glob("*.whl")) if wheels else []
    if wheels and not files:
        raise GreenError(f"{wheels} holds no wheels.", "pip download -d DIR -r BUNDLE/requirements.txt fetches them.")
    for file in (*files, *more):
        device.put(file, file.name, 0, lambda _: None, wheel=True)


def _bench(
    device: Device, done: Deployed, name: str, where: Where, options: Sequence[str], power_modes: bool,  # noqa: FBT001
    wheel: str | Path | None, wheels: str | Path | None, progress: Progress,
) -> None:  # fmt: skip
    """Measure there, in an environment with greenllm and no torch."""
    from greenllm.export.deploy import results

    lines = [f"greenllm=={__version__}", *_BENCH]
    interpreter = device.call("find", lines=lines, kind="bench-")
    if interpreter is None:
        progress.stage("making the bench's environment on the device", 1)
        with _wheel(wheel) as own:
            _send_wheels(device, wheels, own)
            packages = ["-c", f"BUNDLE/{REQUIREMENTS}", f"WHEELS/{own.name}[bench]"]
            interpreter = device.call("make", lines=lines, packages=packages, wheels=wheels is not None, kind="bench-")
        progress.advance()
    progress.stage("measuring on the device", 1)
    said: list[dict[str, Any]] = []
    device.call("bench", said.append, python=interpreter, options=list(options), sweep=power_modes)
    progress.advance()
    done.results, done.failed = results.read(said, name, where.host)


@contextlib.contextmanager
def _wheel(given: str | Path | None) -> Any:
    """Greenllm's own wheel: given, or made from the source tree that this is."""
    if given:
        if not Path(given).is_file():
            raise GreenError(f"{given}: there is no such wheel.")
        yield Path(given)
        return
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        raise GreenError(
            "The bench on the device needs greenllm's wheel, and this greenllm has no source tree to make it from.",
            "Give it: --wheel greenllm-….whl (in a clone: python -m build --wheel).",
        )
    with tempfile.TemporaryDirectory() as out:
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, str(root)]
        made = subprocess.run(pip, capture_output=True, text=True, check=False)
        if made.returncode:
            raise GreenError(
                f"greenllm's wheel cannot be made: {made.stderr.strip()[-300:]}", "Give one: --wheel FILE."
            )
        yield next(Path(out).glob("*.whl"))
