"""Where the bytes of each model are: one bar a model, one piece a kind of tensor or a part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from greenllm.bench.report.geometry import WIDTH, Mark, Picture
from greenllm.bench.report.words import number
from greenllm.bench.results import Results
from greenllm.bench.tensors import KINDS

_TOP, _ROW, _BAR, _SIDE, _LEAST = 26.0, 52.0, 20.0, 12.0, 0.01


def pieces(results: Results) -> Picture | None:
    """One bar a model, all of one length; None where no model's file could be looked into.

    By kind of tensor; where the names of most tensors do not tell, and there are several parts, by part.
    """
    rows = [row for row in results.rows if sum(row.sizes.values()) > 0]
    if not rows:
        return None
    untold = any(row.sizes.get("other", 0.0) > sum(row.sizes.values()) / 2 for row in rows)
    by_part = [{part: f["size"].value for part, f in row.parts.items() if "size" in f} for row in rows]
    what, sizes = ("part", by_part) if untold and all(by_part) else ("kind of tensor", [row.sizes for row in rows])
    known = KINDS if sizes is not by_part else tuple(dict.fromkeys(p for parts in by_part for p in parts))
    marks = [mark for n, row in enumerate(rows) for mark in _bar(n, row.name, sizes[n], known)]
    there = ", ".join(k for k in known if any(each.get(k) for each in sizes))
    caption = f"Share of the weights' bytes by {what}; from left to right {there}."
    return Picture("sizes", "Where the bytes are", caption, _TOP + len(rows) * _ROW, marks, [], [])


def _bar(n: int, name: str, sizes: dict[str, float], known: Sequence[str]) -> Iterator[Mark]:
    """The pieces of one model's bar, and its name above them."""
    total, x, top = sum(sizes.values()), _SIDE, _TOP + n * _ROW
    for series, kind in enumerate(known, 1):
        size = sizes.get(kind, 0.0)
        width = size / total * (WIDTH - 2 * _SIDE)
        if size > _LEAST * total:
            title = f"{name}: {kind} {number(size)} MB, {size / total:.0%}"
            label = f"{kind} {size / total:.0%}"
            yield Mark(series, x + width / 2, top, x, x + width, top, top + _BAR, label, title)
        x += width
    told = ", ".join(f"{k} {v / total:.0%}" for k, v in sizes.items() if v > _LEAST * total)
    yield Mark(0, _SIDE, top - 7, _SIDE, _SIDE, top, top, f"{name}: {number(total)} MB", told)
