"""
The second half of the demo: the same messages without any platform, through the sending core into a mailbox folder.

A reader is played, too: one beacon is fetched and one link followed, as a mail program would; then the report is what
the command prints.
"""

import mailbox
import re
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

import click

from proxy.demo.messages import SAMPLES
from proxy.demo.steps import START_SECONDS, TOKEN, DemoError, environment, listening, send, start

_URL = re.compile(r'"(http://127\.0\.0\.1:[0-9]+/([oc])/[^"]+)"')


def run(folder: Path, started: list[subprocess.Popen[str]]) -> Path:
    """
    Show the sending core.

    Returns:
        Its settings file.
    """
    settings = folder / "core.yaml"
    settings.write_text(_settings(), encoding="utf-8")
    log = folder / "core.log"
    with log.open("w", encoding="utf-8") as output:
        proxy = start(started, [sys.executable, "-m", "proxy", "serve", "--config", str(settings)], output, output)
    port = listening(proxy, log)["listeners"][0]["port"]
    click.secho("Without a platform: the sending core", bold=True)
    click.echo("  The same five messages again, composed, tracked and delivered into a mailbox folder.")
    for sample in SAMPLES:
        send(port, sample)
    arrived = _arrived(folder / "core" / "mailbox", len(SAMPLES))
    click.echo(f"  delivered    {len(arrived)} mails into {folder / 'core' / 'mailbox'}")
    _read(arrived)
    report = [sys.executable, "-m", "proxy", "report", "--config", str(settings)]
    until = time.monotonic() + START_SECONDS
    while True:
        shown = subprocess.run(  # noqa: S603 - this program's own command
            report, capture_output=True, text=True, env=environment(), timeout=START_SECONDS, check=True
        ).stdout
        if shown.count("1 (1)") >= 2 or time.monotonic() > until:
            break
        time.sleep(0.2)
    click.echo("  the report   cmail-proxy report\n")
    click.echo(textwrap.indent(shown, "    "))
    return settings


def _settings() -> str:
    return textwrap.dedent(f"""\
        # The settings of the demo's second half: no relay, so route deliver, into the folder core/mailbox.
        data_dir: ./core
        listeners:
          - {{address: 127.0.0.1, port: 0}}
        tls: {{self_signed: true}}
        tokens:
          - {{name: demo, token: {TOKEN}}}
        http:
          probes: {{address: 127.0.0.1, port: 0}}
          public: {{address: 127.0.0.1, port: 0}}
        """)


def _arrived(folder: Path, count: int) -> list[Message]:
    until = time.monotonic() + START_SECONDS
    while not folder.is_dir() or len(found := list(mailbox.Maildir(folder, create=False))) < count:
        if time.monotonic() > until:
            raise DemoError(f"the messages did not arrive in {folder}")
        time.sleep(0.05)
    return list(found)


def _read(messages: list[Message]) -> None:
    """Open one message and follow one link, as readers do."""
    urls: dict[str, str] = {}
    for message in messages:
        for part in message.walk():
            if part.get_content_type() == "text/html":
                payload = part.get_payload(decode=True)
                text = payload.decode("utf-8", "replace") if isinstance(payload, bytes) else ""
                for url, kind in _URL.findall(text):
                    urls.setdefault(kind, url)
    if set(urls) != {"o", "c"}:
        raise DemoError("no message has a beacon and a tracked link")
    with urllib.request.urlopen(urls["o"], timeout=30) as answer:  # noqa: S310 - ours, on loopback
        click.echo(f"  opened       a beacon was fetched: {answer.status}, {len(answer.read())} octets of GIF")
    click.echo(f"  clicked      a link was followed, to {_location(urls['c'])}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Stay here: the demo reaches nothing outside this machine."""


def _location(url: str) -> str:
    try:
        urllib.request.build_opener(_NoRedirect).open(url, timeout=30)
    except urllib.error.HTTPError as answer:
        return answer.headers["Location"] or "nowhere"
    return "nowhere"
