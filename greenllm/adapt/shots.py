"""The few samples: drawn from a task's file, dealt into folds, and cut into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from greenllm.bench.tasks import read
from greenllm.bench.tasks.choice import requests
from greenllm.bench.tasks.items import Item
from greenllm.bench.texts import Tokens
from greenllm.errors import GreenError


@dataclass(frozen=True)
class Choice:
    """One choice of a shot: which text it follows from, where in it, and its tokens."""

    text: int
    start: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Shot:
    """A sample in tokens: the texts that a model reads, and the choices that it is to tell apart.

    The last token of a choice is never read, so choices of one token share one text.
    """

    texts: tuple[tuple[int, ...], ...]
    choices: tuple[Choice, ...]
    label: int


def draw(path: Path, shots: int, seed: int) -> list[Item]:
    """``shots`` items of each class, in an order that the seed decides.

    Raises:
        GreenError: see :func:`greenllm.bench.tasks.read`; or this is no classification, has one class, or fewer
            samples of a class than ``shots``.
    """
    items = [i for i in read(path).items if isinstance(i, Item)]
    if not items or len({i.choices for i in items}) > 1:
        raise GreenError(
            f"{path} is no classification: its rows have no choices, or not the same ones.",
            "Rows of text and label, or of context, choices and label with the same choices in each.",
        )
    names = items[0].choices
    if len({i.label for i in items}) == 1:
        raise GreenError(f"{path}: every sample has the label {names[items[0].label]!r}.", "Two classes are needed.")
    draw = Random(seed)  # noqa: S311 - no secret
    found = []
    for label, name in enumerate(names):
        own = [i for i in items if i.label == label]
        if len(own) < shots:
            raise GreenError(
                f"{path} has {len(own)} samples labelled {name!r}; {shots} of each label are asked for.",
                "Add samples, or take fewer --shots.",
            )
        found += draw.sample(own, shots)
    draw.shuffle(found)
    return found


def deal(labels: Sequence[int], folds: int) -> list[list[int]]:
    """Indices of the samples of each fold, every class spread evenly over them."""
    seen: dict[int, int] = {}
    found: list[list[int]] = [[] for _ in range(folds)]
    for index, label in enumerate(labels):
        n = seen[label] = seen.get(label, -1) + 1
        found[n % folds].append(index)
    return found


def encode(items: Sequence[Item], directory: Path, before: int = 0) -> list[Shot]:
    """Items in a model's tokens, asked as the bench asks them; so many tokens come ``before`` them.

    Raises:
        GreenError: labels that are the same tokens, or a text that is longer than the model reads.
    """
    tokens = Tokens(directory)
    return [_encode(item, tokens, tokens.context - before) for item in items]


def _encode(item: Item, tokens: Tokens, most: int) -> Shot:
    texts: dict[tuple[int, ...], int] = {}
    choices = []
    for whole, start in requests(item, tokens):
        if start < 1:
            raise GreenError(f"Nothing is left of {item.context[:60]!r} to follow.", "Give it a longer context.")
        if len(whole) > most:
            raise GreenError(
                f"A sample has {len(whole)} tokens, the model reads {most}: {item.context[:60]!r} …",
                "Shorten it.",
            )
        text = tuple(whole[:-1])
        choices.append(Choice(texts.setdefault(text, len(texts)), start, tuple(whole[start:])))
    if len(set(choices)) < len(choices):
        raise GreenError(f"Labels of {item.choices} are the same tokens to this model.", "Take other label words.")
    return Shot(tuple(texts), tuple(choices), item.label)
