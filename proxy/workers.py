"""``workers`` above 1: the parent that only watches, and what each worker runs."""

import os
import sys
from pathlib import Path
from typing import IO

from proxy import app
from proxy.inbound.tls import Certificates
from proxy.inbound.tokens import TokenStore
from proxy.record.log import Log
from proxy.rulebook import RuleBook
from proxy.settings import TOKENS_FILE, Settings
from proxy.supervisor import Crew, WorkerChannel, WorkerPlace, supervise


async def serve(settings: Settings, log: Log, config: Path | None) -> int:
    """
    Run the workers until SIGTERM or SIGINT, and give the exit code.

    Args:
        config: The settings file, for the workers to read themselves.

    Raises:
        ProblemsError: Rule files, certificates or the token store are wrong; nothing was started.
        BindError: A port cannot be had; nothing was started.
    """
    # What would keep every worker from starting is found once, here, and ends the program at once.
    rules = RuleBook(settings)
    Certificates(settings.tls, settings.data_dir, settings.hostname)
    TokenStore(settings.data_dir / TOKENS_FILE)
    for _, taken in app.bind_all(settings):
        taken.close()
    hold: IO[bytes] | None = None
    if settings.delivers:
        from proxy.deliver.keys import Keys
        from proxy.deliver_parts import recover

        Keys(settings)
        hold = await recover(settings, log)
    app.tell_warnings(log, settings, rules.engine)
    app.raise_descriptor_limit(settings, log)  # workers inherit it
    probes, public, shutdown = settings.http.probes, settings.http.public, settings.shutdown
    crew = Crew(
        workers=settings.workers,
        command=[sys.executable, "-m", "proxy", "worker", *(["--config", str(config)] if config else [])],
        environment=os.environ,
        listeners=[(listener.address, listener.port) for listener in settings.listeners],
        pages=[(public.address, public.port)] if settings.delivers else [],
        probes=(probes.address, probes.port),
        stop_seconds=shutdown.delay_seconds + shutdown.drain_seconds,
        onward=settings.onward,
    )
    code = await supervise(crew, log)
    if hold:
        hold.close()
    log.finish()
    return code


async def work(settings: Settings, log: Log, place: WorkerPlace) -> int:
    """Serve as a worker until SIGTERM, or until the parent is gone, and give the exit code."""
    sockets = place.sockets()
    public = sockets.pop() if settings.delivers else None
    parts = app.App(settings, log, list(zip(settings.listeners, sockets, strict=True)), public)
    stopping = app.stop_event()
    channel = WorkerChannel(place.control, parts.health, parts.metrics.snapshot, stopping.set)
    await channel.start()
    await parts.start()
    app.settle_memory()
    log.info("worker_ready", worker=place.number, pid=os.getpid())
    await stopping.wait()
    await parts.stop()
    await channel.stop()
    log.finish()
    return 0
