"""What both halves of the demo do: start programs, send, wait."""

import json
import os
import smtplib
import subprocess
import time
from pathlib import Path
from typing import IO, Any

from proxy.demo.messages import Sample

START_SECONDS = 30.0
TOKEN = "demo-token"  # noqa: S105 - of a listener on loopback that lives as long as the demo


class DemoError(Exception):
    """The demo cannot go on; the text says what happened."""


def start(
    started: list[subprocess.Popen[str]],
    command: list[str],
    output: IO[str] | int = subprocess.PIPE,
    errors: IO[str] | int | None = None,
) -> subprocess.Popen[str]:
    """Start a program of ours; it is added to those that are ended with the demo."""
    process = subprocess.Popen(  # noqa: S603 - this program's own modules
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        text=True,
        env=environment(),
        start_new_session=True,  # Ctrl-C is for the demo, which ends them in order
    )
    started.append(process)
    return process


def environment() -> dict[str, str]:
    """The demo's settings are its own: what the user has in the environment is for the real thing."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CMAIL_PROXY_")}


def listening(proxy: subprocess.Popen[str], log: Path) -> Any:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        for event in events(log, "listening"):
            return event
        if proxy.poll() is not None:
            raise DemoError(f"the proxy did not start:\n{log.read_text('utf-8')}")
        time.sleep(0.05)
    raise DemoError(f"the proxy was not ready within {START_SECONDS:g} s:\n{log.read_text('utf-8')}")


def events(log: Path, name: str) -> list[Any]:
    """Read the log's lines for an event; the last may be half written, and warnings on settings are no JSON."""
    whole = log.read_text("utf-8").rpartition("\n")[0]
    events = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
    return [event for event in events if event["event"] == name]


def send(port: int, sample: Sample) -> None:
    """Send a sample as its app would."""
    with smtplib.SMTP("127.0.0.1", port, local_hostname="app.example.com", timeout=30) as client:
        client.login(TOKEN, TOKEN)
        client.send_message(sample.message())
