"""The few samples: drawn from a task's file, dealt into folds, and cut into tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor

from greenllm.bench.tasks import read
from greenllm.bench.tasks.choice import Request, requests
from greenllm.bench.tasks.items import Item, Question, Utterance
from greenllm.bench.texts import Tokens
from greenllm.errors import GreenError


@dataclass(frozen=True)
class Choice:
    """One choice of a shot: which text it follows from, where in it, and its tokens."""

    text: int
    start: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Heard:
    """A clip as a transcriber takes it in; which of ``languages`` it hears becomes token ``at`` of what it writes."""

    features: Mapping[str, Tensor]
    languages: tuple[int, ...]
    at: int


@dataclass(frozen=True)
class Shot:
    """A sample in tokens: the texts that a model reads, and the choices that it is to tell apart.

    The last token of a choice is never read, so choices of one token share one text. A free answer is the only choice,
    with the token that ends it, and so is what is said in a clip.
    """

    texts: tuple[tuple[int, ...], ...]
    choices: tuple[Choice, ...]
    label: int
    heard: Heard | None = field(default=None, compare=False)


def draw(path: Path, shots: int, seed: int) -> list[Any]:
    """``shots`` items of each class, or so many free answers or clips, in an order that the seed decides.

    Raises:
        GreenError: see :func:`greenllm.bench.tasks.read`; or its rows have nothing to learn from, other numbers of
            choices, one class, or fewer samples (of a class) than ``shots``.
    """
    draw = Random(seed)  # noqa: S311 - no secret
    found = []
    for label, own in _classes(path).items():
        if len(own) < shots:
            which, each = (f" labelled {label!r}", " of each label") if label else ("", "")
            raise GreenError(
                f"{path} has {len(own)} samples{which}; {shots}{each} are asked for.",
                "Add samples, or take fewer --shots.",
            )
        found += draw.sample(own, shots)
    draw.shuffle(found)
    return found


def _classes(path: Path) -> Mapping[str, list[Any]]:
    """Items by label; free answers, clips and questions with choices of their own are of one class without a name."""
    items = read(path).items
    if isinstance(items[0], Question | Utterance):
        return {"": list(items)}
    asked = [i for i in items if isinstance(i, Item)]
    if len({len(i.choices) for i in asked}) != 1:
        raise GreenError(
            f"{path}: its rows have no choices, or not as many in each.",
            "Rows of text and label, of context, choices and label, of prompt and answer, or of audio and text.",
        )
    if len({i.choices for i in asked}) > 1:
        return {"": list(asked)}
    names = asked[0].choices
    if len({i.label for i in asked}) == 1:
        raise GreenError(f"{path}: every sample has the label {names[asked[0].label]!r}.", "Two classes are needed.")
    return {name: [i for i in asked if i.label == label] for label, name in enumerate(names)}


def deal(labels: Sequence[int], folds: int) -> list[list[int]]:
    """Indices of the samples of each fold, every class spread evenly over them, none larger by two than another."""
    found: list[list[int]] = [[] for _ in range(folds)]
    for n, index in enumerate(sorted(range(len(labels)), key=lambda i: labels[i])):
        found[n % folds].append(index)
    return found


def encode(items: Sequence[Any], directory: Path, before: int = 0) -> list[Shot]:
    """Items in a model's tokens, asked as the bench asks them; so many tokens come ``before`` them.

    Raises:
        GreenError: these are no texts, labels that are the same tokens or none of the model's, or a text that is longer
            than it reads.
    """
    if not all(isinstance(i, Item | Question) for i in items):
        raise GreenError(f"{directory} reads texts; these samples are clips.", "Adapt a transcriber by them.")
    tokens = Tokens(directory)
    return [_encode(item, tokens, tokens.context - before) for item in items]


def _encode(item: Item | Question, tokens: Tokens, most: int) -> Shot:
    texts: dict[tuple[int, ...], int] = {}
    choices = []
    unknown = tokens.inner.token_to_id(getattr(tokens.inner.model, "unk_token", None) or "")
    for whole, start in requests(item, tokens) if isinstance(item, Item) else [_answer(item, tokens)]:
        if start < 1:
            raise GreenError(f"Nothing is left of {item.context[:60]!r} to follow.", "Give it a longer context.")
        if len(whole) > most:
            raise GreenError(
                f"A sample has {len(whole)} tokens, the model reads {most}: {item.context[:60]!r} …",
                "Shorten it.",
            )
        if unknown in whole[start:]:
            raise GreenError(f"A label or answer to {item.context[:60]!r} … is no token of this model.", "Take others.")
        text = tuple(whole[:-1])
        choices.append(Choice(texts.setdefault(text, len(texts)), start, tuple(whole[start:])))
    if len(set(choices)) < len(choices):
        raise GreenError(
            f"Labels after {item.context[:60]!r} … are the same tokens to this model.", "Take other label words."
        )
    return Shot(tuple(texts), tuple(choices), item.label if isinstance(item, Item) else 0)


def _answer(item: Question, tokens: Tokens) -> Request:
    """The first of its right answers, and what ends it, so that this is learned too."""
    said = Item(item.context, item.answers[:1], 0)
    ((whole, start),) = requests(said, tokens)
    return [*whole, *(sorted(tokens.ends)[:1] or tokens.plain("\n"))], start
