"""What a client is told when it gets no answer, in OpenAI's form."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

_KINDS = {401: "authentication_error", 500: "server_error", 503: "server_error"}


class Refused(Exception):  # noqa: N818 - most of them are no errors of ours
    """An answer that is none.

    Args:
        status: of HTTP.
        message: what is wrong, for people.
        param: the field that is wrong.
        code: for programs.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """As JSON."""
        kind = _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """As HTTP."""
        extra = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(self.status)
        return JSONResponse(self.body(), self.status, headers=extra)
