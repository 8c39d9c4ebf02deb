"""What clients may send: what is not here is refused by name, and nothing is left unread."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from greenllm.generate import Settings
from greenllm.serve.refused import Refused

_STOPS = 4  # at most, as in OpenAI's API
# Fields of OpenAI's that ask for nothing when they have these values, and for what is not here when they do not.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},),
    "logprobs": (False,), "top_logprobs": (0,), "tools": ([],), "tool_choice": ("none", "auto"), "echo": (False,),
    "response_format": ({"type": "text"},), "store": (False,), "metadata": ({},), "suffix": ("",),
    "parallel_tool_calls": (True, False), "service_tier": ("auto", "default"),
}  # fmt: skip

_KINDS = {"str", "int"}  # how pydantic names the ways to read a field

Id = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    user: str | None = None  # a label for the operator's logs; there are none

    @model_validator(mode="before")
    @classmethod
    def _ask_for_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {k: v for k, v in data.items() if v is not None and v not in _NOTHING.get(k, ())}


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Written(_Body):
    """What chat and completions share."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=_STOPS)] = Field(default_factory=list)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()

    @property
    def stops(self) -> list[str]:
        """Strings that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def most(self) -> int | None:
        """Tokens of the answer at most."""
        raise NotImplementedError

    @property
    def settings(self) -> Settings:
        """How tokens are chosen."""
        return Settings(self.most, self.temperature, self.top_p, self.seed)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[_Part], Field(min_length=1)]

    def plain(self) -> dict[str, str]:
        """As chat templates read it."""
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class Chat(_Written):
    """POST /v1/chat/completions."""

    messages: Annotated[list[_Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def most(self) -> int | None:
        """See :class:`_Written`."""
        return self.max_completion_tokens or self.max_tokens


class Completion(_Written):
    """POST /v1/completions."""

    prompt: Text | Annotated[list[Id], Field(min_length=1)] | Annotated[list[Text], Field(min_length=1, max_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] = 16

    @property
    def most(self) -> int | None:
        """See :class:`_Written`."""
        return self.max_tokens


class Embeddings(_Body):
    """POST /v1/embeddings."""

    input: Text | Annotated[list[Text] | list[Id] | list[list[Id]], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"

    @property
    def texts(self) -> list[str | list[int]]:
        """Each text, or its tokens."""
        if isinstance(self.input, str):
            return [self.input]
        return [self.input] if isinstance(self.input[0], int) else self.input  # type: ignore[return-value]


def parse(kind: type[_Body], raw: bytes) -> Any:
    """A body, checked.

    Raises:
        Refused: not JSON, or a field that is missing, wrong or not supported.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as e:
        wrong = max(e.errors(), key=lambda x: len(x["loc"]))  # of several ways to read a field, the nearest one
        where = ".".join(str(x) for x in wrong["loc"] if isinstance(x, int) or (x.isidentifier() and x not in _KINDS))
        if wrong["type"] == "extra_forbidden":
            raise Refused(400, f"{where} is not supported here.", where, "unsupported_parameter") from e
        raise Refused(400, f"{where or 'The body'}: {wrong['msg']}.", where or None) from e
