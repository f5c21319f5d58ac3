"""
The composition root: builds the parts of one process, and owns the order of start and stop.

Start: settings → rules, certificates, credentials → pool and route → listeners → probes. Stop: say so (readiness),
wait for load balancers, accept nobody, let messages in flight finish, close the pool.
"""

import asyncio
import base64
import contextlib
import gc
import itertools
import os
import resource
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from time import monotonic, time
from typing import IO, Any

from proxy import __version__, rulebook
from proxy.inbound.auth import Credentials
from proxy.inbound.listeners import Listeners
from proxy.inbound.service import ListenerPolicy, MessageLimits, Service
from proxy.inbound.tls import Certificates
from proxy.inbound.tokens import TokenStore
from proxy.listening import BindError, bind, place
from proxy.parts import Parts, share
from proxy.problems import ProblemsError
from proxy.record.log import Log
from proxy.record.metrics import Metrics
from proxy.relay_parts import RelayParts
from proxy.rulebook import RuleBook
from proxy.settings import TOKENS_FILE, Listener, Settings
from proxy.translate.engine import Engine
from proxy.web.health import Health

_WATCH_SECONDS = 1.0
_SPARE_DESCRIPTORS = 64
_LAST_SECONDS = 2.0


class App:
    """
    The parts of one process, and their life.

    Args:
        sockets: Listening sockets, each with its settings.
        public: That of the public pages, where a parent bound it.

    Raises:
        ProblemsError: Rule files, certificates or the token store are wrong.
    """

    def __init__(
        self,
        settings: Settings,
        log: Log,
        sockets: Sequence[tuple[Listener, socket.socket]],
        public: socket.socket | None = None,
    ) -> None:
        self.settings = settings
        self.log = log
        self.health = Health()
        self._rules = RuleBook(settings)
        self._sockets = [(listener_policy(listener, sock), sock) for listener, sock in sockets]
        providers = [file.provider for file in self._rules.engine.files]
        self.metrics = Metrics(__version__, [policy.name for policy, _ in self._sockets], providers)
        self._certificates = Certificates(settings.tls, settings.data_dir, settings.hostname)
        self._tokens = TokenStore(settings.data_dir / TOKENS_FILE)
        own = base64.b32encode(os.urandom(5)).decode("ascii").lower()
        new_message_id = _message_ids(own)
        self._parts: Parts
        if settings.delivers:
            from proxy.deliver_parts import DeliverParts  # and all that it imports, which route relay has no use for

            self._parts = DeliverParts(settings, log, self.metrics, new_message_id, public)
        else:
            self._parts = RelayParts(settings, log, self.metrics, self.health)
        self._service = Service(
            hostname=settings.hostname,
            engine=self._rules.engine,
            route=self._parts.route,
            credentials=Credentials(settings.tokens, settings.logins, self._tokens),
            certificates=self._certificates,
            limits=_limits(settings),
            connections=share(settings.limits.connections, settings),
            log=log,
            metrics=self.metrics,
            new_id=_session_ids(own),
            new_message_id=new_message_id,
        )
        self._listeners = Listeners(self._service)
        self._settings_file = _Stamp(settings.source.file)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def engine(self) -> Engine:
        """The rules in force."""
        return self._rules.engine

    @property
    def public_port(self) -> int:
        """The port of the public pages, once started; 0 on a route without any."""
        return self._parts.public_port

    async def start(self) -> None:
        """Take mail from now on."""
        self.metrics.rules_reload(True, self._rules.count)
        self.metrics.certificate_reload(True, self._not_after())
        await self._parts.start()
        await self._listeners.start(self._sockets)
        self._tasks = [asyncio.get_running_loop().create_task(self._watch_files())]
        self.health.started = True

    async def stop(self) -> None:
        """Stop in the order that loses nothing."""
        self.health.stopping = True
        shutdown = self.settings.shutdown
        self.log.info("stopping", delay_seconds=shutdown.delay_seconds, drain_seconds=shutdown.drain_seconds)
        until = monotonic() + shutdown.delay_seconds + shutdown.drain_seconds
        await self._listeners.stop(shutdown.delay_seconds, shutdown.drain_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Clients and attempts share the time; if clients took all of it, attempts still get a moment behind the dot.
        await self._parts.stop(max(until - monotonic(), min(shutdown.drain_seconds, _LAST_SECONDS)))
        self.log.info("stopped")

    # Background work

    async def _watch_files(self) -> None:
        """Take changed rule files, certificates and tokens into force; what is broken changes nothing."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                await self._parts.tick()
                self._look_at_files()
            except Exception as error:  # a volume that went away, say: whatever it is, the watch goes on
                self.metrics.internal_error("background")
                self.log.error("internal_error", task="watch_files", exc=error)

    def _look_at_files(self) -> None:
        if self._settings_file.changed():
            self.log.warning("settings_changed", file=self.settings.source.file, hint="restart to take it into force")
        try:
            if self._rules.reload():
                self._service.engine = self._rules.engine
                self.metrics.rules_reload(True, self._rules.count)
                self.log.info("rules_reloaded", rules=self._rules.count)
        except ProblemsError as error:
            self.metrics.rules_reload(False, self._rules.count)
            self._tell("rules_reload_failed", error)
        try:
            if self._certificates.reload():
                self.metrics.certificate_reload(True, self._not_after())
                self.log.info("certificate_reloaded")
        except ProblemsError as error:
            self.metrics.certificate_reload(False, self._not_after())
            self._tell("certificate_reload_failed", error)
        try:
            if self._tokens.reload():
                self.metrics.tokens_reload(True)
                self.log.info("tokens_reloaded")
        except ProblemsError as error:
            self.metrics.tokens_reload(False)
            self._tell("tokens_reload_failed", error)

    def _not_after(self) -> float:
        not_after = self._certificates.not_after
        return not_after.timestamp() if not_after is not None else 0.0

    def _tell(self, event: str, error: ProblemsError) -> None:
        for problem in error.problems:
            self.log.error(event, problem=str(problem))


class _Stamp:
    """The state of a file, to see that it changed; only to say so, so its content need not be read."""

    def __init__(self, file: str) -> None:
        self._file = Path(file) if file else None
        self._seen = self._look()

    def changed(self) -> bool:
        """Whether it changed since this was last asked."""
        before, self._seen = self._seen, self._look()
        return self._seen is not None and before != self._seen

    def _look(self) -> tuple[int, int, int] | None:
        try:
            stat = self._file.stat() if self._file else None
        except OSError:
            stat = None
        return stat and (stat.st_ino, stat.st_mtime_ns, stat.st_size)


def listener_policy(listener: Listener, sock: socket.socket) -> ListenerPolicy:
    """Describe a listener as sessions want it; its name has the port it really got."""
    return ListenerPolicy(
        name=place(listener.address, sock.getsockname()[1]),
        tls=listener.tls,
        auth=listener.auth,
        auth_without_tls=listener.auth_without_tls,
        allow_networks=listener.allow_networks,
        provider=listener.provider or "",
    )


def _limits(settings: Settings) -> MessageLimits:
    limits = settings.limits
    return MessageLimits(
        recipients=limits.recipients,
        refuse_excess=limits.excess == "refuse_message",
        hops=limits.hops,
        message_octets=limits.message_octets,
        header_octets=limits.header_octets,
        header_fields=limits.header_fields,
        idle_seconds=limits.idle_seconds,
        refuse_bare_newline=settings.smtp.bare_newline == "refuse",
    )


def _session_ids(own: str) -> Callable[[], str]:
    """Make session ids: unlike those of any other process, and short enough to read out."""
    counter = itertools.count(1)
    return lambda: f"{own}{next(counter):x}"


def _message_ids(own: str) -> Callable[[], str]:
    """
    Make queue ids: unlike those of any other process, and each behind all earlier ones in order of the alphabet, so
    that a store writes at one end of its indices and not all over them.
    """
    last = 0

    def new() -> str:
        nonlocal last
        last = max(last + 1, int(time() * 1000))
        return f"{last:011x}{own}"

    return new


def raise_descriptor_limit(settings: Settings, log: Log) -> None:
    """Make room for the connections that the settings allow (their soft limit is often 1,024)."""
    needed = settings.limits.connections + settings.relay.connections + len(settings.listeners) + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < needed:
        log.warning("descriptor_limit", needed=needed, hard_limit=hard, hint="raise it, or lower limits.connections")


def settle_memory() -> None:
    """Take what was built at start out of the garbage collector's rounds: it lives as long as the process."""
    gc.collect()
    gc.freeze()


def bind_all(settings: Settings) -> list[tuple[Listener, socket.socket]]:
    """Bind every listener; raises BindError that names all that cannot be had."""
    bound: list[tuple[Listener, socket.socket]] = []
    problems: list[str] = []
    for index, listener in enumerate(settings.listeners):
        try:
            bound.append((listener, bind(listener.address, listener.port)))
        except BindError as error:
            problems.append(f"listeners[{index}].port: {error}")
    probes, public = settings.http.probes, settings.http.public
    pages = [("http.probes", probes.address, probes.port)]
    if settings.delivers:
        pages.append(("http.public", public.address, public.port))
    for key, address, port in pages:
        try:
            bind(address, port).close()  # taken only later, but worth knowing before mail is
        except BindError as error:
            problems.append(f"{key}.port: {error}")
    if problems:
        raise BindError("\n".join(problems))
    return bound


async def serve(settings: Settings, log: Log, first: Callable[[], None] | None = None) -> int:
    """
    Serve in this process until SIGTERM or SIGINT, and give the exit code.

    Args:
        first: Called once the ports and the store are ours, before mail is taken.
    """
    from proxy.web.probes import Probes  # its HTTP library is not needed before mail can be taken

    raise_descriptor_limit(settings, log)
    sockets = bind_all(settings)
    hold: IO[bytes] | None = None
    if settings.delivers:
        from proxy.deliver_parts import recover

        hold = await recover(settings, log)
    if first is not None:
        first()
    app = App(settings, log, sockets)
    stopping = stop_event()
    await app.start()
    settle_memory()

    async def render() -> bytes:
        return app.metrics.render()

    where = settings.http.probes
    probes = Probes(where.address, where.port, app.health, render)
    await probes.start()
    ports = [sock.getsockname()[1] for _, sock in sockets]
    tell_listening(log, settings, ports, probes.port, app.public_port)
    tell_warnings(log, settings, app.engine)
    await stopping.wait()
    await app.stop()
    await probes.stop()
    if hold:
        hold.close()
    log.finish()
    return 0


def tell_listening(log: Log, settings: Settings, ports: list[int], probes_port: int, public_port: int) -> None:
    """Log where mail is taken and where it goes; a *public_port* of 0 is none."""
    log.info(
        "listening",
        listeners=[
            {"address": listener.address, "port": port, "tls": listener.tls, "auth": listener.auth}
            for listener, port in zip(settings.listeners, ports, strict=True)
        ],
        probes={"address": settings.http.probes.address, "port": probes_port},
        public={"address": settings.http.public.address, "port": public_port} if public_port else None,
        onward=settings.onward,
        workers=settings.workers,
    )


def tell_warnings(log: Log, settings: Settings, engine: Engine) -> None:
    """Log what ``check`` would warn of in the rules: not everybody runs it."""
    for text in rulebook.warnings(settings, engine):
        log.warning("settings_warning", text=text)


def stop_event() -> asyncio.Event:
    """Give an event that SIGTERM and SIGINT set; SIGHUP is for others, since files are watched anyway."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event


def run(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a coroutine function on the fastest loop there is (uvloop halves the CPU of a relayed message)."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):  # platforms without uvloop
        from uvloop import new_event_loop as loop_factory

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(main())
