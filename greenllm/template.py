"""A model's chat template: Jinja from its own files, rendered as transformers does, in a sandbox."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from greenllm.errors import GreenError
from greenllm.tokens import read_json

_FILE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"
_OLD_FILE = "chat_template.json"  # of a processor, for images and texts
_TYPE = "'type':"  # of a list that was written as it is
_WITHOUT = "Ask without it: greenllm run --raw; greenllm bench without --chat."


def template(directory: Path) -> str | None:
    """The template's text, or None; of several in one file the one called "default"."""
    if (directory / _FILE).is_file():
        return (directory / _FILE).read_text(encoding="utf-8")
    own = read_json(directory / _OLD_FILE).get("chat_template")
    found = read_json(directory / _CONFIG).get("chat_template") if own is None else own
    if isinstance(found, list):
        found = next((t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def render(directory: Path, messages: Sequence[dict[str, str]], image: str = "") -> str:
    """Messages (``role``, ``content``) as the model was taught to read them, up to where its answer begins.

    A last message of the assistant is the beginning of that answer. Some templates of models that see take a list of
    parts where others take a text: of both the first one is given with which the template says what it is told.

    Args:
        directory: of the model.
        messages: what is said.
        image: the mark of an image in them; "" where the model reads text alone.

    Raises:
        GreenError: there is no template, or it fails.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    text = template(directory)
    if text is None:
        raise GreenError(f"{directory} has no chat template.", _WITHOUT)
    begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    asked = [*messages][: len(messages) - bool(begun)]
    world = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    world.filters["tojson"] = lambda x, **how: json.dumps(x, ensure_ascii=False, **how)
    world.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: dt.datetime.now().strftime(form)}  # noqa: DTZ005 - as transformers
    ways: list[list[dict[str, Any]]] = [asked, [m | {"content": _parts(m["content"], image)} for m in asked]]
    said, failed = [], []
    for way in reversed(ways) if image else ways:
        try:
            found = world.from_string(text).render(messages=way, add_generation_prompt=True, **_specials(directory))
        except Exception as e:  # noqa: BLE001 - whatever someone else's template does
            failed.append(e)
            continue
        if all(t.strip() in found for m in asked[-1:] for t in _texts(m["content"], image)) and _TYPE not in found:
            return found + begun
        said.append(found)
    if not said:
        raise GreenError(f"The chat template of {directory} fails: {failed[0]}.", _WITHOUT) from failed[0]
    return said[0] + begun


def _parts(content: str, image: str) -> list[dict[str, str]]:
    """A message as a list of texts and images."""
    told = [{"type": "text", "text": t.strip("\n")} for t in _texts(content, image)]
    mixed = [p for t in told for p in ({"type": "image"}, t)][1:]
    return [p for p in mixed if p.get("text", image)]


def _texts(content: str, image: str) -> list[str]:
    """What a message says before, between and after its images."""
    return content.split(image) if image else [content]


def ask(directory: Path, prompt: str) -> str:
    """A question of the user."""
    return render(directory, [{"role": "user", "content": prompt}])


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _specials(directory: Path) -> dict[str, str]:
    """``bos_token`` and its like, which templates may write."""
    found = {k: v.get("content") if isinstance(v, dict) else v for k, v in read_json(directory / _CONFIG).items()}
    return {k: v for k, v in found.items() if k.endswith("_token") and isinstance(v, str)}
