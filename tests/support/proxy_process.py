"""The proxy as its users run it: ``cmail-proxy serve`` in a process of its own, with a settings file."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

TOKEN = "test-token-0123456789abcdef"
WAIT_SECONDS = 20.0


def settings(upstream_port: int, **overrides: Any) -> dict[str, Any]:
    """
    Give settings for a test: one listener on loopback without AUTH, any free ports, relay to *upstream_port* in clear.

    Args:
        overrides: Whole sections, e.g. ``listeners=[…]``; for ``relay`` and ``limits`` single keys are merged in.
    """
    base: dict[str, Any] = {
        "hostname": "proxy.example.com",
        "listeners": [{"address": "127.0.0.1", "port": 0, "tls": "starttls", "auth": "none"}],
        "relay": {"host": "127.0.0.1", "port": upstream_port, "tls": "none", "connect_seconds": 5, "pause_seconds": 0},
        "http": {"probes": {"address": "127.0.0.1", "port": 0}},
    }
    for name, value in overrides.items():
        base[name] = {**base.get(name, {}), **value} if name in ("relay", "limits") else value
    return base


class ProxyProcess:
    """
    A running proxy; use it as a context manager.

    Args:
        first: Python code to run in the process before the program, for limits that no setting changes.

    Attributes:
        port: Of the first listener; ``ports`` has all of them.
        probes_port: Of /metrics and the probes.
    """

    def __init__(
        self, folder: Path, values: dict[str, Any], environ: dict[str, str] | None = None, first: str = ""
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.config = folder / "settings.yaml"
        self.config.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
        self.log_file = folder / "proxy.log"
        program = ["-c", f"{first}\nfrom proxy.cli import main\nmain()"] if first else ["-m", "proxy"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CMAIL_PROXY_")}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, "serve", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**clean, **(environ or {})},
            )
        try:
            listening = self.event("listening")
        except BaseException:
            self.kill()
            raise
        self.ports: list[int] = [each["port"] for each in listening["listeners"]]
        self.port = self.ports[0]
        self.probes_port: int = listening["probes"]["port"]

    def __enter__(self) -> "ProxyProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """All log lines so far (with that event name), in order."""
        lines = []
        for line in self.log_file.read_text("utf-8", "replace").splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue  # a warning on standard error, or a line that is just being written
            if name is None or value.get("event") == name:
                lines.append(value)
        return lines

    def event(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait for the *count*-th log line with this event name, and give it."""
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until:
            found = self.events(name)
            if len(found) >= count:
                return found[count - 1]
            if self.process.poll() is not None:
                raise AssertionError(f"the proxy ended:\n{self.log_file.read_text('utf-8', 'replace')}")
            time.sleep(0.02)
        raise AssertionError(f"no {name!r} in the log:\n{self.log_file.read_text('utf-8', 'replace')}")

    def get(self, path: str) -> tuple[int, str]:
        """Fetch a page of the probes port: status and body."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.probes_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all series of that metric which have these labels; 0 where there is none."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            series, _, value = line.rpartition(" ")
            if (series == name or series.startswith(name + "{")) and all(
                f'{key}="{each}"' in series for key, each in labels.items()
            ):
                total += float(value)
        return total

    def wait_for_metric(self, name: str, value: float, **labels: str) -> None:
        """Wait until :meth:`metric` gives this value."""
        until = time.monotonic() + WAIT_SECONDS
        while (found := self.metric(name, **labels)) != value:
            if time.monotonic() > until:
                raise AssertionError(f"{name} {labels} is {found}, not {value}")
            time.sleep(0.01)

    def resident_octets(self, *, peak: bool = False) -> int:
        """Memory that the process holds now, or held at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        key = "VmHWM:" if peak else "VmRSS:"
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key)) * 1024

    def connect(self, index: int = 0) -> socket.socket:
        """Open a bare connection to a listener."""
        return socket.create_connection(("127.0.0.1", self.ports[index]), timeout=WAIT_SECONDS)

    def stop(self) -> int:
        """Ask the proxy to end, and give its exit code; kills it when it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError("the proxy did not end on SIGTERM") from None
        return self.process.returncode

    def kill(self) -> None:
        """End the proxy at once."""
        self.process.kill()
        self.process.wait(10)
