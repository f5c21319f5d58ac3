"""
The demo's run: start sink and proxy, send, compare, tell where to look next.

The proxy is this program's own ``serve`` in a process of its own, with a settings file as a user would write it; what
is shown as "after" is what the sink's process received.
"""

import json
import os
import signal
import smtplib
import subprocess
import sys
import tempfile
import textwrap
import time
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import IO, Any

import click

from proxy.demo.messages import SAMPLES, Sample

_START_SECONDS = 30.0
_COLUMN = 48
_SHOWN = ("x-mailgun-", "x-mailjet-", "x-mc-", "x-pm-", "x-smtpapi", "x-cmail-")
_TOKEN = "demo-token"  # noqa: S105 - of a listener on loopback that lives as long as the demo


class DemoError(Exception):
    """The demo cannot go on; the text says what happened."""


def run(port: int) -> int:
    """
    Run the demo.

    Args:
        port: For the proxy; 0 for any free one.

    Returns:
        The exit code: 0 when every message arrived as it should.
    """
    started: list[subprocess.Popen[str]] = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # whatever ends the demo, it cleans up
    with tempfile.TemporaryDirectory(prefix="cmail-proxy-demo-") as name:
        folder = Path(name)
        try:
            return _run(folder, port, started)
        except DemoError as error:
            click.echo(f"demo: {error}", err=True)
            return 1
        except KeyboardInterrupt:
            return 0
        finally:
            for process in reversed(started):
                process.terminate()
            for process in reversed(started):
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _run(folder: Path, port: int, started: list[subprocess.Popen[str]]) -> int:
    click.echo("Starting a sink, which stands for the platform, and the proxy in front of it …")
    received = folder / "received"
    received.mkdir()
    sink = _start(started, [sys.executable, "-m", "proxy.demo.sink", str(received)])
    sink_port = int(_first_line(sink, "the sink"))
    settings = folder / "demo.yaml"
    settings.write_text(_settings(port, sink_port), encoding="utf-8")
    log = folder / "proxy.log"
    with log.open("w", encoding="utf-8") as output:
        proxy = _start(started, [sys.executable, "-m", "proxy", "serve", "--config", str(settings)], output, output)
    listening = _listening(proxy, log)
    port, probes = listening["listeners"][0]["port"], listening["probes"]["port"]
    click.echo(f"proxy on 127.0.0.1:{port}, sink on 127.0.0.1:{sink_port}\n")
    for number, sample in enumerate(SAMPLES, 1):
        _send(port, sample)
        _show(sample, _arrived(received / f"{number:02d}.eml"), _lost(log, number))
    _tell(folder, settings, log, port, probes)
    if sys.stdin.isatty():
        click.echo("\nStill running, for mail of your own. Ctrl-C ends it.")
        while proxy.poll() is None and sink.poll() is None:
            time.sleep(0.5)
        raise DemoError("a process ended by itself; its log says why")
    return 0


def _settings(port: int, sink_port: int) -> str:
    return textwrap.dedent(f"""\
        # The settings of the demo: an app logs in with a token, over loopback.
        data_dir: ./var
        listeners:
          - {{address: 127.0.0.1, port: {port}, tls: starttls, auth: required}}
        tls: {{self_signed: true}}
        tokens:
          - {{name: demo, token: {_TOKEN}}}
        relay: {{host: 127.0.0.1, port: {sink_port}, tls: none}}
        http:
          probes: {{address: 127.0.0.1, port: 0}}
        """)


def _start(
    started: list[subprocess.Popen[str]],
    command: list[str],
    output: IO[str] | int = subprocess.PIPE,
    errors: IO[str] | int | None = None,
) -> subprocess.Popen[str]:
    # The demo's settings are its own: what the user has in the environment is for the real thing.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CMAIL_PROXY_")}
    process = subprocess.Popen(  # noqa: S603 - this program's own modules
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        text=True,
        env=environ,
        start_new_session=True,  # Ctrl-C is for the demo, which ends them in order
    )
    started.append(process)
    return process


def _first_line(process: subprocess.Popen[str], name: str) -> str:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise DemoError(f"{name} did not start (exit code {process.wait()})")
    return line


def _listening(proxy: subprocess.Popen[str], log: Path) -> Any:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        for event in _events(log, "listening"):
            return event
        if proxy.poll() is not None:
            raise DemoError(f"the proxy did not start:\n{log.read_text('utf-8')}")
        time.sleep(0.05)
    raise DemoError(f"the proxy was not ready within {_START_SECONDS:g} s:\n{log.read_text('utf-8')}")


def _events(log: Path, name: str) -> list[Any]:
    """Read the log's lines for an event; the last may be half written, and warnings on settings are no JSON."""
    whole = log.read_text("utf-8").rpartition("\n")[0]
    events = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
    return [event for event in events if event["event"] == name]


def _send(port: int, sample: Sample) -> None:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="app.example.com", timeout=30) as client:
        client.login(_TOKEN, _TOKEN)
        client.send_message(sample.message())


def _arrived(path: Path) -> Message:
    until = time.monotonic() + _START_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            raise DemoError(f"the sink did not receive {path.name}")
        time.sleep(0.02)
    return message_from_bytes(path.read_bytes())


def _lost(log: Path, number: int) -> list[str]:
    """Read in the proxy's line of that message what of it has no counterpart."""
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:  # the line is written behind the reply
        lines = _events(log, "message")
        if len(lines) >= number:
            return [f"{each['source']} ({each['loses']})" for each in lines[number - 1]["lost"]]
        time.sleep(0.02)
    raise DemoError(f"the proxy wrote no line about message {number}")


def _show(sample: Sample, after: Message, lost: list[str]) -> None:
    left, right = (_lines(message) for message in (sample.message(), after))
    click.secho(sample.title, bold=True)
    click.echo(f"  {'before (what the app sent)':<{_COLUMN}}  after (what the platform received)")
    for index in range(max(len(left), len(right))):
        first = left[index] if index < len(left) else ""
        second = right[index] if index < len(right) else ""
        click.echo(f"  {first:<{_COLUMN}}  {second}".rstrip())
    if lost:
        click.echo(f"  not passed on: {', '.join(lost)}")
    click.echo()


def _lines(message: Message) -> list[str]:
    lines: list[str] = []
    for name, value in message.items():
        if name.lower().startswith(_SHOWN):
            text = f"{name}: {' '.join(str(value).split())}"
            lines.extend(textwrap.wrap(text, _COLUMN, subsequent_indent="    "))
    return lines or ["(no control fields)"]


def _tell(folder: Path, settings: Path, log: Path, port: int, probes: int) -> None:
    click.echo("Everything arrived, and no line of any app was changed. Where to look next:")
    if not sys.stdin.isatty():
        click.echo(
            "  the running proxy           the same command on a terminal, where it stays up: log, metrics, files"
        )
        click.echo("  why a field was set         cmail-proxy translate --explain MESSAGE.eml")
        click.echo("  the next step               README.md, “Switching from …” for your provider")
        return
    click.echo(f"  one line for each message   {log}")
    click.echo(f"  metrics                     http://127.0.0.1:{probes}/metrics")
    click.echo(f"  the settings used           {settings}")
    click.echo(f"  what the sink received      {folder / 'received'}")
    click.echo(f"  send a message of your own  SMTP to 127.0.0.1:{port}, user and password {_TOKEN}")
    click.echo(f"  why a field was set         {sys.argv[0]} translate --explain MESSAGE.eml")
    click.echo("  the next step               README.md, “Switching from …” for your provider")
