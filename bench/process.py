"""A model in a process of its own: if it crashes or the system kills it, that is one row of the report."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import Pipe
from types import TracebackType
from typing import TYPE_CHECKING, Any

from greenllm.bench.child import get, put
from greenllm.errors import GreenError

if TYPE_CHECKING:
    from typing_extensions import Self

LIMIT = 1800.0  # seconds that one call may take before the model counts as hung


class Failed(Exception):  # noqa: N818 - it is a finding about a model, not an error of ours
    """The model's process crashed, was killed, hung, or raised; the message is for the report.

    Args:
        reason: one or two plain lines.
        users: whether the user's input was at fault (a :class:`GreenError` over there).
    """

    def __init__(self, reason: str, *, users: bool = False) -> None:
        super().__init__(reason)
        self.users = users


class Model:
    """The parent's end. Use as a context manager; :meth:`close` ends the process.

    Args:
        threads: for the numeric libraries, which read it from the environment when they are imported.
        limit: seconds that one call may take.
    """

    def __init__(self, threads: int, limit: float = LIMIT) -> None:
        self._limit, self._deadline, self._late = limit, 0.0, False
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in close()
        self._pipe, theirs = Pipe()
        plain = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}  # see greenllm.pages
        environment = {**plain, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "greenllm.bench.child", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
        )
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of :class:`greenllm.bench.child.Server` over there and wait.

        Raises:
            Failed: it raised, crashed, was killed, or took longer than the limit.
        """
        self.send(method, *arguments)
        return self.result()

    def send(self, method: str, *arguments: Any) -> None:
        """Begin a call without waiting; :meth:`result` ends it."""
        self._deadline = time.monotonic() + self._limit
        try:
            put(self._pipe, (method, arguments))
        except OSError:
            raise Failed(self._epitaph()) from None

    def done(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for the call's end; a crash is an end too, and the limit brings one about."""
        if self._pipe.poll(seconds):
            return True
        if time.monotonic() > self._deadline:
            self._late = True
            self._process.kill()
        return False

    def result(self) -> Any:
        """What the call returned."""
        while not self.done(min(1.0, self._limit)):
            pass
        try:
            ok, *answer = get(self._pipe)
        except (EOFError, OSError):
            late = f"No answer within {self._limit:g} s; it was stopped."
            raise Failed(late if self._late else self._epitaph()) from None
        if not ok:
            raise Failed(answer[0], users=answer[1])
        return answer[0]

    def close(self) -> None:
        """End the process, kindly and then not."""
        self._pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        """Running since it was made."""
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        """End the process."""
        self.close()

    def _epitaph(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        said = [line.strip() for line in self._log.read()[-4000:].splitlines() if line.strip()]
        last = f" Its last line: {said[-1][:300]}" if said else ""
        if code == -signal.SIGKILL:
            return f"Killed by the system (SIGKILL), most likely because memory ran out.{last}"
        if code < 0:
            return f"Crashed ({signal.Signals(-code).name}).{last}"
        return f"Ended by itself (exit status {code}).{last}"


def blame(e: Failed, name: str) -> GreenError:
    """A user's mistake, told before any time is spent on measuring."""
    what, _, fix = str(e).partition("\n")
    return GreenError(f"{name}: {what}", fix)
