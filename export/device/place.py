"""Where versions of a model lie on the device, and how a new one takes the place of the old at once.

BASE/environments/KEY            what several models may share
BASE/NAME/incoming/HASH/bundle   copied in part or whole; never run but by its own self-test
BASE/NAME/versions/HASH          whole, verified, self-tested: bundle/, and run, which starts it
BASE/NAME/current                link to one of them
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from greenllm.export.device import run


class Place:
    """One model's directory.

    Args:
        base: of all models.
        name: of this one.
        key: SHA-256 of the manifest of the bundle that comes.
    """

    def __init__(self, base: Path, name: str, key: str) -> None:
        self.base, self.home, self.key = base, base / name, key
        self.incoming = self.home / "incoming" / key[:16]
        self.version = self.home / "versions" / key[:16]

    @property
    def bundle(self) -> Path:
        """Where the bundle lies now: among the versions if it is whole there, else where it comes in."""
        return (self.version if self.version.is_dir() else self.incoming) / "bundle"

    def staged(self, sizes: dict[str, int]) -> dict[str, int]:
        """Bytes of each file that are here already; all of them, where this version is here whole.

        Args:
            sizes: of all files that will come; whatever else came in before is deleted.
        """
        if self.version.is_dir():
            try:
                run.check(self.version / "bundle", self.key)
            except (run.Refused, OSError):
                self.incoming.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(self.incoming, ignore_errors=True)
                self.version.rename(self.incoming)
            else:
                return dict(sizes)
        for other in self.incoming.parent.glob("*"):
            if other != self.incoming:
                shutil.rmtree(other, ignore_errors=True)
        bundle = self.incoming / "bundle"
        bundle.mkdir(parents=True, exist_ok=True)
        try:
            here = {name: (bundle / name).stat().st_size for name in run.plain_files(bundle)}
        except run.Refused:
            here = {"": -1}
        if not set(here) <= set(sizes):
            shutil.rmtree(bundle)
            bundle.mkdir()
            return {}
        return here

    def damaged(self, sizes: dict[str, int], digests: dict[str, str]) -> list[str]:
        """Names of files whose contents are not what they should be; those files are deleted."""
        bad = []
        for name, size in sizes.items():
            path = self.bundle / name
            if not path.is_file() or path.stat().st_size != size or run.sha256(path) != digests[name]:
                bad.append(name)
                if path.is_file():
                    path.unlink()
        return bad

    def switch(self, python: str, environment: Path | None) -> str:
        """Make this version the current one, and keep the one before it; return the path of what runs it.

        A kill at any point leaves ``current`` at the old version or at the new one.
        """
        if not self.version.is_dir():
            _start(self.incoming, python)
            if environment is not None:
                _link(self.incoming / "environment", environment)
            _settle(self.incoming)
            self.version.parent.mkdir(exist_ok=True)
            self.incoming.rename(self.version)
        current = self.home / "current"
        before = current.resolve() if current.is_symlink() else None
        _link(current, self.version.relative_to(self.home))
        _sync(self.home)
        self._prune({self.version, before} if before != self.version else set())
        return str(current / "run")

    def _prune(self, keep: set[Path | None]) -> None:
        """Delete all versions but those to ``keep`` (none: all stay), and environments that no version uses."""
        for version in (self.home / "versions").iterdir() if keep else ():
            if version not in keep:
                shutil.rmtree(version, ignore_errors=True)
        shutil.rmtree(self.home / "incoming", ignore_errors=True)
        used = {link.resolve() for link in self.base.glob("*/versions/*/environment")}
        for environment in (self.base / "environments").glob("*"):
            if environment.resolve() not in used and not environment.name.startswith("bench-"):
                shutil.rmtree(environment, ignore_errors=True)


def _link(path: Path, target: Path) -> None:
    """Have a link lead to ``target``; one that is there is replaced at once."""
    new = path.with_name(f".{path.name}")
    if new.is_symlink():
        new.unlink()
    new.symlink_to(target)
    new.replace(path)


def _start(version: Path, python: str) -> None:
    """Write the script that starts the model."""
    script = version / "run"
    text = f'#!/bin/sh\nexec {shlex.quote(python)} -I "$(dirname "$(readlink -f "$0")")/bundle/run.py" "$@"\n'
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)


def _settle(version: Path) -> None:
    """Have all of it on the disk, not in memory alone, before anyone is sent there."""
    for folder, _, files in os.walk(version):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
