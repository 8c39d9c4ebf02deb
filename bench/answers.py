"""Free answers: greedy, until the model ends it, a text says so, or it is long enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from greenllm.bench.runners import Runner
from greenllm.bench.texts import Tokens


def write(runner: Runner, tokens: Tokens, prompt: Any, most: int, stops: Sequence[str]) -> str:
    """Let a model go on with a prompt.

    Args:
        runner: a text generator.
        tokens: its tokenizer.
        prompt: token ids, or what else it writes about.
        most: tokens of the answer at most.
        stops: texts before which the answer ends.

    Returns:
        The answer without the stop and without special tokens.
    """
    ids: list[int] = []
    for token in runner.stream(prompt, most):
        if token in tokens.ends:
            break
        ids.append(token)
        if any(stop in tokens.words(ids) for stop in stops):
            break
    return cut(tokens.words(ids), stops)


def cut(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of ``stops``."""
    return text[: min((at for s in stops if (at := text.find(s)) >= 0), default=len(text))]
