"""A device: Debian's openssh-server on a loopback port, with its own host key, configuration and home."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Sshd:
    """A server that runs until :meth:`stop`; ``config`` is for the ssh client, which knows its host key.

    Args:
        root: directory for keys, configuration and ``home``.
        path: put before the device's PATH.
        environment: of all that runs on the device.
    """

    def __init__(self, root, path=None, **environment):
        server = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)
        if server is None or not shutil.which("ssh"):
            pytest.skip("no OpenSSH here: apt-get install openssh-server openssh-client")
        self.root, self.home, self.port = Path(root), Path(root) / "home", _free_port()
        self.home.mkdir(parents=True)
        self.host = f"{getpass.getuser()}@127.0.0.1"
        keygen = [str(shutil.which("ssh-keygen")), "-q", "-t", "ed25519", "-N", "", "-f"]
        for key in ("host", "user", "other"):
            subprocess.run([*keygen, self.root / key], check=True, capture_output=True)
        shutil.copy(self.root / "user.pub", self.root / "authorized_keys")
        environment = {"HOME": self.home, "PATH": os.pathsep.join([*([str(path)] if path else []), os.environ["PATH"]]),
                       **environment}  # fmt: skip
        (self.root / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.root}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.root}/authorized_keys\nPasswordAuthentication no\nStrictModes no\n"
            f"KbdInteractiveAuthentication no\nMaxStartups 100\nSubsystem sftp internal-sftp\n"
            f"SetEnv {' '.join(f'{k}={v}' for k, v in environment.items())}\n"
        )
        self.config = self.root / "ssh_config"
        self.config.write_text(
            f"Host *\n  Port {self.port}\n  IdentityFile {self.root}/user\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.root}/known_hosts\n  GlobalKnownHostsFile none\n"
        )
        self.know("host")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where it wants to drop its privileges
        self._process = subprocess.Popen(
            [server, "-D", "-e", "-f", self.root / "sshd_config"], stderr=(self.root / "log").open("w"),
            start_new_session=True,
        )  # fmt: skip
        while not self._answers():
            if self._process.poll() is not None:
                pytest.skip(f"sshd does not run here: {(self.root / 'log').read_text()[-200:]}")
            time.sleep(0.05)

    def _answers(self):
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def know(self, *keys):
        """Have the client know these host keys and no others."""
        lines = [f"[127.0.0.1]:{self.port} {(self.root / f'{k}.pub').read_text()}" for k in keys]
        (self.root / "known_hosts").write_text("".join(lines))

    def sessions(self):
        """Process numbers of the servers of open connections."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                name, _, rest = stat.read_text().partition(") ")
                if name.partition("(")[2].startswith("sshd"):
                    parents[int(stat.parent.name)] = int(rest.split()[1])
        found = [self._process.pid]
        for _ in range(3):  # generations: a monitor, and the one that has dropped its privileges
            found += [child for child, parent in parents.items() if parent in found and child not in found]
        return found[1:]

    def running(self, word):
        """Command lines on this machine that hold ``word``."""
        lines = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if word in text:
                lines.append(text)
        return lines

    def cut(self):
        """Kill the servers of all open connections, as when a link breaks."""
        for number in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def stop(self):
        self.cut()
        self._process.kill()
        self._process.wait()
