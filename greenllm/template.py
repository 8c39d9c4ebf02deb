"""A model's chat template: Jinja from its own files, rendered as transformers does, in a sandbox."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path

from greenllm.errors import GreenError
from greenllm.tokens import read_json

_FILE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"
_WITHOUT = "Ask without it: greenllm run --raw; greenllm bench without --chat."


def template(directory: Path) -> str | None:
    """The template's text, or None; of several in one file the one called "default"."""
    if (directory / _FILE).is_file():
        return (directory / _FILE).read_text(encoding="utf-8")
    found = read_json(directory / _CONFIG).get("chat_template")
    if isinstance(found, list):
        found = next((t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def render(directory: Path, messages: Sequence[dict[str, str]]) -> str:
    """Messages (``role``, ``content``) as the model was taught to read them, up to where its answer begins.

    A last message of the assistant is the beginning of that answer.

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
    try:
        said = world.from_string(text).render(messages=asked, add_generation_prompt=True, **_specials(directory))
    except Exception as e:  # whatever someone else's template does
        raise GreenError(f"The chat template of {directory} fails: {e}.", _WITHOUT) from e
    return said + begun


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
