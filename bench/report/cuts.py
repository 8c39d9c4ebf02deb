"""What was pruned: how important each part was, and how much of it stayed."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from greenllm.bench.report.geometry import WIDTH, Mark, Picture
from greenllm.bench.report.words import number
from greenllm.bench.results import Results

_TOP, _FOOT, _HEIGHT, _SIDE = 14.0, 180.0, 220.0, 14.0
_MOST, _LABELS = 512, 16  # bars in a picture, and names below them
_NAMES = {"": "blocks", "heads": "attention heads", "mlp": "MLP channels"}

Part = tuple[str, float, float]  # which block, importance, share that stayed


def pictures(results: Results) -> list[Picture]:
    """One a pruned model and kind of part, where there are several parts to compare."""
    found = []
    for series, row in enumerate(results.rows):
        for step in row.provenance.steps:
            by_kind: dict[str, list[Part]] = defaultdict(list)
            for part, (importance, stayed) in _parts(step.result).items():
                block, _, kind = part.partition(".")
                by_kind[kind].append((block, importance, stayed))
            found += [_picture(row.name, k, parts, series) for k, parts in by_kind.items() if 1 < len(parts) <= _MOST]
    return found


def _picture(name: str, kind: str, parts: list[Part], series: int) -> Picture:
    most = max(p[1] for p in parts) or 1.0
    width = (WIDTH - 2 * _SIDE) / len(parts)
    every = math.ceil(len(parts) / _LABELS)
    what = _NAMES.get(kind, kind)
    marks = []
    for i, (block, importance, stayed) in enumerate(parts):
        height = (_FOOT - _TOP) * max(importance, 0) / most
        left = _SIDE + i * width
        title = f"block {block}: importance {number(importance)}, {stayed:.0%} of it stayed"
        label = block if i % every == 0 else ""
        marks.append(
            Mark(series, left + width / 2, _FOOT - stayed * height, left + width * 0.12, left + width * 0.88,
                 _FOOT - height, _FOOT, label, title)
        )  # fmt: skip
    caption = f"{name}: importance of the {what} by block. Filled is what stayed, hollow what was cut."
    return Picture("cuts", f"Pruned {what}", caption, _HEIGHT, marks, [], [], "block")


def _parts(result: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """What a step says of its parts; a manifest is untrusted, so only what has the right form."""
    parts = result.get("parts")
    found = {}
    for name, pair in parts.items() if isinstance(parts, dict) else ():
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, int | float) for x in pair):  # noqa: PLR2004
            importance, stayed = map(float, pair)
            if math.isfinite(importance) and 0 <= stayed <= 1.0001:  # noqa: PLR2004 - rounding
                found[str(name)[:40]] = (importance, min(stayed, 1.0))
    return found
