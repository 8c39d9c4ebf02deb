"""The paths of the server and what happens on each."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from greenllm import switch, template
from greenllm.answer import Answer
from greenllm.embed import Embedder
from greenllm.errors import GreenError
from greenllm.generate import Model, Settings, prompt_of
from greenllm.serve import replies
from greenllm.serve.bodies import Chat, Completion, Embeddings, parse
from greenllm.serve.desk import Desk, Turn
from greenllm.serve.refused import Refused
from greenllm.talk import speed

_LARGEST = 4 << 20  # bytes of a body
_TOO_LARGE = f"The body is larger than {_LARGEST >> 20} MB."
_PATIENCE = 30  # seconds for a body to arrive


@dataclass(frozen=True)
class Served:
    """The one model: a generator or an encoder, and the name that clients call it by."""

    name: str
    model: Model | None = None
    embedder: Embedder | None = None
    since: int = field(default_factory=lambda: int(time.time()))

    @property
    def names(self) -> dict[str, str]:
        """What clients may call it, and the adapter that each means: ``NAME:ADAPTER``; "" for the model itself."""
        worn = switch.adapters_of(self.model.directory) if self.model is not None else ()
        return {self.name: ""} | {f"{self.name}:{a}": a for a in worn}

    @property
    def what(self) -> str:
        """For people."""
        if self.model is None:
            return "embeddings"
        chat = "chat and " if template.template(self.model.directory) is not None else ""
        return f"{chat}completions, context {self.model.context} tokens"

    def generator(self) -> Model:
        """For text.

        Raises:
            Refused: it gives embeddings.
        """
        if self.model is None:
            raise Refused(400, f"{self.name} gives embeddings and writes no text.", "model")
        return self.model

    def encoder(self) -> Embedder:
        """For embeddings.

        Raises:
            Refused: it writes text.
        """
        if self.embedder is None:
            raise Refused(400, f"{self.name} writes text and gives no embeddings.", "model")
        return self.embedder


def make_app(served: Served, waiting: int) -> Starlette:
    """The application for one model, with ``waiting`` places in its queue."""
    server = _Server(served, Desk(waiting))

    @contextlib.asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        yield
        server.desk.close()

    routes = [
        Route("/health", server.health),
        Route("/v1/models", server.models),
        Route("/v1/models/{name}", server.models),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/completions", server.completions, methods=["POST"]),
        Route("/v1/embeddings", server.embeddings, methods=["POST"]),
    ]
    return Starlette(
        routes=routes, lifespan=life,
        exception_handlers={Refused: _refused, ClientDisconnect: _left, HTTPException: _http, Exception: _broken},
    )  # fmt: skip


class _Server:
    def __init__(self, served: Served, desk: Desk) -> None:
        self.served, self.desk = served, desk

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "model": self.served.name})

    async def models(self, request: Request) -> Response:
        known = {"object": "model", "created": self.served.since, "owned_by": "greenllm"}
        if "name" not in request.path_params:
            return JSONResponse({"object": "list", "data": [{"id": name, **known} for name in self.served.names]})
        name = request.path_params["name"]
        self._named(name)
        return JSONResponse({"id": name, **known})

    async def chat(self, request: Request) -> Response:
        body: Chat = parse(Chat, await _read(request))
        self._named(body.model)
        model = self.served.generator()
        try:
            ids = await run_sync(prompt_of, model, [m.plain() for m in body.messages])
        except GreenError as e:  # no template, or one that takes no such messages
            raise Refused(400, e.what, "messages") from e
        return await self._answer(request, "chat", body, model, ids)

    async def completions(self, request: Request) -> Response:
        body: Completion = parse(Completion, await _read(request))
        self._named(body.model)
        model = self.served.generator()
        prompt = body.prompt if isinstance(body.prompt, str) or isinstance(body.prompt[0], int) else body.prompt[0]
        ids = await run_sync(model.tokenizer.text, prompt) if isinstance(prompt, str) else prompt
        _known(ids, model.tokenizer.inner.get_vocab_size())
        return await self._answer(request, "text", body, model, ids)

    async def embeddings(self, request: Request) -> Response:
        body: Embeddings = parse(Embeddings, await _read(request))
        self._named(body.model)
        encoder = self.served.encoder()
        for ids in body.texts:
            if not isinstance(ids, str):
                _known(ids, encoder.tokenizer.inner.get_vocab_size())
        # one by one: a text's numbers do not depend on what else was asked for
        turn = self.desk.take(lambda: (encoder.embed(text) for text in body.texts))
        try:
            found = await _unless_gone(request, turn)
        except GreenError as e:  # a text that is too long
            raise Refused(400, e.what, "input") from e
        return JSONResponse(replies.embeddings(self.served.name, found, body.encoding_format))

    async def _answer(
        self, request: Request, form: replies.Form, body: Chat | Completion, model: Model, ids: list[int]
    ) -> Response:
        settings = dataclasses.replace(body.settings, adapter=self.served.names[body.model])
        _fits(model, ids, settings)
        reply = replies.Reply(form, body.model, Answer(model, ids, settings, body.stops))
        turn = self.desk.take(lambda: _telling(reply.answer))
        if body.stream:
            return _Stream(turn, reply.pieces(turn, usage=body.stream_options.include_usage))
        try:
            await _unless_gone(request, turn)
        except GreenError as e:  # the runtime
            raise Refused(500, e.what) from e
        return JSONResponse(reply.whole())

    def _named(self, model: str) -> None:
        if model not in (names := self.served.names):
            known = ", ".join(map(repr, names))
            raise Refused(404, f"There is no model {model!r} here, but {known}.", "model", "model_not_found")


class _Stream(StreamingResponse):
    """Server-sent events; a client that goes away ends the turn, whether or not its answer has begun."""

    def __init__(self, turn: Turn, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._turn = turn

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._turn.close()


def _telling(answer: Answer) -> Iterable[str]:
    """The answer, and a line on the terminal when it ends: figures only, no word of what was said."""
    try:
        yield from answer
    finally:
        sys.stderr.write(speed(answer) + "\n")


async def _unless_gone(request: Request, turn: Turn) -> list[Any]:
    """All that a turn yields; it is ended when the client goes away.

    Raises:
        ClientDisconnect: it went away.
    """
    gone, found = asyncio.ensure_future(_gone(request)), asyncio.ensure_future(_all(turn))
    try:
        await asyncio.wait({gone, found}, return_when=asyncio.FIRST_COMPLETED)
        if found.done():
            return found.result()
        raise ClientDisconnect
    finally:
        turn.close()
        gone.cancel()
        found.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _all(turn: Turn) -> list[Any]:
    return [piece async for piece in turn]


async def _read(request: Request) -> bytes:
    """A JSON body.

    Raises:
        Refused: another type (a page on the web may send those without asking), too large, or too slow.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "The body must be JSON: Content-Type: application/json.")
    if int(request.headers.get("content-length", 0)) > _LARGEST:  # h11 has checked that it is a number
        raise Refused(413, _TOO_LARGE)
    raw = b""
    with anyio.move_on_after(_PATIENCE):
        async for part in request.stream():
            raw += part
            if len(raw) > _LARGEST:
                raise Refused(413, _TOO_LARGE)
        return raw
    raise Refused(408, f"The body did not arrive within {_PATIENCE} seconds.")


def _fits(model: Model, ids: list[int], settings: Settings) -> None:
    if not ids:
        raise Refused(400, "The prompt is empty.")
    asked = len(ids) + (settings.max_tokens or 1)
    if asked > model.context:
        raise Refused(
            400, f"The prompt's {len(ids)} tokens and {settings.max_tokens or 1} of the answer are more than the "
            f"context of {model.context}.", None, "context_length_exceeded",
        )  # fmt: skip


def _known(ids: list[int], size: int) -> None:
    if max(ids, default=0) >= size:
        raise Refused(400, f"There is no token {max(ids)}: this model has {size}.")


async def _refused(_: Request, e: Exception) -> Response:
    assert isinstance(e, Refused)  # noqa: S101 - starlette calls it for no other
    return e.response()


async def _left(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _http(_: Request, e: Exception) -> Response:
    assert isinstance(e, HTTPException)  # noqa: S101 - the same
    return Refused(e.status_code, {404: "There is nothing at this path."}.get(e.status_code, e.detail)).response()


async def _broken(_: Request, e: Exception) -> Response:
    return Refused(500, f"The server failed: {type(e).__name__}.").response()
