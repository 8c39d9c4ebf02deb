"""Find packed weights in a dense graph by content, whatever names, fusions and transposes it has.

An exporter was given the dequantized weights, so each row of a packed linear lies somewhere in its
graph bit for bit. A row is known by a 64-bit hash; a matrix of the graph is then a list of
(linear, row), which also covers fused ones (q, k and v in one matrix) and split ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from greenllm.errors import GreenError
from greenllm.quantize.packed import concatenate, select
from greenllm.stored import AnyPacked as Quantized

_CHUNK = 1 << 21  # weights hashed at a time: 16 MB of temporaries


class PackedSource(Protocol):
    """What has packed weights: a :class:`greenllm.checkpoint.Checkpoint`."""

    def packed(self) -> Iterator[tuple[str, Quantized]]:
        """Names and weights, one at a time."""

    def read_packed(self, module: str) -> Quantized:
        """The weight of one module."""


@dataclass
class Rows:
    """Rows of packed linears, in the order in which a graph's matrix has them.

    Attributes:
        linears: int [N], index of each row's linear in the library.
        rows: int [N], which row of it.
    """

    linears: NDArray[np.int64]
    rows: NDArray[np.int64]


class Library:
    """All rows of the packed weights by hash; the weights themselves are read again when needed.

    Args:
        source: has the weights.
        dtype: to which the dequantized weights were rounded before they came into the graph.
    """

    def __init__(self, source: PackedSource, dtype: torch.dtype = torch.float32) -> None:
        self._source = source
        self.names: list[str] = []
        self._kinds: list[tuple[Any, ...]] = []
        hashes, linears, rows = [], [], []
        for name, packed in source.packed():
            found = _packed_hashes(packed, dtype)
            hashes.append(found)
            linears.append(np.full(len(found), len(self.names)))
            rows.append(np.arange(len(found)))
            self.names.append(name)
            self._kinds.append(packed.kind)
        order = np.argsort(np.concatenate(hashes), kind="stable") if hashes else np.zeros(0, np.int64)
        self._hashes = np.concatenate([*hashes, np.zeros(0, np.uint64)])[order]
        self._linears = np.concatenate([*linears, np.zeros(0, np.int64)])[order]
        self._rows = np.concatenate([*rows, np.zeros(0, np.int64)])[order]
        self._seen = np.zeros(len(self._hashes), bool)

    def find(self, matrix: NDArray[np.float32], *, name: str) -> Rows | None:
        """The packed rows that a matrix [N, K] consists of; None when it is none of ours.

        Raises:
            GreenError: some rows are ours and some are not: the exporter changed a weight.
        """
        hashes = _hashes(matrix)
        at = np.searchsorted(self._hashes, hashes).clip(0, max(0, len(self._hashes) - 1))
        ours = self._hashes[at] == hashes if len(self._hashes) else np.zeros(len(hashes), bool)
        telling = hashes != 0  # rows of zeros are in many matrices
        if not ours[telling].any():
            return None
        if not ours.all():
            raise GreenError(
                f"The exported weight {name} has {int((~ours).sum())} of {len(ours)} rows that are in no packed weight."
            )
        self._seen |= np.isin(self._hashes, hashes)
        return Rows(self._linears[at], self._rows[at])

    def missing(self) -> list[str]:
        """Packed linears of which a row was never found in the graph."""
        return [self.names[i] for i in np.unique(self._linears[~self._seen])]

    def split(self, found: Rows) -> list[Rows]:
        """Cut into runs of rows of one kind: bits, group and symmetry in common."""
        kinds = np.array([hash(k) for k in self._kinds])[found.linears]
        cuts = np.flatnonzero(np.diff(kinds)) + 1
        return [Rows(a, b) for a, b in zip(np.split(found.linears, cuts), np.split(found.rows, cuts), strict=True)]

    def gather(self, run: Rows) -> Quantized:
        """The packed weight made of these rows, which must come from one run of :meth:`split`."""
        cuts = np.flatnonzero(np.diff(run.linears)) + 1
        parts: list[Quantized] = []
        for linears, rows in zip(np.split(run.linears, cuts), np.split(run.rows, cuts), strict=True):
            whole = self._source.read_packed(self.names[int(linears[0])])
            at = torch.from_numpy(rows)
            in_order = len(rows) == whole.shape[0] and bool((np.diff(rows) == 1).all())
            parts.append(whole if in_order else select(whole, at))
        return parts[0] if len(parts) == 1 else concatenate(parts)


def _packed_hashes(packed: Quantized, dtype: torch.dtype) -> NDArray[np.uint64]:
    """Hashes of the dequantized rows, without holding all of them."""
    n, k = packed.shape
    step = max(1, _CHUNK // k)
    parts = (select(packed, torch.arange(i, min(n, i + step))).dequantize() for i in range(0, n, step))
    return np.concatenate([_hashes(rows.to(dtype).float().numpy()) for rows in parts])


def _hashes(matrix: NDArray[np.float32]) -> NDArray[np.uint64]:
    """One hash a row of float32 [N, K]: the bits of its weights times random 64-bit numbers, summed.

    Multiply-shift hashing (Dietzfelbinger 1997): two different rows collide with a chance of about
    2**-59 (dequantized weights have no low mantissa bits). A row of zeros hashes to 0.
    """
    n, k = matrix.shape
    factors = np.random.default_rng(k).integers(0, 2**64, k, np.uint64) | np.uint64(1)
    found = np.empty(n, np.uint64)
    step = max(1, _CHUNK // k)
    for i in range(0, n, step):
        rows = np.ascontiguousarray(matrix[i : i + step]) + np.float32(0)  # -0 and 0 are one weight
        found[i : i + step] = (rows.view(np.uint32).astype(np.uint64) * factors).sum(1)
    return found
