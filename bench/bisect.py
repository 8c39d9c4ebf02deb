"""Where a graph departs from its source: the hidden states after each block, of both, on the same tokens.

A graph names its values as its exporter likes, fuses and reorders; so a block's output is found by value: of all values
of the right shape, one for each block, in the graph's order, such that the logarithms of all relative errors sum to the
least (dynamic programming over an alignment, as in Needleman and Wunsch, 1970, J. Mol. Biol. 48).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from greenllm.bench.process import Failed
from greenllm.bench.session import Contender, Session

_TOKENS = 24
_EXACT, _LARGE, _JUMP = 1e-3, 1e-2, 10.0
States = NDArray[np.float32]


def errors(blocks: States, values: Sequence[States]) -> dict[int, float]:
    """Relative error of each block's output.

    Args:
        blocks: [L, T, H], the source's hidden states after each block.
        values: [T, H] each, what the graph computes, in its order.

    Returns:
        By block, |value - state| / |state|; a block whose output the graph does not hold (fused away) is left out.
    """
    size = np.maximum(np.linalg.norm(blocks.reshape(len(blocks), -1), axis=1), np.finfo(np.float32).tiny)
    far = [[float(np.linalg.norm(v - b) / s) for v in values] for b, s in zip(blocks, size, strict=True)]
    apart = np.nan_to_num(np.array(far).reshape(len(blocks), len(values)), nan=np.inf)
    cost = np.minimum(np.log(np.maximum(apart, 1e-9)), 0.0)
    best = np.zeros((len(blocks) + 1, len(values) + 1))
    for i in range(1, len(blocks) + 1):
        for j in range(1, len(values) + 1):
            best[i, j] = min(best[i - 1, j], best[i, j - 1], best[i - 1, j - 1] + cost[i - 1, j - 1])
    found: dict[int, float] = {}
    i, j = len(blocks), len(values)
    while i and j:
        if best[i, j] == best[i, j - 1]:
            j -= 1
        elif best[i, j] == best[i - 1, j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            found[i] = float(apart[i, j])
    return dict(sorted(found.items()))


def departs(found: dict[int, float]) -> int | None:
    """The first block whose error is large (1 %), or ten times that before it and more than 0.1 %; None if none is."""
    before = _EXACT / _JUMP
    for block, error in found.items():
        if error > _LARGE or error > max(_EXACT, _JUMP * before):
            return block
        before = max(error, _EXACT / _JUMP)
    return None


def run(session: Session) -> None:
    """Fill in ``Row.blocks`` of every model whose engine shows its values, and say where it departs."""
    base = session.baseline
    others = [c for c in session.live if c is not base]
    session.progress.stage("block by block", len(others) + 1)
    if base is None:
        return
    states = None
    with session.watching(base, "block by block"):
        states = base.model.call("blocks", base.prompt[:_TOKENS])
    session.progress.advance()
    for who in others:
        with session.watching(who, "block by block"):
            who.row.notes.append(f"block by block: {_follow(session, who, base, states)}")
        session.progress.advance()


def _follow(session: Session, who: Contender, base: Contender, states: States | None) -> str:
    """Fill in one model's errors; returns what a reader should know. Not to show its values ends no bench."""
    if states is None or not session.comparable(who):
        return f"{base.row.name} shows no hidden states, or reads other tokens"
    try:
        values = who.model.call("values", base.prompt[:_TOKENS], states.shape[-1])
    except Failed as e:
        if not e.users:
            raise
        return str(e).splitlines()[0]
    if values is None:
        return "its engine does not show its values"
    found = errors(states, values)
    who.row.blocks = {str(i): e for i, e in found.items()}
    return _words(found, base.row.name)


def _words(found: dict[int, float], base: str) -> str:
    if not found:
        return f"none of its values is like the hidden states of {base}"
    first = departs(found)
    worst = max(found.values())
    if first is None:
        return f"it computes what {base} computes, to {worst:.1g} of the hidden states"
    before = [e for i, e in found.items() if i < first]
    until = f", {before[-1]:.1g} before it" if before else ""
    return f"it departs from {base} first in block {first} (relative error {found[first]:.2g}{until})"
