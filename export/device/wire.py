"""The device's end of the ssh connection: requests come in, answers go out, and silence means that nobody is there."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SILENCE = 30.0  # seconds; the other end says something every 5
_KEPT = 200  # lines of a program's output


class Gone(BaseException):
    """The other end has left: end what runs, put things back, and go."""


class Trouble(Exception):  # noqa: N818 - it is told to people
    """Something is wrong here: what it is, and what changes it."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.fix = fix


class Wire:
    """Lines of JSON from file descriptor 0 to 1; blank lines only say that someone is there."""

    def __init__(self) -> None:
        self._buffer = b""
        self._heard = time.monotonic()

    def request(self) -> dict[str, Any]:
        """The next one.

        Raises:
            Gone: the connection has ended, or was silent for too long.
        """
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if not newline:
                self.wait([])
                continue
            self._buffer = rest
            if line:
                return dict(json.loads(line))

    def raw(self, size: int) -> Iterator[bytes]:
        """The next ``size`` bytes as they come."""
        while size:
            if not self._buffer:
                self.wait([])
            chunk, self._buffer = self._buffer[:size], self._buffer[size:]
            size -= len(chunk)
            if chunk:
                yield chunk

    def wait(self, others: list[int]) -> list[int]:
        """Wait a while for this connection or for one of other descriptors; return those of them that are ready.

        Raises:
            Gone: see :meth:`request`.
        """
        ready, _, _ = select.select([0, *others], [], [], 1.0)
        if 0 in ready:
            said = os.read(0, 1 << 20)
            if not said:
                raise Gone
            self._buffer += said
            self._heard = time.monotonic()
        elif time.monotonic() - self._heard > SILENCE:
            raise Gone
        return [r for r in ready if r]

    def tell(self, **message: Any) -> None:
        """Send one line.

        Raises:
            Gone: nobody reads.
        """
        line = json.dumps(message).encode() + b"\n"
        try:
            while line:
                line = line[os.write(1, line) :]
        except OSError as e:
            raise Gone from e

    def work(self, command: list[str], **environment: str) -> tuple[int, list[str]]:
        """Run a program to its end and return its exit code and last lines; it ends with the connection at the latest.

        Raises:
            Gone: the connection ended; the program and what it had started are gone too.
        """
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, cwd="/", env={**os.environ, **environment},
        )  # fmt: skip
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        output, pipe = b"", process.stdout.fileno()
        lines: deque[str] = deque(maxlen=_KEPT)
        try:
            while True:
                if self.wait([pipe]):
                    said = os.read(pipe, 1 << 16)
                    *whole, output = (output + said).split(b"\n")
                    lines += [x.decode(errors="replace") for x in whole]
                    if not said:
                        break
            lines += [output.decode(errors="replace")] if output else []
            return process.wait(), list(lines)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and its children, kindly and then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
