"""
The public port: ``/o/TOKEN`` answers with a beacon, ``/c/TOKEN`` leads to the link's target, all else is nothing.

Imported late by who starts it, as the probes are: the HTTP library takes a fifth of a second, in which mail can be
taken already.

An answer depends on the token alone, so a link works while the store is away. Only GET counts: link checkers send
HEAD, and a browser that fetches ahead says so. Nothing of a request is kept, logged or sent back, its IP address
least of all; answers to what is no request of ours have no body.

Trust: anybody who can connect. A redirect goes only where a token of ours says; see ``proxy.compose.tokens``.
Source: RFC 9110 (GET, HEAD, 302), RFC 9111, 5.2.2.5 (no-store), Referrer Policy (W3C).
"""

import asyncio
import logging
import re
import socket
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from aiohttp import web

from proxy.compose.tokens import MAX_TOKEN_CHARACTERS, Clicked, Opened, TokenKeys
from proxy.listening import bind

IDLE_SECONDS = 15.0
"""How long a connection may take for a request, the first or the next."""

LIFE_SECONDS = 120.0
"""How long a connection may last: one that does not read its answers, say. From half of it on, answers are the last."""

MAX_CONNECTIONS = 500
MAX_REQUEST_OCTETS = 32768
"""Of one request, body included; a few that come together count as one."""

BEACON = (
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\x00\x00\x00"  # 1 x 1, two colours
    b"!\xf9\x04\x01\x00\x00\x00\x00"  # the first is transparent
    b",\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
)

_MAX_LINE_OCTETS = MAX_TOKEN_CHARACTERS + 1200  # links collect parameters on their way
_MAX_FIELD_OCTETS = 8190
_MAX_FIELDS = 64

_PATH = re.compile(rf"/([oc])/([A-Za-z0-9_-]{{1,{MAX_TOKEN_CHARACTERS}}})(?:\?.*)?", re.DOTALL)
_FIELDS = {
    "Server": "cmail-proxy",  # not the library and its version
    "Cache-Control": "no-store, private",
    "Pragma": "no-cache",  # proxies of HTTP/1.0, which mail programs of offices sit behind
    "Expires": "0",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex, nofollow",
}

_log = logging.getLogger(__name__)


class Hits(Protocol):
    """
    Where opens and clicks are recorded.

    Called in the event loop, so it has to return at once; what it raises is logged and costs nobody an answer.
    """

    def opened(self, message_id: str, recipient: int, at: datetime) -> None:
        """Take note of a beacon that was fetched."""

    def clicked(self, message_id: str, recipient: int, target: str, at: datetime) -> None:
        """Take note of a link that was followed."""


class PublicPages:
    """
    A small HTTP server.

    Args:
        port: 0 for any free one.
        keys: Those that tokens were signed with.
        hits: Is told of each open and click.
        clock: Tells the time; aware, UTC.
        idle_seconds: See ``IDLE_SECONDS``; *life_seconds* and *connections* likewise.

    Attributes:
        port: The port it listens on, once started.
        keys: Those in force; others may be put in their place.
    """

    def __init__(
        self,
        address: str,
        port: int,
        keys: TokenKeys,
        hits: Hits,
        clock: Callable[[], datetime],
        *,
        idle_seconds: float = IDLE_SECONDS,
        life_seconds: float = LIFE_SECONDS,
        connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.port = port
        self.life_seconds = life_seconds
        self.connections = connections
        self._address = address
        self.keys = keys
        self._hits = hits
        self._clock = clock
        self._idle_seconds = idle_seconds
        self._recording = True
        self._http: _Server | None = None
        self._listening: asyncio.Server | None = None

    async def start(self, listener: socket.socket | None = None) -> None:
        """
        Listen.

        Args:
            listener: A socket that is bound already; None to bind one.

        Raises:
            proxy.listening.BindError: The address cannot be had.
        """
        listener = listener or bind(self._address, self.port)
        self._http = _Server(self, self._idle_seconds)
        self.port = listener.getsockname()[1]
        self._listening = await asyncio.get_running_loop().create_server(self._http, sock=listener)

    async def stop(self) -> None:
        """Stop listening, and let answers under way finish."""
        if self._listening is not None:
            self._listening.close()
        if self._http is not None:
            self._http.pre_shutdown()
            await self._http.shutdown(2)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        response = self._answer(request)
        protocol = request.protocol
        if isinstance(protocol, _Connection):
            protocol.octets = 0
            if protocol.old or request.method not in ("GET", "HEAD"):  # of any other, the body is not waited for
                response.force_close()
        return response

    def _answer(self, request: web.BaseRequest) -> web.Response:
        asked = _PATH.fullmatch(request.raw_path)
        if asked is None or request.method not in ("GET", "HEAD"):
            return _response(404)
        found = self.keys.read(asked[2])
        if asked[1] == "o" and isinstance(found, Opened):
            response = _response(200, BEACON)
            response.content_type = "image/gif"
        elif asked[1] == "c" and isinstance(found, Clicked):
            response = _response(302)
            response.headers["Location"] = found.location
        else:
            return _response(404)
        # RFC 9110, 9.2.1: HEAD is safe. Sec-Purpose is in Fetch; before it, browsers had two names of their own.
        ahead = [request.headers.get(name, "") for name in ("Sec-Purpose", "Purpose", "X-Moz")]
        if request.method == "GET" and not any("prefetch" in each.lower() for each in ahead):
            self._record(found)
        return response

    def _record(self, found: Opened | Clicked) -> None:
        try:
            if isinstance(found, Clicked):
                self._hits.clicked(found.message_id, found.recipient, found.target, self._clock())
            else:
                self._hits.opened(found.message_id, found.recipient, self._clock())
        except Exception:
            if self._recording:  # a store that is away for an hour must not fill the log
                _log.exception("opens and clicks cannot be recorded; their links still work")
            self._recording = False
        else:
            self._recording = True


class _Server(web.Server):
    """aiohttp's server, with connections of ours."""

    def __init__(self, pages: PublicPages, idle_seconds: float) -> None:
        super().__init__(pages.answer)
        self.pages = pages
        self._idle_seconds = idle_seconds

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._idle_seconds)


class _Connection(web.RequestHandler):
    """A connection with an end, a size, and errors that tell nothing."""

    __slots__ = ("_end", "_pages", "octets", "old")

    def __init__(self, server: _Server, idle_seconds: float) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # how aiohttp's own documentation switches it off
            logger=_log,
            keepalive_timeout=idle_seconds,
            lingering_time=1.0,
            max_line_size=_MAX_LINE_OCTETS,
            max_field_size=_MAX_FIELD_OCTETS,
            max_headers=_MAX_FIELDS,
        )
        self._pages = server.pages
        self._end: asyncio.TimerHandle | None = None
        self.octets = 0
        self.old = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._end = asyncio.get_running_loop().call_later(self._pages.life_seconds / 2, self._age)
        if self._manager is not None and len(self._manager.connections) > self._pages.connections:
            self._abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.octets += len(data)
        if self.octets > MAX_REQUEST_OCTETS:
            self._abort()
        else:
            super().data_received(data)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP, or what we failed at; aiohttp's own would log the address and reflect the request."""
        if status >= 500:
            _log.error("a public page failed: %r", exc)
        response = _response(status)
        response.force_close()
        return response

    def _age(self) -> None:
        self.old = True
        self._end = asyncio.get_running_loop().call_later(self._pages.life_seconds / 2, self._abort)

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def _response(status: int, body: bytes = b"") -> web.Response:
    return web.Response(status=status, body=body, headers=_FIELDS)
