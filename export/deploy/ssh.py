"""One connection through OpenSSH's own client: its configuration, keys, agent and known hosts are the user's.

The client was chosen over a library in Python because all of that, jump hosts and hardware keys included, then works
as it does in the user's shell, and nothing new is to be installed. Over it run a small program (``export/device``) and
the files: the device needs a server of ssh and a Python, neither sftp nor rsync.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from greenllm.errors import GreenError

if TYPE_CHECKING:
    from typing_extensions import Self

_CODE = Path(__file__).parents[1] / "device"
_MODULES = ("run", "wire", "facts", "place", "environment", "power", "agent")
_PACKAGE = "greenllm.export.device"
_HOST = re.compile(r"(?!-)([\w.+-]+@)?[\w.:%\[\]-]+")
_BEAT = 5.0  # seconds
_PATIENCE = 30.0  # seconds in which the device puts things back
_CHUNK = 1 << 20
_BOOT = """
import json, sys, types
raw = sys.stdin.buffer.raw
size, text = int(raw.readline()), b""
while len(text) < size:
    text += raw.read(size - len(text)) or sys.exit(1)
for name in ("greenllm", "greenllm.export", "greenllm.export.device"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name, code in json.loads(text):
    module = sys.modules[name] = types.ModuleType(name)
    setattr(sys.modules["greenllm.export.device"], name.rpartition(".")[2], module)
    exec(compile(code, name, "exec"), module.__dict__)
module.serve()
"""


@dataclass(frozen=True)
class Where:
    """How to reach a device.

    Attributes:
        host: ``user@host``, or a name from ssh's configuration.
        port: of its server; None as ssh's configuration says.
        identity: file of a private key.
        config: a configuration for ssh other than ``~/.ssh/config``.
        interpreter: name of the Python that the device has for our program.
    """

    host: str
    port: int | None = None
    identity: Path | None = None
    config: Path | None = None
    interpreter: str = "python3"

    def command(self) -> list[str]:
        """The ssh client's command line, without a command for the device.

        Raises:
            GreenError: the host's name is none, or there is no ssh client.
        """
        if not _HOST.fullmatch(self.host):
            raise GreenError(f"{self.host!r} is no user@host.", "Give one, or a Host of ~/.ssh/config.")
        if not shutil.which("ssh"):
            raise GreenError("There is no ssh client here.", "Install OpenSSH: apt-get install openssh-client.")
        options = [
            "BatchMode=yes", "StrictHostKeyChecking=yes", "UpdateHostKeys=no", "ConnectTimeout=15",
            "ServerAliveInterval=5", "ServerAliveCountMax=3", "ForwardAgent=no", "ForwardX11=no",
            "ClearAllForwardings=yes", "PermitLocalCommand=no",
        ]  # fmt: skip
        found = ["ssh", "-T", *(x for o in options for x in ("-o", o))]
        found += ["-F", str(self.config)] if self.config else []
        found += ["-p", str(self.port)] if self.port else []
        found += ["-i", str(self.identity), "-o", "IdentitiesOnly=yes"] if self.identity else []
        return [*found, "--", self.host]


class Device:
    """A device that answers; use as a context manager. When it ends, nothing of ours runs there any more.

    Args:
        where: how to reach it.
        note: told what the device has to say.

    Raises:
        GreenError: it cannot be reached, its host key is not the known one, or it has no Python.
    """

    def __init__(self, where: Where, note: Callable[[str], None]) -> None:
        self._where, self._note = where, note
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        boot = f"exec {shlex.quote(where.interpreter)} -I -u -c {shlex.quote(_BOOT)}"
        self._process = subprocess.Popen(
            [*where.command(), boot], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for us alone: the device still has to put things back
        )  # fmt: skip
        self._in, self._out = _pipes(self._process)
        self._writing, self._over = threading.Lock(), threading.Event()
        modules = [(f"{_PACKAGE}.{m}", (_CODE / f"{m}.py").read_text(encoding="utf-8")) for m in _MODULES]
        text = json.dumps(modules).encode()
        try:
            self._send(b"%d\n" % len(text) + text)
            self._answer("ready")
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._beat, daemon=True).start()

    def __enter__(self) -> Self:
        """It has answered already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        """See :meth:`close`."""
        self.close()

    def call(self, do: str, told: Callable[[Any], None] | None = None, **arguments: Any) -> Any:
        """Ask for one thing and wait for the answer; see :class:`greenllm.export.device.agent.Agent`.

        Args:
            do: name of the request.
            told: gets what is told on the way, under the request's name.
            arguments: of the request.

        Raises:
            GreenError: it cannot be done there, or the connection is cut.
        """
        self._send(json.dumps({"do": do, **arguments}).encode() + b"\n")
        return self._answer("done", do, told)

    def put(self, file: Path, name: str, offset: int, advance: Callable[[float], None], *, wheel: bool = False) -> None:
        """Copy a file from ``offset`` on; ``advance`` is told of each byte."""
        size = file.stat().st_size - offset
        head = {"do": "put", "name": name, "offset": offset, "size": size, "wheel": wheel}
        with file.open("rb") as f, self._writing:
            self._write(json.dumps(head).encode() + b"\n")
            f.seek(offset)
            while size > 0 and (chunk := f.read(min(_CHUNK, size))):
                self._write(chunk)
                size -= len(chunk)
                advance(len(chunk))
        if size:
            raise GreenError(f"{file} became shorter while it was copied.")
        self._answer("done")

    def close(self) -> None:
        """Hang up, and wait until the device has put things back."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._in.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()
        self._errors.close()

    def _beat(self) -> None:
        """Say something now and then: to the device silence means that nobody is here."""
        while not self._over.wait(_BEAT):
            with contextlib.suppress(GreenError, ValueError), self._writing:
                self._in.write(b"\n")
                self._in.flush()

    def _send(self, text: bytes) -> None:
        with self._writing:
            self._write(text)

    def _write(self, text: bytes) -> None:
        try:
            self._in.write(text)
            self._in.flush()
        except OSError:
            self._answer("")  # it says why, or is gone: both raise

    def _answer(self, key: str, do: str = "", told: Callable[[Any], None] | None = None) -> Any:
        while line := self._out.readline():
            try:
                said = json.loads(line)
                assert isinstance(said, dict)  # noqa: S101 - what our program sends
            except (ValueError, AssertionError):
                self._note(line.decode(errors="replace").strip()[:200])  # a login script that prints
                continue
            if "error" in said:
                raise GreenError(str(said["error"]), str(said.get("fix", "")))
            if "note" in said:
                self._note(str(said["note"]))
            elif do and told and do in said:
                told(said[do])
            elif key in said:
                return said[key]
        raise self._lost()

    def _lost(self) -> GreenError:
        with contextlib.suppress(OSError):
            self._in.close()
        code = self._process.wait()
        self._errors.seek(0)
        return explain(self._errors.read().decode(errors="replace"), code, self._where)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101 - both are pipes
    return process.stdin, process.stdout


def explain(said: str, code: int, where: Where) -> GreenError:
    """Why a connection could not be made or was lost, and what to do, from ssh's own words and exit code."""
    host = where.host
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("Warning: Permanently")]
    last = lines[-1] if lines else f"ssh ended with exit code {code}."
    login = shlex.join([x for x in where.command() if x != "-T" and "=" not in x and x not in ("-o", "--")])
    if "IDENTIFICATION HAS CHANGED" in said:
        return GreenError(
            f"{host}: its host key is not the known one. Either it was set up anew, or someone else answers; "
            "nothing was sent.",
            f"Only if you know why it changed: ssh-keygen -R {_known(where)}, then {login}; compare the fingerprint.",
        )
    if "Host key verification failed" in said:
        return GreenError(
            f"{host}: its host key is not known here; nothing was sent.",
            f"Connect once, and compare the fingerprint with the device's own: {login}\n"
            "(on the device: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)",
        )
    if "Permission denied" in said:
        return GreenError(
            f"{host} does not let us in: {last}",
            "Passwords are not asked for: use a key (--identity FILE, or ssh-add), which ssh-copy-id puts there.",
        )
    if code == 127:  # noqa: PLR2004 - a shell's word for: no such program
        return GreenError(f"{host} has no {where.interpreter}: {last}", "Install Python 3 on the device.")
    if re.search(r"resolve|refused|timed out|No route|unreachable|not known", said) and "closed" not in last:
        return GreenError(f"{host} cannot be reached: {last}", "Check its name, --port, and that it is on.")
    return GreenError(
        f"The connection to {host} was lost: {last}",
        "What runs on the device is as it was. Run the same command again: it goes on where it stopped.",
    )


def _known(where: Where) -> str:
    """The device's name as known_hosts has it."""
    name = where.host.rpartition("@")[2]
    return shlex.quote(f"[{name}]:{where.port}") if where.port else name
