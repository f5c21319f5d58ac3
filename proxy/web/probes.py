"""
The probes: ``/metrics`` for Prometheus, ``/livez``, ``/readyz`` and ``/startupz`` for kubelet.

Trust: anybody who can connect; nothing is read from a request but its method and path.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from proxy.listening import bind
from proxy.record.exposition import CONTENT_TYPE
from proxy.web.health import Health

if TYPE_CHECKING:
    from aiohttp import web

IDLE_SECONDS = 15.0
_MAX_LINE_OCTETS = 1024
_MAX_FIELD_OCTETS = 2048
_MAX_FIELDS = 32
_TEXT = "text/plain; charset=utf-8"


class Probes:
    """
    A small HTTP server.

    Args:
        port: 0 for any free one.
        render: Gives the metrics as text.
        idle_seconds: A connection without a request for so long is closed.

    Attributes:
        port: The port it listens on, once started.
    """

    def __init__(
        self,
        address: str,
        port: int,
        health: Health,
        render: Callable[[], Awaitable[bytes]],
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.port = port
        self._address = address
        self._health = health
        self._render = render
        self._idle_seconds = idle_seconds
        self._http: web.Server | None = None
        self._listening: asyncio.Server | None = None

    async def start(self) -> None:
        """
        Listen.

        Raises:
            proxy.listening.BindError: The address cannot be had.
        """
        listener = bind(self._address, self.port)
        from aiohttp import web  # takes a fifth of a second, in which SMTP is served already

        self._http = web.Server(
            self._answer,
            access_log=None,
            logger=_logger(),
            keepalive_timeout=self._idle_seconds,
            lingering_time=1.0,
            max_line_size=_MAX_LINE_OCTETS,
            max_field_size=_MAX_FIELD_OCTETS,
            max_headers=_MAX_FIELDS,
        )
        self.port = listener.getsockname()[1]
        self._listening = await asyncio.get_running_loop().create_server(self._http, sock=listener)

    async def stop(self) -> None:
        """Stop listening, and let answers under way finish."""
        if self._listening is not None:
            self._listening.close()
        if self._http is not None:
            self._http.pre_shutdown()
            await self._http.shutdown(2)

    async def _answer(self, request: "web.BaseRequest") -> "web.StreamResponse":
        if request.path not in ("/metrics", "/livez", "/readyz", "/startupz"):
            return _text(404, "not found; there are /metrics, /livez, /readyz and /startupz")
        if request.method not in ("GET", "HEAD"):
            response = _text(405, "only GET and HEAD are allowed")
            response.headers["Allow"] = "GET, HEAD"
            return response
        if request.path == "/metrics":
            return _response(200, await self._render(), CONTENT_TYPE)
        if request.path == "/readyz":
            return _verdict("ready", self._health.obstacles())
        if request.path == "/startupz":
            return _verdict("started", [] if self._health.started else ["not started yet"])
        return _verdict("live", [])  # who can say so is alive: the event loop turns


def _logger() -> logging.Logger:
    """Make a logger for errors of ours; requests that are no HTTP are none, and anybody could fill a log with them."""
    from aiohttp.http_exceptions import HttpProcessingError

    logger = logging.Logger(__name__)
    logger.parent = logging.getLogger()
    logger.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))
    return logger


def _verdict(good: str, obstacles: list[str]) -> "web.Response":
    return _text(503, "\n".join(obstacles)) if obstacles else _text(200, good)


def _text(status: int, text: str) -> "web.Response":
    return _response(status, f"{text}\n".encode(), _TEXT)


def _response(status: int, body: bytes, content_type: str) -> "web.Response":
    from aiohttp import web

    # Answers say how things are at this moment.
    return web.Response(status=status, body=body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})
