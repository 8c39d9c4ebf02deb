"""What a model now says otherwise than the baseline: what it forgot first, and of that the most changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from greenllm.bench.results import Flip

_MOST = 10  # that a report shows of a task
_LONGEST = 600  # characters of a text that it shows


@dataclass(frozen=True)
class Said:
    """A model's answer to an item.

    Attributes:
        asked: the item, for people.
        key: what makes two answers the same: the index of a choice, or whether it is right.
        answer: the answer, for people.
        good: whether it is right; None where neither is.
        likes: log-likelihood in nats of each choice; empty where there are none.
    """

    asked: str
    key: int
    answer: str
    good: bool | None
    likes: tuple[float, ...] = ()


def flips(before: Sequence[Said], after: Sequence[Said]) -> tuple[int, list[Flip]]:
    """How many answers differ, and those that became worse, then others; each the most changed first.

    The change is that of the log-likelihood of the new answer against the old one, in nats.
    """
    found = [_flip(b, a) for b, a in zip(before, after, strict=True) if b.key != a.key]
    found.sort(key=lambda f: (f.better is not False, -(f.nats or 0.0)))
    return len(found), found[:_MOST]


def _flip(before: Said, after: Said) -> Flip:
    old, new = before.key, after.key
    nats = None
    if before.likes and after.likes:
        nats = (after.likes[new] - after.likes[old]) - (before.likes[new] - before.likes[old])
    better = None if after.good is None or after.good == before.good else after.good
    asked, was, now = (_short(t) for t in (after.asked, before.answer, after.answer))
    return Flip(asked=asked, before=was, after=now, nats=nats, better=better)


def _short(text: str) -> str:
    """Of a long text its end, where the question is."""
    return text if len(text) <= _LONGEST else f"… {text[-_LONGEST:]}"
