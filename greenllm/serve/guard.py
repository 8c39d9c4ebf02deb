"""Before anything is read of a request: who it is meant for, and who sends it."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from greenllm.serve.refused import Refused

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_OPEN = "/health"  # needs no key


class Guard:
    """Checks the ``Host`` and the key.

    A page on the web can have its own name resolve to 127.0.0.1 and then ask this server as if it were its own (DNS
    rebinding); the browser still sends that name as ``Host``.

    Args:
        app: what is guarded.
        key: that clients must send as ``Authorization: Bearer``; None asks for none.
        hosts: names that this server answers to, without ports; None: any.
    """

    def __init__(self, app: ASGIApp, *, key: bytes | None, hosts: Collection[str] | None) -> None:
        self._app, self._key, self._hosts = app, key, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and (refused := self._check(scope)):
            await refused.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> Refused | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if self._hosts is not None and (len(hosts) != 1 or name_of(hosts[0]) not in self._hosts):
            return Refused(421, "This server does not answer to that Host.", code="wrong_host")
        if self._key is None or scope["path"] == _OPEN:
            return None
        given = headers.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, b"Bearer " + self._key):
            return Refused(401, "The API key is missing or wrong.", code="invalid_api_key")
        return None


def name_of(host: str) -> str:
    """The name in a ``Host``: without the port, and an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
