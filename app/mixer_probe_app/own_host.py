"""What the server answers: requests to this machine from its own pages, on every route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

import streamlit as st

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Server = Callable[[Message, Receive, Send], Awaitable[None]]

_LOCAL = ("localhost", "127.0.0.1", "::1")
_REFUSED = (
    b"This app answers pages of this machine only: open it at http://localhost and its port.\n"
)


class OwnHost:
    """Refuses (403) requests whose Host is none of `server.allowedHosts`, by default this machine's
    names, as a name of another site that resolves to this machine has (DNS rebinding); and those
    that a page of another origin sends."""

    def __init__(self, app: Server) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Hand the request on, or refuse it."""
        if scope["type"] not in ("http", "websocket") or allowed(scope["headers"]):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [
                (b"content-type", b"text/plain"),
                (b"content-length", str(len(_REFUSED)).encode()),
            ]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSED})


def allowed(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether there is one Host and it is allowed, and no Origin but that of this server or those
    of `server.corsAllowedOrigins`."""
    hosts, origins = (
        [value.decode("latin-1").lower() for name, value in headers if name == key]
        for key in (b"host", b"origin")
    )
    if len(hosts) != 1:
        return False
    host = hosts[0]
    try:
        parts = urlsplit(f"//{host}")
        # More than a name and a port is refused.
        name = (
            parts.hostname if parts.netloc == host and "@" not in host and parts.port != 0 else None
        )
    except ValueError:
        return False
    if name not in {known.lower() for known in st.get_option("server.allowedHosts") or _LOCAL}:
        return False
    own = {f"{scheme}://{host}" for scheme in ("http", "https")}
    return own.union(st.get_option("server.corsAllowedOrigins") or ()).issuperset(origins)
