"""
The demo's run: start sink and proxy, send, compare, tell where to look next.

The proxy is this program's own ``serve`` in a process of its own, with a settings file as a user would write it; what
is shown as "after" is what the sink's process received.
"""

import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import click

from proxy.demo import core
from proxy.demo.messages import SAMPLES, Sample
from proxy.demo.steps import START_SECONDS, TOKEN, DemoError, events, listening, send, start

_COLUMN = 48
_SHOWN = ("x-mailgun-", "x-mailjet-", "x-mc-", "x-pm-", "x-smtpapi", "x-cmail-")


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
    sink = start(started, [sys.executable, "-m", "proxy.demo.sink", str(received)])
    sink_port = int(_first_line(sink, "the sink"))
    settings = folder / "demo.yaml"
    settings.write_text(_settings(port, sink_port), encoding="utf-8")
    log = folder / "proxy.log"
    with log.open("w", encoding="utf-8") as output:
        proxy = start(started, [sys.executable, "-m", "proxy", "serve", "--config", str(settings)], output, output)
    where = listening(proxy, log)
    port, probes = where["listeners"][0]["port"], where["probes"]["port"]
    click.echo(f"proxy on 127.0.0.1:{port}, sink on 127.0.0.1:{sink_port}\n")
    for number, sample in enumerate(SAMPLES, 1):
        send(port, sample)
        _show(sample, _arrived(received / f"{number:02d}.eml"), _lost(log, number))
    core_settings = core.run(folder, started)
    _tell(folder, settings, core_settings, log, port, probes)
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
          - {{name: demo, token: {TOKEN}}}
        relay: {{host: 127.0.0.1, port: {sink_port}, tls: none}}
        http:
          probes: {{address: 127.0.0.1, port: 0}}
        """)


def _first_line(process: subprocess.Popen[str], name: str) -> str:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise DemoError(f"{name} did not start (exit code {process.wait()})")
    return line


def _arrived(path: Path) -> Message:
    until = time.monotonic() + START_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            raise DemoError(f"the sink did not receive {path.name}")
        time.sleep(0.02)
    return message_from_bytes(path.read_bytes())


def _lost(log: Path, number: int) -> list[str]:
    """Read in the proxy's line of that message what of it has no counterpart."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:  # the line is written behind the reply
        lines = events(log, "message")
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


def _tell(folder: Path, settings: Path, core_settings: Path, log: Path, port: int, probes: int) -> None:
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
    click.echo(f"  the sending core's queue    {sys.argv[0]} queue list --config {core_settings}")
    click.echo(f"  send a message of your own  SMTP to 127.0.0.1:{port}, user and password {TOKEN}")
    click.echo(f"  why a field was set         {sys.argv[0]} translate --explain MESSAGE.eml")
    click.echo("  the next step               README.md, “Switching from …” for your provider")
