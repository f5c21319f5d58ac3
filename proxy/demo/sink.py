"""
The platform's stand-in: a stock aiosmtpd server in a process of its own that keeps what it receives.

Run as ``python -m proxy.demo.sink FOLDER``; prints its port, and writes each message to ``FOLDER/NN.eml``.
"""

import asyncio
import signal
import sys
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session

MAX_OCTETS = 26_214_400


class Keeper:
    """Handler of aiosmtpd: writes messages to files, byte for byte."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        """Keep the message under the next number."""
        self._count += 1
        part = self._folder / f"{self._count:02d}.part"
        part.write_bytes(envelope.original_content or b"")
        part.rename(part.with_suffix(".eml"))
        return f"250 2.0.0 kept as {self._count:02d}.eml"


async def _serve(folder: Path) -> None:
    loop = asyncio.get_running_loop()
    keeper = Keeper(folder)
    server = await loop.create_server(
        lambda: SMTP(keeper, hostname="platform.example", data_size_limit=MAX_OCTETS, loop=loop), "127.0.0.1", 0
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
