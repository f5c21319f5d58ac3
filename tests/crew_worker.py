"""
A worker as small as can be, for the tests of the supervisor: to each connection it says its number and process id.

What else it does comes as words in ``CREW_WORKER``: ``die`` exits with code 3 at once, ``die:2`` does so only in worker
2, and a path while there is such a file (it stands for a broken rule file); ``deaf`` ignores SIGTERM, ``mute`` never
answers its parent, ``sick`` is not ready. Lines a connection sends are counted, and the line ``crash``
ends the process without a word.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from proxy.record.metrics import Metrics
from proxy.supervisor import WorkerChannel, WorkerPlace
from proxy.web.health import Health


def dies_at_start(words: list[str], number: int) -> bool:
    """Tell whether this worker is to exit at once."""
    return any(word in ("die", f"die:{number}") or (word[0] == "/" and Path(word).exists()) for word in words)


async def main() -> int:
    """Serve until told to stop."""
    words = os.environ.get("CREW_WORKER", "").split()
    place = WorkerPlace.take(os.environ)
    if place is None or "CMAIL_PROXY_WORKER" in os.environ:
        return 2
    if dies_at_start(words, place.number):
        return 3
    metrics = Metrics("1.2.3", ["test"])
    health = Health()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, (lambda: None) if "deaf" in words else stop.set)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        metrics.session_opened("test")
        writer.write(f"{place.number} {os.getpid()}\n".encode())
        while line := await reader.readline():
            if line == b"crash\n":
                os._exit(9)
            metrics.message_received("test")
            writer.write(b"counted\n")
        metrics.session_closed("test")
        writer.close()

    servers = [await asyncio.start_server(serve, sock=each) for each in place.sockets()]
    if "sick" in words:
        health.reasons["upstream"] = "no connection"
    health.started = True
    channel = WorkerChannel(place.control, health, metrics.snapshot, stop.set)
    if "mute" not in words:
        await channel.start()
    await stop.wait()
    for server in servers:
        server.close()
    await channel.stop()
    return 0


sys.exit(asyncio.run(main()))
