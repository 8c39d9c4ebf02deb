"""Several queries at once: what a batch reads and answers in all, by how many queries are in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from greenllm import images
from greenllm.bench.latency import Query, Rounds
from greenllm.bench.measurement import Measurement
from greenllm.bench.process import Failed
from greenllm.bench.session import Contender, Effort, Session
from greenllm.errors import GreenError

_ROUNDS = 3


def check(sizes: Sequence[int]) -> list[int]:
    """Sizes in order, each once.

    Raises:
        GreenError: one is no number of queries.
    """
    if any(n < 1 for n in sizes):
        raise GreenError(f"There is no batch of {min(sizes)}.", "Give 1 or more.")
    return sorted(set(sizes))


def run(session: Session, answer: int, effort: Effort, sizes: Sequence[int]) -> None:
    """Fill in ``Row.batches``; the models take turns at each size, smallest first. One that cannot has no figures."""
    session.progress.stage("batches", len(sizes) * _ROUNDS)
    for size in sizes:
        rounds: dict[int, list[list[Query]]] = {id(who): [] for who in session.live}
        for _ in range(_ROUNDS):
            for who in list(session.live):
                with session.watching(who, f"batch of {size}"):
                    if str(size) not in who.row.batches:
                        rounds[id(who)] += _ask(who, size, answer, effort.turn)
            session.progress.advance()
        for who in session.live:
            if found := rounds[id(who)]:
                who.row.batches[str(size)] = _figures(Rounds(size * len(who.prompt), found, who.rounds.kind), size)


def _ask(who: Contender, size: int, answer: int, seconds: float) -> list[list[Query]]:
    """One round; none, and the reason told, where the model cannot."""
    prompts: Any = (
        images.pictures(size, who.info.image)
        if who.info.image
        else [
            who.prompt[i:] + who.prompt[:i]
            for i in (n % len(who.prompt) for n in range(size))  # none are padded
        ]
    )
    try:
        return [who.model.call("batch", prompts, answer, seconds)]
    except Failed as e:
        if not e.users:
            raise
        who.row.batches[str(size)] = {}
        who.row.notes.append(f"batch of {size}: {str(e).splitlines()[0]}")
        return []


def _figures(rounds: Rounds, size: int) -> dict[str, Measurement]:
    """Tokens (or texts, or images) a second of all queries together; the median time of a batch, for an encoder."""
    found = rounds.measurements()
    if "decode" in found:
        decode = found["decode"].scaled(size, "tokens/s")
        return {"prefill": found["prefill"], "decode": decode, "first_token": found["first_token"]}
    return {"encode": found["encode"].scaled(size, f"{rounds.kind}s/s"), "batch_p50": found[f"{rounds.kind}_p50"]}
