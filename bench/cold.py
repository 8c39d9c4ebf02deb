"""Files out of the page cache, and how much of them is in it: what a cold load needs, and how it is known to be one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_LEFT = 0.01  # of the bytes, that may stay in the cache in what is called cold


def drop(files: Iterable[Path]) -> str | None:
    """Drop files from the page cache; None when they are out of it, else why they are not, or cannot be known to be.

    Pages that another process maps stay, and so do those of a file system that lies in memory.
    """
    if not hasattr(os, "posix_fadvise"):
        return "this system cannot drop files from its cache"
    files = list(files)
    try:
        for file in files:
            _drop(file)
        share = cached(files)
    except OSError as e:  # a file system that knows no fsync or no mmap
        return f"the system refuses to drop them ({e.strerror})"
    if share is None:
        return "this system does not say what its cache holds"
    if share > _LEFT:
        return f"{share:.0%} of its files stayed in the page cache: they lie in memory, or another process maps them"
    return None


def _drop(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # pages that are not yet on the disk stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def cached(files: Iterable[Path]) -> float | None:
    """Share of the files' pages that the page cache holds (``man 2 mincore``); None where the system does not say."""
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (AttributeError, OSError):
        return None
    there = total = 0
    for file in files:
        if file.stat().st_size:
            mapped = np.memmap(file, np.uint8, mode="r")
            pages = np.zeros(-(-mapped.size // os.sysconf("SC_PAGESIZE")), np.uint8)
            start, length = ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(mapped.size)
            if mincore(start, length, ctypes.c_void_p(pages.ctypes.data)) != 0:
                return None
            there, total = there + int((pages & 1).sum()), total + pages.size
    return there / total if total else None
