"""Route ``relay`` put together: the pool of connections to the platform, and who watches it."""

import asyncio
import ssl

from proxy.outbound.client import NextHop, UpstreamError
from proxy.outbound.pool import Pool
from proxy.outbound.relay import RelayRoute
from proxy.parts import share
from proxy.record.log import Log
from proxy.record.metrics import Metrics
from proxy.settings import Relay, Settings
from proxy.web.health import Health

_PROBE_SECONDS = 15.0
_READINESS_PROBE_SECONDS = 5.0  # no slower than kubelet asks by habit (every 10 s)
UPSTREAM = "upstream"


class RelayParts:
    """The pool, the route through it, and the watch over the platform."""

    def __init__(self, settings: Settings, log: Log, metrics: Metrics, health: Health) -> None:
        self.settings = settings
        self.log = log
        self.metrics = metrics
        self.health = health
        relay = settings.relay
        hop = next_hop(relay, settings.hostname)
        self._pool = Pool(
            hop,
            share(relay.connections, settings),
            relay.wait_seconds,
            relay.idle_seconds,
            relay.pause_seconds,
            _Watcher(self),
        )
        self.route = RelayRoute(hop, self._pool, metrics.upstream_reply)
        self._task: asyncio.Task[None] | None = None

    @property
    def public_port(self) -> int:
        return 0

    async def start(self) -> None:
        """Reach out to the platform."""
        if self.settings.relay.required_for_readiness:
            self.health.reasons[UPSTREAM] = "the next hop was not reached yet"
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def tick(self) -> None:
        """Close what was at rest for too long."""
        self._pool.tidy()

    async def stop(self, _seconds: float) -> None:
        """Close the pool."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._pool.close()

    async def _watch(self) -> None:
        """Reach out at start, and again while the last attempt failed; readiness depends on it only if so set."""
        required = self.settings.relay.required_for_readiness
        first = True
        while True:
            try:
                if first or required or self._pool.last_error is not None:
                    await self._reach_out()
                first = False
            except Exception as error:  # a bug: it is told, and the watch goes on
                self.metrics.internal_error("background")
                self.log.error("internal_error", task="watch_upstream", exc=error)
            await asyncio.sleep(_READINESS_PROBE_SECONDS if required else _PROBE_SECONDS)

    async def _reach_out(self) -> None:
        error = await self._pool.probe()
        if error is None:
            self.health.reasons.pop(UPSTREAM, None)
        elif self.settings.relay.required_for_readiness:
            self.health.reasons[UPSTREAM] = f"the next hop cannot be reached: {error}"


class _Watcher:
    """Passes what the pool tells on to metrics and log."""

    def __init__(self, parts: RelayParts) -> None:
        self._parts = parts

    def connection_opened(self, seconds: float) -> None:
        self._parts.health.reasons.pop(UPSTREAM, None)
        self._parts.metrics.connection_opened(seconds)
        self._parts.log.debug("upstream_connected", seconds=round(seconds, 6))

    def connection_failed(self, error: UpstreamError) -> None:
        self._parts.metrics.connection_failed(error)
        self._tell(error)

    def connection_lost(self, error: UpstreamError) -> None:
        self._parts.metrics.connection_lost(error)
        self._tell(error)

    def _tell(self, error: UpstreamError) -> None:
        relay = self._parts.settings.relay
        self._parts.log.error(
            "upstream_failed", relay=f"{relay.host}:{relay.port}", stage=error.stage, reason=error.reason
        )

    def pool_changed(self, busy: int, idle: int) -> None:
        self._parts.metrics.pool_changed(busy, idle)


def next_hop(relay: Relay, hostname: str) -> NextHop:
    """Describe the platform as the client wants it."""
    context: ssl.SSLContext | None = None
    if relay.tls in ("required", "implicit"):
        context = ssl.create_default_context(cafile=str(relay.ca_file) if relay.ca_file else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    elif relay.tls == "opportunistic":
        # Whoever could forge the certificate could as well hide STARTTLS; this keeps out those who only listen.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return NextHop(
        host=relay.host or "",
        port=relay.port,
        tls=relay.tls,
        context=context,
        helo_name=hostname,
        username=relay.username or "",
        password=relay.password.reveal() if relay.password else "",
        connect_seconds=relay.connect_seconds,
        reply_seconds=relay.reply_seconds,
        final_reply_seconds=relay.final_reply_seconds,
    )
