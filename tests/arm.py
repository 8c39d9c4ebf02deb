"""An Arm machine: Debian's Python for arm64 under qemu-user, with a Cortex-A76's ``/proc/cpuinfo``.

Nothing is installed on this machine: Debian's packages and the bundle's pinned wheels are unpacked in a directory.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from greenllm.export.device import environment

# What ONNX Runtime looks at to choose its kernels; the host's would be an x86 processor's.
_CPU = """processor\t: {}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
# In a mount namespace of its own, as there is one /proc/cpuinfo and one /sys.
_INSIDE = (
    "mount -t tmpfs none /sys && mkdir -p /sys/devices/system/cpu && "
    "for f in possible present online; do echo 0-1 > /sys/devices/system/cpu/$f; done && "
    'mount --bind "$ARM/cpuinfo" /proc/cpuinfo && '
    'exec qemu-aarch64-static -cpu cortex-a76 -L "$ARM/root" "$ARM/root/usr/bin/python3" "$@"'
)


class Arm:
    """A root directory with Python; :meth:`python` runs it.

    Args:
        home: directory to fill.
    """

    def __init__(self, home):
        if platform.machine() != "x86_64" or os.geteuid() != 0:
            pytest.skip("an Arm machine is made here by root on x86-64 alone")
        for needed in ("qemu-aarch64-static", "apt-get", "dpkg-deb", "unshare"):
            if not shutil.which(needed):
                pytest.skip(f"no {needed} here: apt-get install qemu-user-static")
        self.home = Path(home)
        self._debian()
        (self.home / "cpuinfo").write_text(_CPU.format(0) + _CPU.format(1))
        self.version = self.python("-c", "import sys; print('%d.%d' % sys.version_info[:2])", check=True).stdout.strip()

    def install(self, lines):
        """Unpack the wheels that a bundle's requirements pin."""
        # pip evaluates markers for the Python that runs it, whatever --python-version says
        pins = [f"{name}=={number}" for name, number in environment.wanted(lines, self.version).items()]
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--target", self.home / "site", "--upgrade",
             "--only-binary=:all:", "--python-version", self.version, "--platform", "manylinux_2_28_aarch64",
             "--platform", "manylinux_2_17_aarch64", "--no-deps", *pins],
            check=True, capture_output=True,
        )  # fmt: skip

    def _debian(self):
        """Fetch python3 and what it needs for arm64, and unpack it in ``root``."""
        (self.home / "status").touch()
        for part in ("lists/partial", "cache/archives/partial", "root"):
            (self.home / part).mkdir(parents=True)
        given = {"Dir::State::Lists": "lists", "Dir::Cache": "cache", "Dir::State::status": "status"}
        options = [f"-o{k}={self.home / v}" for k, v in given.items()]
        options += ["-oAPT::Architecture=arm64", "-oAPT::Architectures=arm64", "-oAPT::Sandbox::User=root", "-qq"]
        apt = [str(shutil.which("apt-get")), *options]
        wanted = ["--no-install-recommends", "--download-only", "-y", "python3", "libstdc++6"]
        for command in (["update"], ["install", *wanted]):
            done = subprocess.run([*apt, *command], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no packages for arm64 can be had here: {done.stderr.strip()[:200]}")
        for deb in (self.home / "cache" / "archives").glob("*.deb"):
            subprocess.run([str(shutil.which("dpkg-deb")), "-x", deb, self.home / "root"], check=True)

    def python(self, *arguments, check=False):
        """Run its Python; the process that has ended, with what it printed."""
        environment = {"ARM": str(self.home), "PATH": os.environ["PATH"], "PYTHONPATH": str(self.home / "site"),
                       "PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(self.home / "xdg")}  # fmt: skip
        command = ["unshare", "-m", "sh", "-c", _INSIDE, "sh", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=check)
