"""How fast this machine reads memory: what bounds a token of a language model, which reads every weight once.

Like STREAM's kernels (McCalpin, 1995, "Memory Bandwidth and Machine Balance"), with a reading kernel (a maximum), an
array far larger than the caches, and the best of several tries.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_BYTES = 256 << 20  # of a thread's array at most
_TRIES = 5


def read_bandwidth(threads: int) -> float:
    """Bytes a second that ``threads`` threads read together, each its own part; NumPy reads without the GIL."""
    import psutil

    room = psutil.virtual_memory().available // 8
    parts = np.zeros((threads, min(_BYTES, room // threads) // 8), dtype=np.uint64)
    parts[:] = 1  # own pages, not the zero page
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_TRIES):
            begin = time.perf_counter()
            list(pool.map(np.max, parts))
            best = min(best, time.perf_counter() - begin)
    return parts.nbytes / best
