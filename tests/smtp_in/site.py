"""A proxy and the platform behind it, shared by the tests of a module: a start costs more than a test."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.smtp_in.dialogue import QUEUED, Client
from tests.support.proxy_process import WAIT_SECONDS, ProxyProcess, settings
from tests.support.upstream import Upstream

MESSAGE = b"From: App <app@example.com>\r\nTo: ann@example.net\r\nSubject: hi\r\n\r\nbody\r\n.\r\n"

_ID = re.compile(r" with [A-Z0-9]+ id (\S+);")


@dataclass
class Site:
    """
    A running proxy and what is behind it.

    Attributes:
        ports: Of the listeners, in the order of the settings.
    """

    proxy: ProxyProcess
    upstream: Upstream

    @property
    def port(self) -> int:
        """The first listener's."""
        return self.proxy.port

    @property
    def ports(self) -> list[int]:
        """All listeners'."""
        return self.proxy.ports

    def client(self, index: int = 0, **how: Any) -> Client:
        """Connect to a listener."""
        return Client(self.proxy.ports[index], **how)

    def forget(self) -> None:
        """Begin a test with nothing received."""
        self.upstream.taken.clear()

    def commands(self) -> list[str]:
        """All commands the platform has heard so far, of all connections."""
        return [command for dialogue in self.upstream.dialogues for command in dialogue.commands]

    def header(self) -> bytes:
        """The header section of the only message the platform has, without our Received field."""
        content = self.content()
        return content[: content.index(b"\r\n\r\n") + 2]

    def content(self) -> bytes:
        """The only message the platform has, without our Received field."""
        (taken,) = self.upstream.taken
        content = taken.content
        if not content.startswith(b"Received: from "):
            raise AssertionError(content)
        end = content.index(b"\r\n")
        while content[end + 2 : end + 3] in (b" ", b"\t"):
            end = content.index(b"\r\n", end + 2)
        return content[end + 2 :]

    def lines(self) -> list[dict[str, Any]]:
        """The log lines of all messages the platform has, in its order; waits for those that are not written yet."""
        ids = [_ID.findall(taken.content.decode("latin-1"))[0] for taken in self.upstream.taken]
        return [self.line(id=each) for each in ids]

    def line(self, **fields: Any) -> dict[str, Any]:
        """Wait for a message's log line in which these fields stand."""
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until:
            for event in self.proxy.events("message"):
                if all(event[name] == value for name, value in fields.items()):
                    return event
            time.sleep(0.02)
        raise AssertionError(f"no line with {fields}: {self.proxy.events('message')}")

    def serves(self) -> None:
        """Require that a good client is served by the same process as ever."""
        if self.proxy.process.poll() is not None:
            raise AssertionError(self.proxy.log_file.read_text("utf-8", "replace"))
        before = len(self.upstream.taken)
        with self.client() as client:
            reply = client.data(MESSAGE)
        if reply != QUEUED or len(self.upstream.taken) != before + 1:
            raise AssertionError((reply, self.upstream.taken))


@contextmanager
def site(folder: Path, upstream: Upstream | None = None, **overrides: Any) -> Iterator[Site]:
    """Start both with their settings, and require at the end that nothing went wrong inside the proxy."""
    with upstream or Upstream() as platform:
        values = settings(platform.port, **{"data_dir": str(folder / "var"), **overrides})
        with ProxyProcess(folder, values) as proxy:
            yield Site(proxy, platform)
            errors = proxy.events("internal_error")
            if errors:
                raise AssertionError(errors)


@contextmanager
def nobody() -> Iterator[int]:
    """Give a port on which nobody listens, and keep it so."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
