"""The kinds of disturbance by name: what each takes, how strong it is tried, and what it makes of an item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from greenllm.bench.tasks.items import Entry, Item, Picture, Question, Utterance
from greenllm.bench.tasks.robust import noise, prompts
from greenllm.bench.tasks.robust.texts import TEXTS, disturbed

_TEXT = (5.0, 10.0, 20.0)


@dataclass(frozen=True)
class Kind:
    """One way to disturb items.

    Attributes:
        name: as the user gives it.
        words: for people.
        takes: kinds of items, no subclasses: those are judged otherwise.
        strengths: that are tried, in percent; of prompts, numbers of wordings.
        copy: of an item at a strength; None where there is nothing that can be changed. Answers stay as they are.
        label: of a strength, for people.
        graded: whether more is stronger.
    """

    name: str
    words: str
    takes: tuple[type, ...]
    strengths: tuple[float, ...]
    copy: Callable[[Entry, float], Entry | None]
    label: Callable[[float], str] = "{:g} %".format
    graded: bool = True

    @property
    def weights(self) -> Callable[[tuple[float, ...]], list[float]]:
        """See :func:`trapezoids`; of what has no strength the mean."""
        return trapezoids if self.graded else lambda strengths: [0.0] + [1 / len(strengths)] * len(strengths)


def trapezoids(strengths: tuple[float, ...]) -> list[float]:
    """Weights of the values at 0 and at ``strengths`` (rising) whose sum is the mean height of the curve."""
    at = (0.0, *strengths)
    steps = [b - a for a, b in zip(at, strengths, strict=False)]
    return [(left + right) / 2 / at[-1] for left, right in zip([0.0, *steps], [*steps, 0.0], strict=True)]


def own_parts(item: Item | Question) -> tuple[str, ...]:
    """Pieces of an item's context, of which the odd ones are the row's own and the others greenllm's."""
    return item.parts or ("", item.context, "")


def _with_text(name: str, item: Entry, percent: float) -> Entry | None:
    if not isinstance(item, Item | Question) or not any(TEXTS[name].places(t) for t in own_parts(item)[1::2]):
        return None
    parts = tuple(disturbed(t, name, percent) if i % 2 else t for i, t in enumerate(own_parts(item)))
    return replace(item, context="".join(parts), parts=parts)


def _with_prompt(item: Entry, number: float) -> Entry | None:
    if not isinstance(item, Item | Question):
        return None
    context = prompts.reworded(own_parts(item), int(number)) if number else item.context
    return None if context is None else replace(item, context=context, parts=())


def _with_noise(item: Entry, percent: float) -> Entry | None:
    return replace(item, noise=percent) if isinstance(item, Picture | Utterance) else None


def _of_text(name: str, words: str) -> Kind:
    return Kind(name, words, (Item, Question), _TEXT, partial(_with_text, name))


KINDS = (
    _of_text("typos", "typing errors"),
    _of_text("casing", "letters of the other case"),
    _of_text("spaces", "spaces lost and added"),
    _of_text("homoglyphs", "letters that look alike"),
    _of_text("width", "full and half width"),
    Kind(
        "prompts", "other prompts", (Item, Question), tuple(map(float, range(1, prompts.COUNT + 1))), _with_prompt,
        "wording {:g}".format, graded=False,
    ),
    Kind("noise", "noise", (Picture,), noise.IMAGE, _with_noise),
    Kind("noise", "noise", (Utterance,), noise.CLIP, _with_noise, noise.label),
)  # fmt: skip
NAMES = tuple(dict.fromkeys(k.name for k in KINDS))
