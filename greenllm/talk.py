"""A model on the terminal: one answer, or a conversation."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from greenllm import audio, template, vlm
from greenllm.answer import Answer
from greenllm.describe import Describer
from greenllm.errors import GreenError, Interrupted
from greenllm.generate import Model, OnnxModel, Settings, prompt_of
from greenllm.transcribe import Transcriber, Writer

Message = dict[str, str]
_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer."


def first(model: Model, text: str, *, system: str | None, raw: bool, image: Path | None = None) -> list[int]:
    """The tokens of one question, about an image where there is one.

    Raises:
        GreenError: a system prompt for a model that cannot take one, a template that fails, or a bad image.
    """
    plain = raw or template.template(model.directory) is None
    if plain and system:
        why = "--raw leaves it out" if raw else "this model has none"
        raise GreenError(f"A system prompt needs a chat template, and {why}.", "Leave out --system.")
    if plain and not raw:
        _note("This model has no chat template: it goes on with the prompt as it is.")
    if vlm.sees(model.directory):
        said = vlm.question(model.tokenizer, text, seen=image is not None, system=system, raw=plain)
        return cast("OnnxModel", model).see(image, said) if image else vlm.read(model.tokenizer, said, None, 0)
    if plain:
        return model.tokenizer.text(text)
    return prompt_of(model, [*_told(system), {"role": "user", "content": text}])


def say(model: Model, ids: list[int], settings: Settings) -> Answer:
    """Write an answer on standard output while it comes, and its speed on standard error.

    Ctrl-C ends it; its ``finish`` is None then.
    """
    answer = _show(Answer(model, ids, settings))
    _note(speed(answer))
    return answer


def transcribe(model: Transcriber, clip: NDArray[np.float32], most: int | None) -> Answer:
    """The same of what is said in a clip, float32 [samples], in ``most`` tokens at most."""
    return _write(model, clip, most, f"{len(clip) / audio.RATE:.1f} s heard")


def describe(model: Describer, image: Path, most: int | None) -> Answer:
    """The same of what an image file shows.

    Raises:
        GreenError: see :meth:`greenllm.describe.Describer.seen`.
    """
    return _write(model, model.seen(image), most, "Seen and written about")


def _write(model: Writer, prompt: Any, most: int | None, what: str) -> Answer:
    answer = _show(Answer(model, cast("list[int]", prompt), Settings(most)))
    took = answer.reading + answer.writing
    ends = {None: "; interrupted.", "length": "; cut there.", "stop": "."}[answer.finish]
    _note(f"{what} in {took:.2f} s, {len(answer.tokens)} tokens written{ends}")
    return answer


def _show(answer: Answer) -> Answer:
    with contextlib.suppress(Interrupted):
        for piece in answer:
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    return answer


def speed(answer: Answer) -> str:
    """Tokens read and written, and how many of them a second."""
    read, wrote = answer.prompt_tokens - answer.reused, len(answer.tokens)
    cached = f" ({answer.reused} more were known)" if answer.reused else ""
    said = f"{read} tokens read{_rate(read, answer.reading)}{cached}, {wrote} written"
    # the first comes of reading the prompt
    said += _rate(wrote - 1, answer.writing)
    return said + ("; interrupted." if answer.finish is None else ".")


def _rate(tokens: int, seconds: float) -> str:
    return f" at {tokens / seconds:.0f}/s" if tokens > 0 and seconds > 0 else ""


def talk(model: Model, settings: Settings, system: str | None) -> None:
    """Ask for lines and answer them until the input ends.

    Raises:
        GreenError: the model has no chat template.
    """
    if template.template(model.directory) is None:
        raise GreenError(
            f"{model.directory} has no chat template: it goes on with a text, it does not talk.",
            f'Give it one: greenllm run {model.directory} "Once upon a time".',
        )
    _note(_HELP)
    messages = _told(system)
    while (line := _line()) is not None:
        if line == "/exit":
            break
        if line == "/reset":
            messages = _told(system)
            _note("Forgotten.")
        elif line.startswith("/"):
            _note(_HELP)
        elif line:
            messages = _turn(model, settings, [*messages, {"role": "user", "content": line}])


def _turn(model: Model, settings: Settings, messages: list[Message]) -> list[Message]:
    """Answer the last message; the conversation with it and the answer, or without both where there is none."""
    try:
        ids = prompt_of(model, messages)
        free = model.context - len(ids)
        if free < 1:
            _note(f"The conversation has {len(ids)} tokens, this model's context {model.context}: /reset starts anew.")
            return messages[:-1]
        answer = say(model, ids, replace(settings, max_tokens=min(free, settings.max_tokens or free)))
    except GreenError as e:
        _note(str(e))
        return messages[:-1]
    if answer.finish == "length":
        full = len(answer.tokens) == free
        _note(f"The context of {model.context} tokens is full: /reset starts anew." if full else "Cut: --max-tokens.")
    return [*messages, {"role": "assistant", "content": answer.text}]


def _line() -> str | None:
    """What the user types, or the next line of a pipe; None at its end."""
    person = sys.stdin.isatty()
    if person:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() edits lines with it
    while True:
        try:
            return input("> " if person else "").strip()
        except EOFError:
            if person:
                sys.stdout.write("\n")
            return None
        except Interrupted:
            _note(f"\n{_HELP}")


def _told(system: str | None) -> list[Message]:
    return [{"role": "system", "content": system}] if system else []


def _note(text: str) -> None:
    sys.stderr.write(text + "\n")
