"""A proxy on route ``deliver`` that a test may kill, starve and start again, and a sink that forgets nothing."""

import asyncio
import random
import smtplib
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from proxy.spool.item import Recipient
from proxy.spool.sqlite import SqliteStore
from proxy.spool.store import History, Store
from tests.support.proxy_process import WAIT_SECONDS, ProxyProcess

T = TypeVar("T")

IMPATIENT = """
import functools
import proxy.deliver.courier as courier, proxy.deliver.queue as queue
courier.Patience = functools.partial(courier.Patience, reply_seconds=2, final_reply_seconds=2)
courier.DestinationLimits = functools.partial(courier.DestinationLimits, pause_seconds=0.05, max_pause_seconds=0.1)
queue._TROUBLE_SECONDS = 0.2
queue._AGAIN_SECONDS = 0.1
"""
"""To be run first in the proxy: waits that no setting changes become short."""


def eventually(condition: Callable[[], object], what: str = "", seconds: float = WAIT_SECONDS) -> None:
    """Wait until something is true."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.02)


class Plant:
    """
    A proxy with its folder; use it as a context manager.

    Args:
        deliver: The section of the settings.
        values: Other sections.
        first: Python code to run in the process before the program.
    """

    def __init__(self, folder: Path, deliver: dict[str, Any], first: str = "", **values: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.data = folder / "var"
        self._listener: dict[str, Any] = {"address": "127.0.0.1", "port": 0, "tls": "none", "auth": "none"}
        self._first = first
        self._values: dict[str, Any] = {
            "hostname": "proxy.example.com",
            "data_dir": str(self.data),
            "listeners": [self._listener],
            "tracking": {"opens": False, "clicks": False},
            "http": {"probes": {"address": "127.0.0.1", "port": 0}, "public": {"address": "127.0.0.1", "port": 0}},
            "deliver": deliver,
            **values,
        }
        self._starts = 0
        self._proxy: ProxyProcess | None = None

    def __enter__(self) -> "Plant":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._proxy is not None:
            self._proxy.kill()

    @property
    def port(self) -> int:
        """Where it listens, from the first start on."""
        port: int = self._listener["port"]
        return port

    @property
    def proxy(self) -> ProxyProcess:
        """The one that runs."""
        if self._proxy is None:
            raise AssertionError("it does not run")
        return self._proxy

    def start(self) -> None:
        """Start it, or start it again; each start has a log of its own."""
        self._starts += 1
        self._proxy = ProxyProcess(self.folder / f"start{self._starts}", self._values, first=self._first)
        self._listener["port"] = self._proxy.port  # which it keeps over restarts

    def send(
        self,
        *recipients: str,
        body: bytes = b"Hello\r\n",
        head: bytes = b"",
        reverse_path: str = "app@example.com",
    ) -> str:
        """Send a message that must be taken, and give its id."""
        code, text = self.try_to_send(*recipients, body=body, head=head, reverse_path=reverse_path)
        if code != 250:
            raise AssertionError(f"{code} {text}")
        return text.rpartition(" ")[2]

    def try_to_send(
        self, *recipients: str, body: bytes = b"Hello\r\n", head: bytes = b"", reverse_path: str = "app@example.com"
    ) -> tuple[int, str]:
        """Send a message, and give the reply to it."""
        with smtplib.SMTP("127.0.0.1", self.port, timeout=WAIT_SECONDS) as client:
            client.ehlo()
            client.mail(reverse_path)
            for each in recipients or ("ann@example.net",):
                client.rcpt(each)
            code, text = client.data(head + b"From: app@example.com\r\nSubject: test\r\n\r\n" + body)
            return code, text.decode()

    def store(self, work: Callable[[Store], Awaitable[T]]) -> T:
        """Do something with the store, as the command line does, while the proxy runs."""

        async def run() -> T:
            store = SqliteStore(self.data / "spool")
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(run())

    def history(self, message_id: str) -> History:
        """All that is known of a message."""
        found = self.store(lambda store: store.history(message_id))
        if found is None:
            raise AssertionError(f"{message_id} is not known")
        return found

    def recipient(self, message_id: str, number: int = 0) -> Recipient:
        """One recipient of a message."""
        return self.history(message_id).item.recipients[number]

    def kinds(self, message_id: str) -> list[str]:
        """What happened to a message, in order."""
        return [event.kind for event in self.history(message_id).events]

    def retry(self) -> None:
        """Make everything due at once."""
        self.store(lambda store: store.retry(None, time.time()))

    def pending(self) -> int:
        """How many recipients are not final."""
        return self.store(lambda store: store.depth()).pending

    def settled(self, message_id: str, *kinds: str) -> None:
        """Wait until a message has these events, and no others but for repeated deferrals."""
        eventually(lambda: [each for each in self.kinds(message_id) if each != "retried"] == list(kinds), str(kinds))


class Sink:
    """
    An SMTP server that takes everything, and notes each message at its final dot, before it answers.

    The text behind ``X-Id:`` names a message.

    Attributes:
        seen: How often the dot of each message came.
    """

    def __init__(self, slowest: float = 0.02) -> None:
        self.seen: Counter[str] = Counter()
        self.lock = threading.Lock()
        self._slowest = slowest
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def names(self) -> set[str]:
        """The messages seen so far."""
        with self.lock:
            return set(self.seen)

    def close(self) -> None:
        """Take no more connections; those that are open end with their clients."""
        socket.socket.shutdown(self._listener, socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, client.makefile("rb") as lines:
                client.sendall(b"220 sink.example ESMTP\r\n")
                for line in lines:
                    verb = line[:4].upper().strip()
                    if verb == b"EHLO":
                        client.sendall(b"250-sink.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
                    elif verb == b"DATA":
                        client.sendall(b"354 go ahead\r\n")
                        self._take(lines)
                        client.sendall(b"250 2.0.0 taken\r\n")
                    else:
                        client.sendall(b"250 2.0.0 ok\r\n")
        except OSError:
            return

    def _take(self, lines: Any) -> None:
        name = ""
        for line in lines:
            if line == b".\r\n":
                with self.lock:
                    self.seen[name] += 1
                time.sleep(random.random() * self._slowest)  # noqa: S311
                return
            if not name and line.startswith(b"X-Id: "):
                name = line[6:].decode().strip()
        raise OSError("no dot")


class Load:
    """
    Clients that send messages, each with a name of its own, until they are told to stop.

    Args:
        seen: How many have arrived: no more than *most_ahead* are sent before that.
    """

    def __init__(self, port: int, clients: int, seen: Callable[[], int] | None = None, most_ahead: int = 400) -> None:
        self.told: set[str] = set()
        self._port = port
        self._seen = seen
        self._most_ahead = most_ahead
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(clients)]
        for each in self._threads:
            each.start()

    def stop(self) -> None:
        """Stop, and wait for the last one."""
        self._stopped.set()
        for each in self._threads:
            each.join(WAIT_SECONDS)

    def _run(self, number: int) -> None:
        count = 0
        while not self._stopped.is_set():
            try:
                with smtplib.SMTP("127.0.0.1", self._port, timeout=WAIT_SECONDS) as client:
                    client.ehlo()
                    while not self._stopped.is_set():
                        count += 1
                        self._send(client, f"c{number}-{count}")
            except (OSError, smtplib.SMTPException):
                time.sleep(0.05)  # it was killed, and is not back yet

    def _send(self, client: smtplib.SMTP, name: str) -> None:
        while self._seen and len(self.told) - self._seen() > self._most_ahead and not self._stopped.is_set():
            time.sleep(0.01)
        body = b"line of a body\r\n" * (20_000 if random.random() < 0.03 else 20)  # noqa: S311
        client.mail("app@example.com")
        client.rcpt("ann@example.net")
        code, _ = client.data(f"X-Id: {name}\r\nSubject: {name}\r\n\r\n".encode() + body)
        if code == 250:
            with self._lock:
                self.told.add(name)
        time.sleep(random.random() * 0.02)  # noqa: S311


def unsettled(data: Path, scratch: Path) -> set[str]:
    """Name the messages whose delivery a killed proxy had not written, by their subject; reads a copy of its files."""
    scratch.mkdir(parents=True)
    for each in ("spool.db", "spool.db-wal"):
        if (data / "spool" / each).exists():
            (scratch / each).write_bytes((data / "spool" / each).read_bytes())
    connection = sqlite3.connect(scratch / "spool.db")
    rows = connection.execute(
        "SELECT m.subject FROM message m JOIN recipient r ON r.message_id = m.id WHERE r.state = 'pending'"
    ).fetchall()
    connection.close()
    return {subject for (subject,) in rows}
