"""One model, one worker: requests are answered one after the other, and only so many may wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from greenllm.serve.refused import Refused

_END = object()


class Turn:
    """Work that waits or runs: iterate over what it yields; ``close`` ends it, wherever it is."""

    def __init__(self, pool: ThreadPoolExecutor, work: Callable[[], Iterable[Any]], done: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Any] = asyncio.Queue()
        self._gone = threading.Event()
        self._work, self._done = work, done
        self._future = self._loop.run_in_executor(pool, self._run)
        self._future.add_done_callback(self._ended)

    def _run(self) -> None:
        for piece in self._work():
            if self._gone.is_set():
                break
            if piece:
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    def _ended(self, future: asyncio.Future[None]) -> None:
        self._done()
        self._pieces.put_nowait(_END)
        if not future.cancelled():
            future.exception()  # told to who iterates; whoever has gone does not want it

    async def __aiter__(self) -> AsyncIterator[Any]:
        """What the work yields, but what is empty."""
        while (piece := await self._pieces.get()) is not _END:
            yield piece
        await self._future

    def close(self) -> None:
        """Stop: at once if it still waits, else after the current piece."""
        self._gone.set()
        self._future.cancel()


class Desk:
    """Takes requests in the order in which they come.

    Args:
        waiting: how many may wait while one is answered.
    """

    def __init__(self, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(1, "model")
        self._room = waiting + 1
        self._taken = 0

    def take(self, work: Callable[[], Iterable[Any]]) -> Turn:
        """A place in the queue.

        Raises:
            Refused: it is full.
        """
        if self._taken >= self._room:
            raise Refused(
                503, f"{self._taken} requests are being answered or wait: try again later.", code="overloaded"
            )
        self._taken += 1
        return Turn(self._pool, work, self._free)

    def _free(self) -> None:
        self._taken -= 1

    def close(self) -> None:
        """Wait for the piece that is being made."""
        self._pool.shutdown(wait=True, cancel_futures=True)
