"""A proxy that takes the route ``deliver`` into a mailbox folder, and who is around it: readers and an operator."""

import email
import json
import mailbox
import re
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import default
from functools import cached_property
from html import unescape
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.operation.program import run
from tests.smtp_in.dialogue import Client
from tests.support.proxy_process import WAIT_SECONDS, ProxyProcess

LISTENER = {"address": "127.0.0.1", "port": 0, "tls": "starttls", "auth": "none"}
QUEUED = re.compile(r"250 2\.0\.0 Message queued as (\S+)")
SENDER = "app@example.com"

_RECEIVED = re.compile(rb"Received: from \S+ \(\S+\)\r\n\tby \S+ with [A-Z0-9]+ id (\S+);\r\n\t[^\r]+\r\n")
_URL = rb"http://127\.0\.0\.1:[0-9]+"
_BEACON = re.compile(
    rb'<img src="(' + _URL + rb'/o/[A-Za-z0-9_-]+)" alt="" width="1" height="1" border="0" '
    rb'style="display:block;width:1px;height:1px;border:0;margin:0;padding:0">'
)
_CLICK = re.compile(_URL + rb"/c/[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Copy:
    """
    A file of the mailbox folder.

    Attributes:
        recipients: Whom the Delivered-To fields name, in order.
        content: All behind our Received field.
        at: When it was written, by its name; seconds since the epoch.
    """

    id: str
    reverse_path: str
    recipients: tuple[str, ...]
    received: bytes
    content: bytes
    at: float

    @classmethod
    def read(cls, name: str, octets: bytes) -> "Copy":
        """Take a file of ours apart."""
        first, _, rest = octets.partition(b"\r\n")
        recipients = []
        while rest.startswith(b"Delivered-To: "):
            line, _, rest = rest.partition(b"\r\n")
            recipients.append(line.partition(b": ")[2].decode())
        received = _RECEIVED.match(rest)
        written = re.match(r"(\d+)\.M(\d{6})P", name)
        if not first.startswith(b"Return-Path: <") or not recipients or received is None or written is None:
            raise AssertionError((name, octets))
        return cls(
            id=received[1].decode("ascii"),
            reverse_path=first[14:-1].decode(),
            recipients=tuple(recipients),
            received=received[0],
            content=rest[received.end() :],
            at=int(written[1]) + int(written[2]) / 1e6,
        )

    @property
    def head(self) -> bytes:
        """The header section, without Received."""
        return self.content[: self.content.index(b"\r\n\r\n") + 2]

    @property
    def names(self) -> list[str]:
        """The names of the header fields, in order, in small letters."""
        return [name.lower() for name in self.mail]

    @cached_property
    def mail(self) -> EmailMessage:
        """The message as a reader's program sees it."""
        return email.message_from_bytes(self.content, policy=default)

    def _part(self, subtype: str) -> bytes:
        (part,) = (each for each in self.mail.walk() if each.get_content_type() == f"text/{subtype}")
        content = part.get_payload(decode=True)
        if not isinstance(content, bytes):
            raise AssertionError(content)
        return content

    @property
    def html(self) -> bytes:
        """The HTML, decoded for transfer."""
        return self._part("html")

    @property
    def text(self) -> str:
        """The plain text."""
        return self._part("plain").decode()

    @property
    def beacons(self) -> list[str]:
        """The addresses of the beacons."""
        return [url.decode() for url in _BEACON.findall(self.html)]

    @property
    def clicks(self) -> list[str]:
        """The addresses of tracked links."""
        return [unescape(url.decode()) for url in _CLICK.findall(self.html)]

    @property
    def untracked(self) -> bytes:
        """The HTML with BEACON and CLICK in place of what is a recipient's own."""
        return _CLICK.sub(b"CLICK", _BEACON.sub(b"BEACON", self.html))


@dataclass(frozen=True)
class Answer:
    """What a page answered."""

    status: int
    fields: Mapping[str, str]
    body: bytes


@dataclass
class DeliverSite:
    """A running proxy."""

    proxy: ProxyProcess
    folder: Path
    _read: dict[str, Copy] = field(default_factory=dict)

    def client(self, index: int = 0, **how: Any) -> Client:
        """Connect to a listener."""
        return Client(self.proxy.ports[index], **how)

    def send(self, content: bytes, *recipients: str, index: int = 0) -> str:
        """Send a message, its lone dots doubled here, and give its queue id; it is durable now."""
        with self.client(index) as client:
            return send(client, content, *recipients)

    def copies(self) -> list[Copy]:
        """All that was delivered so far, in order."""
        if not (self.folder / "cur").exists():  # the last of the three that are made
            return []
        folder = mailbox.Maildir(self.folder, create=False)
        for name in folder.keys():  # noqa: SIM118 - a Maildir gives messages where it is iterated
            if name not in self._read:
                self._read[name] = Copy.read(name, folder.get_bytes(name))
        return sorted(self._read.values(), key=lambda copy: copy.at)

    def delivered(self, message_id: str, count: int = 1) -> dict[str, Copy]:
        """Wait until so many recipients of a message have got it, and give the copy of each; nobody has two."""
        until = time.monotonic() + WAIT_SECONDS
        while True:
            copies = [copy for copy in self.copies() if copy.id == message_id]
            found = {recipient: copy for copy in copies for recipient in copy.recipients}
            if sum(len(copy.recipients) for copy in copies) != len(found):
                raise AssertionError(f"delivered twice: {copies}")
            if len(found) == count:
                return found
            if len(found) > count or time.monotonic() > until:
                raise AssertionError(f"{len(found)} of {count} recipients: {found}")
            time.sleep(0.01)

    def only(self, message_id: str) -> Copy:
        """Wait for the copy of a message's only recipient."""
        (copy,) = self.delivered(message_id).values()
        return copy

    def get(self, url: str, *, method: str = "GET", fields: Mapping[str, str] | None = None) -> Answer:
        """Fetch a page as a mail program does, without following where it leads."""
        parts = urllib.parse.urlsplit(url)
        connection = HTTPConnection(parts.hostname or "", parts.port, timeout=WAIT_SECONDS)
        try:
            connection.request(method, urllib.parse.urlunsplit(("", "", *parts[2:])), headers=dict(fields or {}))
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def command(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command beside the proxy, with its settings: exit code, standard output and standard error."""
        done = run(*arguments, "--config", self.proxy.config)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def logged(self, name: str, message_id: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until so many log lines of a kind are there about a message; no more than that."""
        until = time.monotonic() + WAIT_SECONDS
        while True:
            found = [each for each in self.proxy.events(name) if each["id"] == message_id]
            if len(found) == count:
                return found
            if len(found) > count or time.monotonic() > until:
                raise AssertionError(f"{len(found)} lines {name!r} about {message_id}: {found}")
            time.sleep(0.01)

    def told(self, *arguments: str) -> Any:
        """Run a command with ``--json`` that succeeds, and give what it prints."""
        code, out, errors = self.command(*arguments, "--json")
        if code:
            raise AssertionError((code, out, errors))
        return json.loads(out)

    def figures(self, group: str) -> dict[str, Any]:
        """The line of the report for a group; all of it 0 where there is none."""
        rows = self.told("report", "--group", group)
        return dict(rows[0]) if rows else {}

    def wait_for_figures(self, group: str, **figures: int) -> None:
        """Wait until the report says so: an open or click is written behind the answer to it."""
        until = time.monotonic() + WAIT_SECONDS
        while True:
            found = self.figures(group)
            if all(found.get(name) == number for name, number in figures.items()):
                return
            if time.monotonic() > until:
                raise AssertionError((figures, found))
            time.sleep(0.05)

    def waiting(self) -> dict[str, Any]:
        """What ``queue list`` shows, by id."""
        return {each["id"]: each for each in self.told("queue", "list")}


def send(client: Client, content: bytes, *recipients: str) -> str:
    """Send a message on a connection, and give its queue id."""
    reply = client_reply(client, content, *recipients)
    queued = QUEUED.fullmatch(reply)
    if queued is None:
        raise AssertionError(reply)
    return queued[1]


def client_reply(client: Client, content: bytes, *recipients: str) -> str:
    """Send a message on a connection, and give the last reply."""
    if not content.endswith(b"\r\n"):
        raise AssertionError("what DATA carries ends with a line end")
    client.envelope(*recipients)
    stuffed = content.replace(b"\r\n.", b"\r\n..")
    client.send((b"." if stuffed.startswith(b".") else b"") + stuffed + b".\r\n")
    return client.reply()


def values(folder: Path, **overrides: Any) -> dict[str, Any]:
    """Settings for this route: everything kept in the folder, and any free ports."""
    return {
        "hostname": "proxy.example.com",
        "data_dir": str(folder / "var"),
        "listeners": [LISTENER],
        "http": {"probes": {"address": "127.0.0.1", "port": 0}, "public": {"address": "127.0.0.1", "port": 0}},
        "deliver": {"via": "mailbox"},
        **overrides,
    }


@contextmanager
def site(folder: Path, **overrides: Any) -> Iterator[DeliverSite]:
    """Start a proxy, and require at the end that nothing went wrong inside it."""
    with ProxyProcess(folder, values(folder, **overrides)) as proxy:
        yield DeliverSite(proxy, folder / "var" / "mailbox")
        for name in ("internal_error", "queue_trouble", "set_aside"):
            if proxy.events(name):
                raise AssertionError(proxy.events(name))


def message(*fields: bytes, body: bytes = b"Hello\r\n") -> bytes:
    """A message with the usual fields, and some more before them."""
    usual = (
        b"From: App <app@example.com>",
        b"To: ann@example.net",
        b"Subject: Hello",
        b"Date: Mon, 23 Nov 2026 09:00:00 +0000",
        b"Message-ID: <1@app.example.com>",
    )
    return b"\r\n".join((*fields, *usual)) + b"\r\n\r\n" + body


def html_message(html: bytes, *fields: bytes) -> bytes:
    """A message that is HTML and nothing else, as apps write it."""
    kind = (b"MIME-Version: 1.0", b"Content-Type: text/html; charset=utf-8", b"Content-Transfer-Encoding: 8bit")
    return message(*fields, *kind, body=html)


def both_message(html: bytes, text: bytes, *fields: bytes) -> bytes:
    """A message with a plain text and HTML."""
    kind = (b"MIME-Version: 1.0", b'Content-Type: multipart/alternative; boundary="b"')
    part = b"--b\r\nContent-Type: text/%s; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n%s\r\n"
    return message(*fields, *kind, body=part % (b"plain", text) + part % (b"html", html) + b"--b--\r\n")
