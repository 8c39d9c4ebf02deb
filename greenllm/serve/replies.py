"""Answers in OpenAI's form, whole and in pieces."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

import numpy as np

from greenllm.answer import Answer
from greenllm.errors import GreenError
from greenllm.serve.desk import Turn
from greenllm.serve.refused import Refused

Form = Literal["chat", "text"]
_OBJECTS = {"chat": ("chatcmpl", "chat.completion"), "text": ("cmpl", "text_completion")}


class Reply:
    """One answer to a request for text.

    Args:
        form: of chat or of completions.
        model: name that the client gave.
        answer: filled by whoever runs it.
    """

    def __init__(self, form: Form, model: str, answer: Answer) -> None:
        prefix, self._object = _OBJECTS[form]
        self._form, self._model, self.answer = form, model, answer
        self._id, self._created = f"{prefix}-{uuid.uuid4().hex}", int(time.time())

    def whole(self) -> dict[str, Any]:
        """The answer when it is ready."""
        text: dict[str, Any] = {"text": self.answer.text}
        if self._form == "chat":
            text = {"message": {"role": "assistant", "content": self.answer.text, "refusal": None}}
        return self._body([self._choice(text, self.answer.finish)]) | {"usage": self._usage()}

    async def pieces(self, turn: Turn, *, usage: bool) -> AsyncIterator[str]:
        """The answer while it comes, as server-sent events; with how many tokens, where it was asked for."""
        rest: dict[str, Any] = {"usage": None} if usage else {}
        try:
            if self._form == "chat":
                yield self._event([self._delta({"role": "assistant", "content": ""})], rest)
            async for piece in turn:
                yield self._event([self._delta({"content": piece})], rest)
            yield self._event([self._delta({}, self.answer.finish)], rest)
            if usage:
                yield self._event([], {"usage": self._usage()})
        except GreenError as e:
            yield _event(Refused(500, e.what).body())
        yield "data: [DONE]\n\n"

    def _delta(self, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        return self._choice({"delta": delta} if self._form == "chat" else {"text": delta.get("content", "")}, finish)

    def _choice(self, text: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": 0, **text, "logprobs": None, "finish_reason": finish}

    def _body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "object": self._object, "created": self._created, "model": self._model,
                "choices": choices}  # fmt: skip

    def _event(self, choices: list[dict[str, Any]], rest: dict[str, Any]) -> str:
        chunk = {"object": "chat.completion.chunk"} if self._form == "chat" else {}
        return _event(self._body(choices) | chunk | rest)

    def _usage(self) -> dict[str, Any]:
        asked, wrote = self.answer.prompt_tokens, len(self.answer.tokens)
        return {"prompt_tokens": asked, "completion_tokens": wrote, "total_tokens": asked + wrote,
                "prompt_tokens_details": {"cached_tokens": self.answer.reused}}  # fmt: skip


def embeddings(model: str, found: list[tuple[list[float], int]], encoding: str) -> dict[str, Any]:
    """Vectors with the tokens that each was made of; as numbers, or as base64 of little-endian float32."""
    tokens = sum(n for _, n in found)
    data = [
        {"object": "embedding", "index": i, "embedding": v if encoding == "float" else _base64(v)}
        for i, (v, _) in enumerate(found)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _base64(vector: list[float]) -> str:
    return base64.b64encode(np.array(vector, dtype="<f4").tobytes()).decode()


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
