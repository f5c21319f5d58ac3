"""What is measured: the proxy as its users run it, the sink behind it, and the direct way between the two."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attrs import frozen

from bench import sink
from bench.certificate import Certificate

ROOT = Path(__file__).parent.parent
_START_SECONDS = 30.0
_STOP_SECONDS = 15.0
# Debian keeps postfix and its like where the PATH of a plain user does not look.
_TOOL_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class PeerError(Exception):
    """A program did not start or did not end as it should."""


@frozen
class Peer:
    """
    A server that the generator can send to.

    Args:
        pid: Its process, whose descendants count too; 0 where there is none to account for.
        taken: What its reply to a message begins with, when it did its work.
    """

    name: str
    port: int
    pid: int
    taken: bytes


class Program:
    """
    A running program with its output in a file; use it as a context manager.

    Args:
        folder: Gets the output, ``NAME.log``.
    """

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name = name
        self.log_file = folder / f"{name}.log"
        # Settings in the user's environment are for the real thing.
        environ = {key: value for key, value in os.environ.items() if not key.startswith("CMAIL_PROXY_")}
        environ["PATH"] = _TOOL_PATH
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 - programs of this project and of Postfix
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environ, cwd=ROOT
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def output(self) -> str:
        """What the program has written so far."""
        return self.log_file.read_text("utf-8", "replace")

    def require_alive(self) -> None:
        """Raise PeerError when the program has ended."""
        if self.process.poll() is not None:
            raise PeerError(f"{self.name} ended with {self.process.returncode}:\n{self.output()[-2000:]}")

    def stop(self) -> None:
        """Ask the program to end, and see to it that it does."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(_STOP_SECONDS)

    def wait_for_greeting(self, port: int) -> None:
        """Wait until something on *port* says 220."""
        until = deadline()
        while greeting(port) is None:
            self.require_alive()
            if time.monotonic() > until:
                raise PeerError(f"{self.name} does not greet on port {port}:\n{self.output()[-2000:]}")
            time.sleep(0.05)


class Sink(Program):
    """
    Our own sink; see ``sink.py``.

    Args:
        certificate: None for one without STARTTLS.
        port: 0 for any.
    """

    def __init__(
        self, folder: Path, certificate: Certificate | None, address: str = "127.0.0.1", port: int = 0
    ) -> None:
        files = [str(certificate.certificate_file), str(certificate.key_file)] if certificate else []
        super().__init__("sink", [sys.executable, "-m", "bench.sink", address, str(port), *files], folder)
        self.address = address
        until = deadline()
        while not (first := self.output().partition("\n"))[1]:
            self.require_alive()
            if time.monotonic() > until:
                raise PeerError("the sink did not start")
            time.sleep(0.02)
        self.port = int(first[0])

    @property
    def peer(self) -> Peer:
        """The direct way, as a peer."""
        return Peer("direct", self.port, 0, sink.TAKEN)

    @contextlib.contextmanager
    def counter(self) -> Iterator[Callable[[], int]]:
        """Give a function that tells how many messages the sink has taken."""
        with socket.create_connection((self.address, self.port), timeout=10) as connection:
            replies = connection.makefile("rb")
            replies.readline()

            def taken() -> int:
                connection.sendall(b"NOOP\r\n")
                return int(replies.readline().split()[2])

            yield taken


class Proxy(Program):
    """
    The proxy: ``cmail-proxy serve`` with live RCPT replies, rewriting, limits, log lines and metrics, as always.

    Args:
        name: What tables call it; also the name of its files.
        sections: Of the settings, in place of the usual ones.

    Attributes:
        port: Of its listener.
        probes_port: Of /metrics and the probes.
    """

    def __init__(self, name: str, folder: Path, sections: dict[str, Any]) -> None:
        self.file_name = "-".join(name.replace(",", "").split())
        config = folder / f"{self.file_name}.yaml"
        config.write_text(json.dumps(sections), encoding="utf-8")  # JSON is YAML
        super().__init__(self.file_name, [sys.executable, "-m", "proxy", "serve", "--config", str(config)], folder)
        self.peer_name = name
        self.port = self.probes_port = 0

    def wait(self) -> Self:
        """Wait until it is ready."""
        until = deadline()
        while not self.probes_port or not ready(self.probes_port):
            self.require_alive()
            if time.monotonic() > until:
                raise PeerError(f"the proxy is not ready:\n{self.output()[-2000:]}")
            self._read_ports()
            time.sleep(0.02)
        return self

    def _read_ports(self) -> None:
        for line in self.output().splitlines():
            if '"listening"' in line and line.endswith("}"):
                event = json.loads(line)
                self.port, self.probes_port = event["listeners"][0]["port"], event["probes"]["port"]

    def peer(self, taken: bytes = sink.TRANSLATED) -> Peer:
        """The proxy as a peer."""
        return Peer(self.peer_name, self.port, self.pid, taken)


def settings(folder: Path, upstream_port: int, certificate: Certificate, workers: int = 1) -> dict[str, Any]:
    """Give the usual settings: one listener with STARTTLS and without AUTH, and a next hop in clear."""
    return {
        "hostname": "proxy.example.com",
        "data_dir": str(folder / "var"),
        "workers": workers,
        "listeners": [{"address": "127.0.0.1", "port": 0, "tls": "starttls", "auth": "none"}],
        "tls": {
            "certificate_file": str(certificate.certificate_file),
            "key_file": str(certificate.key_file),
        },
        "relay": {"host": "127.0.0.1", "port": upstream_port, "tls": "none", "connections": 150},
        "http": {"probes": {"address": "127.0.0.1", "port": 0}},
    }


def secured(sections: dict[str, Any], certificate: Certificate) -> dict[str, Any]:
    """Change settings so that the next hop is reached by STARTTLS."""
    relay = {**sections["relay"], "tls": "required", "ca_file": str(certificate.certificate_file)}
    return {**sections, "relay": relay}


def deadline() -> float:
    """The moment when a program should have started."""
    return time.monotonic() + _START_SECONDS


def greeting(port: int) -> bytes | None:
    """Connect and give the greeting; None where nobody listens, or greets with anything but 220."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            line = connection.recv(200)
            connection.sendall(b"QUIT\r\n")
    except OSError:
        return None
    return line if line.startswith(b"220") else None


def ready(probes_port: int) -> bool:
    """Ask ``/readyz``."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{probes_port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def free_port() -> int:
    """Find a port that nobody uses at the moment, for programs that cannot choose one by themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tool(name: str) -> str | None:
    """Find a program that not every machine has."""
    return shutil.which(name, path=_TOOL_PATH)
